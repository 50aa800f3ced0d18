"""Jobs leave nothing for Python's collector: what they held is let go at once, and not whenever it comes."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from fedloom.engines.local import Local
from fedloom.method import catalogue
from fedloom.testing import Trial

METHODS = ["fedavg", "fedprox", "scaffold", "feddyn", "fednova", "ditto", "fedproto", "fedavgm"]


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("method", METHODS)
def test_jobs_leave_no_cycles(method, engine, monkeypatch):
    found: list[int] = []
    honest = Local.run_share

    def watched(self: Local, *share: Any) -> Any:
        gc.collect()
        gc.disable()
        try:
            out = honest(self, *share)
            found.append(gc.collect())
        finally:
            gc.enable()
        return out

    monkeypatch.setattr(Local, "run_share", watched)
    Trial(catalogue()[method]()).run(engine=engine, rounds=6)
    assert found[-1] == 0  # the first ones look at a network, and compile
