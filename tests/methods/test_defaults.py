"""Defaults that papers name: what runs where nobody says otherwise."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any

import pytest

import fedloom as fl
from fedloom.method import catalogue

PAPERS: dict[type[fl.Method], dict[str, Any]] = {
    fl.FedAvg: {"server_lr": 1.0, "weight": "samples"},
    fl.FedAvgM: {"momentum": 0.9, "server_lr": 1.0, "weight": "samples"},
    fl.FedAdagrad: {"b1": 0.0, "tau": 1e-3, "v0": "tau"},
    fl.FedAdam: {"b1": 0.9, "b2": 0.99, "tau": 1e-3, "v0": "tau"},
    fl.FedYogi: {"b1": 0.9, "b2": 0.99, "tau": 1e-3, "v0": "tau"},
    fl.FedProx: {"weight": "samples", "drop": False},
    fl.Scaffold: {"option": "II", "server_lr": 1.0},
    fl.FedDyn: {"alpha": 0.01, "solver.clip": 10.0},
    fl.FedPer: {"personal": ("head.*",)},
    fl.FedProto: {"lam": 1.0, "by": "prototype"},
    fl.FedDF: {"temperature": 1.0, "distil.lr": 1e-3},
    fl.HeteroFL: {"scale": True, "mask": True, "weight": "uniform"},
    fl.FedBuff: {"staleness": "polynomial", "a": 0.5, "server_lr": 1.0},
    fl.FedAsync: {"alpha": 0.6, "rho": 0.005, "staleness": "polynomial", "a": 0.5, "b": 4.0},
    fl.DFedAvgM: {"solver.momentum": 0.9, "topology": "ring", "gossip": 1},
    fl.FedKSeed: {"eps": 5e-4, "solver.momentum": 0.0, "solver.weight_decay": 0.0, "pro": False},
    fl.FedIT: {"rank": 8, "alpha": 16.0, "solver.epochs": 1, "solver.batch_size": 32},
}


@pytest.mark.parametrize("method", PAPERS, ids=lambda m: m.card.id)
def test_defaults_are_the_papers(method):
    assert {name: attrgetter(name)(method()) for name in PAPERS[method]} == PAPERS[method]


@pytest.mark.parametrize("id", [id for id, m in catalogue().items() if "weight" in {f.name for f in fields(m)}])
def test_a_weight_that_is_no_rule_is_refused_before_any_work(id):
    with pytest.raises(fl.FedloomError, match=r"Did you mean 'samples'"):
        catalogue()[id](weight="sample")
