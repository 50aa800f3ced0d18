"""The README says what is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_methods_is_current():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / "README.md").read_text()
    assert text == tables.current(text), "run python docs/tables.py"


def test_the_picture_is_there():
    assert (ROOT / "docs" / "report.png").read_bytes()[:4] == b"\x89PNG"
