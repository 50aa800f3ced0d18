"""Sums of replies of 16 bits are of 32; a model that moves by them is of 16 again, and so is what it weighs."""

from __future__ import annotations

import pytest
import torch

import fedloom as fl
from fedloom.method import catalogue
from fedloom.testing.tiny import SIZES, example_of

BY_SUMS = ["depthfl", "fedadp", "pfedgate", "prunefl"]


@pytest.mark.parametrize("id", BY_SUMS)
def test_models_stay_as_narrow_as_they_began(id):
    e = example_of(catalogue()[id])
    options = {"dtype": torch.bfloat16, "engine": "sequential", "evaluate_every": 0, "world": e.world}
    got = fl.run(e.method, e.task, e.federation(SIZES, torch.bfloat16), rounds=1, **options)
    narrow = {name: value.dtype for name, value in vars(got.state).items() if name in ("params", "union", "h")}
    assert narrow
    assert set(narrow.values()) == {torch.bfloat16}
