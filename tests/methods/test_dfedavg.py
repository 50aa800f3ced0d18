"""DFedAvg against NumPy on graphs, and what it is of other methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, Softmax, X, Y, run, same, trained

import fedloom as fl

GRAPHS = {
    "ring": np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]) / 3,
    "complete": np.full((4, 4), 0.25),
    "components:2": np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]) / 2,
}


@pytest.mark.parametrize("topology", GRAPHS)
@pytest.mark.parametrize("gossip", [1, 2])
def test_three_rounds(topology, gossip):
    x = np.tile(START, (4, 1))
    for r in range(3):
        y = np.stack([trained(x[i], i, r) for i in range(4)])
        x = np.linalg.matrix_power(GRAPHS[topology], gossip) @ y
        np.testing.assert_allclose(x.mean(0), y.mean(0), atol=1e-12)
    got = run(fl.DFedAvg(topology=topology, gossip=gossip, solver=SGD), rounds=3)
    for i in range(4):
        same(got.memories[i]["params"], x[i])


def test_the_mean_of_all_nodes_is_judged_with_their_distance_from_it_also_of_those_away():
    world = fl.World(present=0.5)
    test = fl.Data(x=torch.from_numpy(X[0]), y=torch.from_numpy(Y[0]))
    parts = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(X, Y)]
    judged = fl.Federation.from_clients(parts, test=test, client_test=0.0, ordered=True, classes=3)
    options = {"engine": "sequential", "dtype": torch.float64, "world": world}
    got = fl.run(fl.DFedAvg(solver=SGD), fl.Classification(model=Softmax), judged, rounds=2, **options)
    assert 0 < len(got.memories) < 4
    x = np.stack([got.memories[i]["params"].numpy() if i in got.memories else START for i in range(4)])
    z = X[0] @ x.mean(0)[:9].reshape(3, 3).T + x.mean(0)[9:]
    loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), Y[0]]
    view = got.rows[-1]["mean"]
    assert view["distance"] == pytest.approx(((x - x.mean(0)) ** 2).sum(1).mean(), rel=1e-12)
    assert view["loss"] == pytest.approx(loss.mean(), rel=1e-12)
    assert view["accuracy"] == (z.argmax(1) == Y[0]).mean()


def test_with_a_solver_of_momentum_it_is_dfedavgm_and_without_dfedavgm_is_it():
    heavy = replace(SGD, momentum=0.9, lr=0.05)
    for solver in (SGD, heavy):
        a, b = (run(method(solver=solver), rounds=3) for method in (fl.DFedAvg, fl.DFedAvgM))
        for i in range(4):
            same(a.memories[i]["params"], b.memories[i]["params"].numpy())


def test_a_complete_graph_is_fedavg_with_equal_weights():
    got = run(fl.DFedAvg(topology="complete", solver=SGD), rounds=3)
    avg = run(fl.FedAvg(cohort=4, solver=SGD, weight="uniform"), rounds=3)
    for i in range(4):
        same(got.memories[i]["params"], avg.params.numpy())


def test_components_never_hear_of_each_other():
    two = run(fl.DFedAvg(topology="components:2", gossip=3, solver=SGD), rounds=3).memories
    same(two[0]["params"], two[2]["params"].numpy())
    same(two[1]["params"], two[3]["params"].numpy())
    assert float((two[0]["params"] - two[1]["params"]).abs().max()) > 1e-3


@pytest.mark.parametrize("method", [fl.DFedAvg, fl.DFedSAM, fl.DPSGD, fl.S2S, fl.S2A], ids=lambda m: m.card.id)
@pytest.mark.parametrize("wrong", [{"topology": "rign"}, {"topology": "components:x"}, {"gossip": 0}])
def test_wrong_options_are_refused(method, wrong):
    with pytest.raises(fl.FedloomError, match=r"topology|gossip"):
        method(**wrong)
