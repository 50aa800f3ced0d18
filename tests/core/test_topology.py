"""Mixing matrices: weights by hand, rows that add up to 1, and no more numbers than there are edges."""

from __future__ import annotations

import math

import pytest
import torch

import fedloom as fl
from fedloom.topology import Complete, Graph, RandomRegular, Ring, spectral_gap, topology_named

NAMES = ["ring", "ring:3", "grid", "torus", "exponential", "star", "complete", "random:4", "erdos:0.3", "components:2"]


def dense(topology, n, seed=0):
    return topology.matrix(range(n), torch.Generator().manual_seed(seed)).to_dense()


def test_a_path_by_hand():
    """0 - 1 - 2, and 3 alone: degrees 1, 2, 1, 0, so every edge weighs 1 / (1 + 2)."""
    t = 1 / 3
    expected = torch.tensor([[2 * t, t, 0, 0], [t, t, t, 0], [0, t, 2 * t, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    assert torch.allclose(dense(Graph(((0, 1), (2, 1), (1, 0), (2, 2))), 4), expected)
    assert torch.equal(dense(Graph(()), 3), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_symmetric_and_rows_add_up(name, n):
    w = dense(topology_named(name), n)
    assert torch.allclose(w, w.T)
    assert torch.allclose(w.sum(1), torch.ones(n, dtype=torch.float64))
    assert (w >= 0).all()


def test_a_ring_of_many_holds_its_edges_alone():
    w = Ring(reach=2).matrix(range(100_000), torch.Generator())
    assert w.is_sparse
    assert w._nnz() == 5 * 100_000


def test_neighbours():
    assert (dense(Ring(), 6)[0] > 0).nonzero().flatten().tolist() == [0, 1, 5]
    links = (dense(RandomRegular(4), 20) > 0).sum(1) - 1
    assert links.min() >= 2
    assert links.max() <= 4
    assert links.double().mean() > 3
    assert torch.equal(dense(Complete(), 4), torch.full((4, 4), 0.25, dtype=torch.float64))


def neighbours(name, n, of=0, seed=0):
    row = dense(topology_named(name), n, seed)[of]
    return [j for j in (row > 0).nonzero().flatten().tolist() if j != of]


def test_neighbours_by_name():
    """Of a grid of three rows and columns, the last row one short."""
    assert neighbours("grid", 8, 4) == [1, 3, 5, 7]
    assert neighbours("grid", 8, 0) == [1, 3]
    assert neighbours("grid", 8, 5) == [2, 4]
    assert neighbours("torus", 8, 0) == [1, 2, 3, 6]
    assert neighbours("torus", 8, 7) == [1, 4, 6]
    assert neighbours("torus", 9, 8) == [2, 5, 6, 7]
    assert neighbours("exponential", 12) == [1, 2, 4, 8, 10, 11]
    assert neighbours("star", 5, 3) == [0]
    assert neighbours("star", 5) == [1, 2, 3, 4]


def test_one_peer_takes_half_from_one_at_a_power_of_two_and_leaves_the_mean():
    seen = set()
    for seed in range(40):
        w = dense(topology_named("one-peer"), 12, seed)
        assert torch.equal(w.sum(0), torch.ones(12, dtype=torch.float64))
        assert w[5, 5] == 0.5
        (peer,) = neighbours("one-peer", 12, 5, seed)
        assert w[5, peer] == 0.5
        seen.add((peer - 5) % 12)
    assert seen == {1, 2, 4, 8}
    assert all(len(neighbours("one-peer", 8, seed=seed)) == 1 for seed in range(20))
    assert dense(topology_named("one-peer"), 1).tolist() == [[1.0]]


def test_links_of_erdos_renyi_come_with_its_chance():
    w = dense(topology_named("erdos:0.3"), 60)
    links = int(((w > 0).sum() - 60) / 2)
    assert abs(links - 0.3 * 1770) < 5 * (0.3 * 0.7 * 1770) ** 0.5
    assert torch.equal(dense(topology_named("erdos:0"), 4), torch.eye(4, dtype=torch.float64))


def test_the_gap_is_how_much_a_step_shrinks_disagreement_at_least():
    gaps = {name: spectral_gap(dense(topology_named(name), 16)) for name in [*NAMES, "one-peer"]}
    assert gaps["complete"] == pytest.approx(1.0)
    assert gaps["components:2"] == pytest.approx(0.0)
    assert gaps["ring"] == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / 16)) / 3)
    assert 0 < gaps["ring"] < gaps["grid"] < gaps["torus"] < gaps["exponential"] < 1
    x = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, gap in gaps.items():
        mixed = dense(topology_named(name), 16) @ x
        assert torch.allclose(mixed.mean(0), x.mean(0))
        assert (mixed - mixed.mean(0)).norm() <= (1 - gap + 1e-12) * (x - x.mean(0)).norm()
    assert spectral_gap(torch.ones(1, 1)) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", ["rign", "ring:x", "grid:3", "erdos:many"])
def test_names_that_cannot_be_read(wrong):
    with pytest.raises(fl.FedloomError, match="topology"):
        topology_named(wrong)


@pytest.mark.parametrize("wrong", ["ring:0", "ring:-2", "random:0", "erdos:1.5", "erdos:nan", "components:0"])
def test_numbers_that_make_no_graph_are_refused_with_one_that_does(wrong):
    """No component at all would be a matrix of zeros, which wipes every model out."""
    with pytest.raises(fl.FedloomError, match=f"cannot be: .* as in {wrong.partition(':')[0]}:"):
        topology_named(wrong)
