"""Links, loss, and cells that are shared."""

from __future__ import annotations

import math

import pytest

import fedloom as fl
from fedloom.errors import ConfigError
from fedloom.testing import Trial
from fedloom.timing.networks import NETWORKS, Network
from fedloom.timing.sharing import Way, divide, fair


@pytest.mark.parametrize("text", ["wifi", "5g:shared_up=2500000.0,cells=4", "ethernet:latency=0.5"])
def test_texts_and_back(text):
    assert str(Network.parse(text)) == text


def test_figures_are_ordered_as_their_sources_say():
    down = [NETWORKS[n].down for n in ("4g", "wifi", "5g", "ethernet")]
    assert down == sorted(down)
    assert NETWORKS["5g"].up < NETWORKS["wifi"].up < NETWORKS["ethernet"].up
    assert NETWORKS["ethernet"].up == pytest.approx(949e6 / 8)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="Known"):
        fl.World(network="6g")
    for text in ("wifi:down=nan", "wifi:spread=nan", "wifi:spread=inf", "wifi:latency=inf"):
        with pytest.raises(ConfigError, match="rates > 0"):
            Network.parse(text)
    with pytest.raises(ConfigError, match="rates > 0"):
        Network(up=0)


def test_loss_bounds_the_rate():
    """1,460 bytes / 40 ms * sqrt(1.5 / 0.01)"""
    link = Network(up=1e9, down=1e3, latency=0.02, loss=0.01).link(0, 0)
    assert link.up == pytest.approx(1460 / 0.04 * math.sqrt(150))
    assert link.down == 1e3


def test_spread_is_one_factor_for_both_ways():
    network = Network(up=1e6, down=4e6, spread=0.5)
    links = [network.link(i, 0) for i in range(50)]
    assert len({link.up for link in links}) == 50
    assert all(link.down == pytest.approx(4 * link.up) for link in links)


def test_fair_parts():
    assert fair([1.0, 5.0, 5.0], 9.0) == [1.0, 4.0, 4.0]
    assert fair([1.0, 2.0], 9.0) == [1.0, 2.0]
    assert fair([math.inf, math.inf], 9.0) == [4.5, 4.5]


def test_a_transfer_that_joins_later():
    """A cell of 10 a second. A (100 bytes) alone for 4 s has 60 left; both at 5: A ends at 16, B has 40 left, at 20."""
    a = Way(math.inf, 100.0, 0.0, 0.0)
    divide([a], 10.0, 0.0)
    assert a.due == 10.0
    b = Way(math.inf, 100.0, 0.0, 4.0)
    divide([a, b], 10.0, 4.0)
    assert (a.due, b.due) == (16.0, 24.0)
    divide([b], 10.0, 16.0)
    assert b.due == 20.0


def test_latency_comes_first():
    way = Way(math.inf, 10.0, 2.0, 0.0)
    divide([way], 5.0, 0.0)
    assert way.due == 4.0
    way.pass_to(1.0)
    assert (way.lag, way.left) == (1.0, 10.0)
    way.pass_to(3.0)
    assert (way.lag, way.left) == (0.0, 5.0)


# ---------------------------------------------------------------- in a run


def seconds(world, sizes=(6, 6, 6, 6), **options):
    method = fl.FedAvg(cohort=4, solver=fl.SGD(0.05, batch_size=1, steps=2))
    run = Trial(fl.FedAvg).run(method=method, sizes=sizes, world=world, rounds=1, **options)
    return run


def test_equal_uploads_that_start_together_share_the_cell():
    d = seconds(fl.World()).plan.model.layout.size
    network = Network(up=1e9, shared_up=8.0 * d, latency=0.5)
    run = seconds(fl.World(step_seconds=1.0, network=network), per_client=True)
    assert run.host.now == pytest.approx(0.5 + 2.0 + 0.5 + 4.0, rel=1e-5)  # four uploads of one second each, together
    for job in run.rows[0]["jobs"]:
        assert job["upload"] == pytest.approx(4.5, rel=1e-5)
    alone = seconds(fl.World(step_seconds=1.0, network=Network(up=8.0 * d, latency=0.5)))
    assert alone.host.now == pytest.approx(0.5 + 2.0 + 0.5 + 1.0, rel=1e-5)


def test_cells_are_apart():
    d = seconds(fl.World()).plan.model.layout.size
    one, many = (Network(up=1e9, shared_up=8.0 * d, cells=n) for n in (1, 1000))
    assert seconds(fl.World(step_seconds=1.0, network=one)).host.now == pytest.approx(6.0, rel=1e-5)
    assert seconds(fl.World(step_seconds=1.0, network=many)).host.now == pytest.approx(3.0, rel=1e-5)


def test_sharing_changes_time_alone():
    free, shared = seconds(fl.World()), seconds(fl.World(network=Network(up=1e5, shared_up=2e5, shared_down=3e5)))
    assert (free.params - shared.params).abs().max() < 1e-12
    assert shared.host.ledger == free.host.ledger
