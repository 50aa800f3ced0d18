"""DFedAvgM against NumPy on graphs: momentum, mixing matrices written by hand, and a mean that does not move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, N, run, same, trained

import fedloom as fl

HEAVY = replace(SGD, lr=0.05, momentum=0.9)
RING = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]) / 3  # four nodes, two neighbours each


@pytest.mark.parametrize(("topology", "matrix"), [("ring", RING), ("complete", np.full((4, 4), 0.25))])
@pytest.mark.parametrize("gossip", [1, 3])
def test_rounds(topology, matrix, gossip):
    x = np.tile(START, (4, 1))
    for r in range(3):
        y = np.stack([trained(x[i], i, r, HEAVY) for i in range(4)])
        x = np.linalg.matrix_power(matrix, gossip) @ y
        np.testing.assert_allclose(x.mean(0), y.mean(0), atol=1e-12)  # mixing leaves the mean of the nodes alone
    got = run(fl.DFedAvgM(topology=topology, gossip=gossip, solver=HEAVY), rounds=3)
    for i in range(4):
        same(got.memories[i]["params"], x[i])


def test_a_complete_graph_without_momentum_is_fedavg_with_equal_weights():
    got = run(fl.DFedAvgM(topology="complete", solver=SGD), rounds=3)
    avg = run(fl.FedAvg(cohort=4, solver=SGD, weight="uniform"), rounds=3)
    for i in range(4):
        same(got.memories[i]["params"], avg.params.numpy())


def test_a_ring_agrees_later_than_a_complete_graph_and_nodes_differ_until_then():
    def spread(topology):
        models = [m["params"] for m in run(fl.DFedAvgM(topology=topology, solver=HEAVY), rounds=3).memories.values()]
        return float(torch.stack(models).std(0).max())

    assert spread("ring") > 1e-3
    assert spread("complete") < 1e-12


@pytest.mark.parametrize(("topology", "edges"), [("ring", 8), ("complete", 12)])
def test_bytes_are_those_of_the_edges(topology, edges):
    got = run(fl.DFedAvgM(topology=topology, gossip=2, solver=HEAVY), rounds=3).summary
    assert got["bytes_peers"] == 3 * 2 * edges * 8 * len(START)
    assert got["bytes_up"] == got["bytes_down"] == 0


def test_who_is_away_keeps_its_model_and_the_others_mix():
    world, method = fl.World(present=0.6), fl.DFedAvgM(topology="complete", solver=SGD)
    x, seen = {}, set()
    for r in range(4):
        got = run(method, rounds=r + 1, world=world)
        here = [i for i in range(4) if i in world.here(range(4), r)]
        seen.add(len(here))
        y = [trained(x.get(i, START), i, r) for i in here]
        x |= {i: np.mean(y, axis=0) for i in here}
        assert set(got.memories) == set(x)
        for i in x:
            same(got.memories[i]["params"], x[i])
    assert len(seen) > 1
    assert N.shape == (4,)


@pytest.mark.parametrize("wrong", [{"topology": "rign"}, {"topology": "ring:x"}, {"gossip": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"topology|gossip"):
        fl.DFedAvgM(**wrong)
