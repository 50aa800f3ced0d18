"""S2S and S2A against NumPy: who takes the sample's mean, what it does to the mean of all, and to disagreement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from worked import SGD, START, cohort, run, same, trained

import fedloom as fl
from fedloom.testing import Trial
from fedloom.testing.problems import quadratics

APART = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]) / 2
BOTH = pytest.mark.parametrize(("method", "to_all"), [(fl.S2S, False), (fl.S2A, True)])


def nodes(got: fl.Run) -> torch.Tensor:
    return torch.stack([m["params"] for _, m in sorted(got.memories.items())])


def before_contact(x: np.ndarray, r: int) -> np.ndarray:
    """Local steps, then one mixing step inside two components."""
    return APART @ np.stack([trained(x[i], i, r) for i in range(4)])


@BOTH
def test_five_rounds_with_a_contact_every_second(method, to_all):
    x, a = np.tile(START, (4, 1)), START
    for r in range(5):
        x = before_contact(x, r)
        if (r + 1) % 2 == 0:
            sample = cohort(r, 3)
            a = x[sample].mean(0)
            x[range(4) if to_all else sample] = a
    got = run(method(topology="components:2", cohort=3, every=2, solver=SGD), rounds=5)
    same(nodes(got), x)
    same(got.params, a)


def test_s2s_leaves_the_mean_of_all_where_it_was_and_s2a_no_disagreement():
    x = before_contact(np.tile(START, (4, 1)), 0)
    options = {"topology": "components:2", "cohort": 3, "every": 1, "solver": SGD}
    some, every = nodes(run(fl.S2S(**options), rounds=1)), nodes(run(fl.S2A(**options), rounds=1))
    same(some.mean(0), x.mean(0))
    assert float((some - some.mean(0)).norm()) > 1e-3
    assert float((every - every.mean(0)).norm()) == 0.0
    assert float((every.mean(0) - torch.from_numpy(x.mean(0))).norm()) > 1e-3


def test_over_all_samples_the_mean_of_s2a_is_that_of_the_nodes():
    whole = fl.SGD(lr=0.2, steps=2, batch_size=10)  # every batch is the same: only the sample depends on the seed
    means = {}
    for seed in range(30):
        got = run(fl.S2A(topology="ring", cohort=3, every=1, solver=whole), rounds=1, seed=seed)
        means[tuple(np.round(got.params.numpy(), 9))] = got.params.numpy()
    alone = nodes(run(fl.DFedAvg(topology="ring", solver=whole), rounds=1))
    assert len(means) == len(list(combinations(range(4), 3)))
    np.testing.assert_allclose(np.mean(list(means.values()), axis=0), alone.numpy().mean(0), atol=1e-9)


@BOTH
def test_without_a_contact_it_is_dfedavg_and_with_all_in_every_round_fedavg(method, to_all):
    never = run(method(topology="components:2", every=9, solver=SGD), rounds=3)
    same(nodes(never), nodes(run(fl.DFedAvg(topology="components:2", solver=SGD), rounds=3)).numpy())
    always = run(method(topology="components:2", cohort=4, every=1, solver=SGD), rounds=3)
    same(always.params, run(fl.FedAvg(cohort=4, solver=SGD, weight="uniform"), rounds=3).params.numpy())


@BOTH
def test_bytes_to_the_server_are_those_of_the_contacts(method, to_all):
    got = run(method(topology="components:2", cohort=3, every=2, solver=SGD), rounds=5).summary
    d = 8 * len(START)
    assert got["bytes_up"] == 2 * 3 * d
    assert got["bytes_down"] == 2 * (4 if to_all else 3) * d
    assert got["bytes_peers"] == 5 * 4 * d


@pytest.mark.parametrize("wrong", [{"every": 0}, {"cohort": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="at least 1"):
        fl.S2A(**wrong)


def gap(method: type[fl.S2S]) -> tuple[float, float]:
    """How far above its optimum the loss of the mean of all nodes is, and their distance from it, once it is steady.

    Three components of four nodes, whose minimisers are 3 apart between components and 0.3 inside.
    """
    rng = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(3, 3, generator=rng, dtype=torch.float64).repeat(4, 1)
    q = quadratics(clients=12, samples=(1,) * 12)
    q = replace(q, b=centres + 0.3 * torch.randn(12, 3, generator=rng, dtype=torch.float64))
    how = method(topology="components:3", cohort=4, every=5, solver=fl.SGD(lr=0.05, steps=1))
    options = {"rounds": 60, "evaluate_every": 3, "dtype": torch.float64, "engine": "sequential"}
    views = [row["mean"] for row in fl.run(how, q.task, q.federation, **options).rows if "mean" in row][10:]
    best = q.value(q.optimum)
    return float(np.mean([v["loss"] - best for v in views])), float(np.mean([v["distance"] for v in views]))


def test_with_components_far_apart_s2s_has_the_better_mean_and_s2a_nodes_that_agree():
    (some, apart), (every, together) = gap(fl.S2S), gap(fl.S2A)
    assert 0 < some < every / 2
    assert together < apart / 5


@pytest.mark.parametrize("method", [fl.S2S, fl.S2A])
def test_an_earlier_run_whose_nodes_are_gone_is_refused(method):
    earlier = run(method(cohort=2, every=1, solver=SGD), rounds=1)
    with pytest.raises(fl.FedloomError, match=f"{method.__name__} cannot start from an earlier run"):
        run(method(solver=SGD), rounds=1, before=earlier)


def test_the_contract_is_asked_of_rounds_with_a_contact_and_without():
    for method in (fl.S2S, fl.S2A):
        trial = Trial(method)
        contacts = [any(h.reply is not None for h in trial.spy_on_reference() if h.round == r) for r in range(3)]
        assert contacts == [False, True, False]
