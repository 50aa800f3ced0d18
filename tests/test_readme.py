"""The README says what is there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fedloom as fl
from fedloom.testing import checks

ROOT = Path(__file__).parents[1]


def made_by(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_methods_is_current():
    text = (ROOT / "README.md").read_text()
    assert text == made_by("tables").current(text), "run make readme"


def test_the_pages_of_methods_are_current():
    made, folder = made_by("pages").pages(), ROOT / "docs" / "methods"
    assert {p.name: p.read_text() for p in folder.iterdir()} == made, "run make readme"


def test_the_picture_is_there():
    assert (ROOT / "docs" / "report.png").read_bytes()[:4] == b"\x89PNG"


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(z)


def test_its_examples_of_own_data_and_networks_run_as_written(tmp_path: Path, monkeypatch):
    x, y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3
    rows = "\n".join(f"{i % 7}.5,{'yes' if i % 3 else 'no'},{'abc'[i % 3]}" for i in range(60))
    (tmp_path / "patients.csv").write_text(f"age,outcome,hospital\n{rows}\n")
    monkeypatch.chdir(tmp_path)
    given = {
        **{"fl": fl, "dataset": TensorDataset(x, y), "TwoInputs": TwoInputs, "WithBatchNorm": nn.Module},
        **{"x": x, "y": y, "z": x[:, :4], "xa": x[:9], "ya": y[:9], "xb": x[9:], "yb": y[9:], "xt": x, "yt": y},
    }
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "csv" in block
    )
    exec(example.replace("clients=20))\nfl.Class", "clients=20), rounds=1)\nfl.Class"), given)


def keeps_the_contract(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fedloom check` asks first of a class in a text that a reader would copy."""
    monkeypatch.setattr(fl, "register", lambda cls: cls)  # it is no method of the library
    module = ModuleType("copied")
    monkeypatch.setitem(sys.modules, "copied", module)
    exec(source, vars(module))
    for check in checks(getattr(module, name)):
        if check.name in ("card", "hyperparameters", "runs", "continues", "needs"):
            check()


def test_the_methods_that_readers_copy_keep_the_contract(monkeypatch):
    page = (ROOT / "docs" / "writing-a-method.md").read_text()
    keeps_the_contract(re.findall(r"```python\n(.*?)```", page, re.S)[0], "Mine", monkeypatch)
    keeps_the_contract((ROOT / "examples" / "own_method.py").read_text(), "Averaged", monkeypatch)


def test_names_of_the_library_in_pages_messages_and_docstrings_are_there():
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    named = {name for path in texts for name in re.findall(r"\bfl\.([A-Z]\w*)\(", path.read_text())}
    assert {"World", "WallClock", "Scaffold"} <= named
    assert [name for name in sorted(named) if not hasattr(fl, name)] == []
