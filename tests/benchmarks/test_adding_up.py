"""The ways of adding up come to the same, on small updates; bytes are counted. No time is judged."""

from __future__ import annotations

import pytest

from benchmarks import lifl


@pytest.mark.parametrize("name", lifl.WAYS)
def test_a_line(name, monkeypatch):
    monkeypatch.setattr(lifl, "NUMBERS", 10_000)  # shorter ones are written into letters
    line = lifl.measured(name, 40)  # looks at the mean itself
    sent = line["bytes"] / 40_000
    assert line["seconds"] > 0
    if name.startswith("sent"):
        assert 40 < sent < 44  # a head beside the numbers
    elif name.startswith("shared"):
        leaves = 40 if name == "shared, flat" else 5
        assert leaves - 1 <= sent <= leaves + 1


def test_the_page():
    lines = [
        {"way": way, "updates": n, "seconds": 1.0, "bytes": 8.0, "memory": 4} for way in lifl.WAYS for n in lifl.UPDATES
    ]
    about = {"date": "", "cores": 2, "machine": "", "python": "", "torch": "", "commit": "", "load": 0.0}
    assert "| shared, tree | 1.00 |" in lifl.page(lines, about)
