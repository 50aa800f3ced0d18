"""The report: measures against independent numbers, bounds on its work, and its figures."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from fedloom.data import Data, Federation, federate, heterogeneity
from fedloom.data.fields import IGNORE
from fedloom.data.report import gini, jensen_shannon, total_variation
from fedloom.errors import ConfigError, DataError


def test_measures_agree_with_scipy_and_with_hand():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 5), rng.dirichlet(np.ones(6), 5)
    p[0] = [1, 0, 0, 0, 0, 0]
    q[0] = [0, 0, 0, 0, 0, 1]
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q)]
    assert np.allclose(jensen_shannon(p, q), expected)
    assert jensen_shannon(p, q)[0] == 1.0
    assert total_variation(p, q)[0] == 1.0
    assert gini(np.array([5, 5, 5])) == 0.0
    assert gini(np.array([0, 0, 0, 8])) == 0.75
    assert gini(np.array([1, 3])) == pytest.approx(0.25)  # mean |1-3| over pairs / (2 mean) = 1/4
    assert gini(np.zeros(3)) == 0.0


def test_two_opposite_clients_by_hand():
    x = torch.tensor([[0.0, 5.0], [2.0, 5.0], [10.0, 5.0], [12.0, 5.0]])
    fed = Federation.from_clients(
        [Data(x=x[:2], y=torch.tensor([0, 0])), Data(x=x[2:], y=torch.tensor([1, 1]))], client_test=0.0
    )
    found = heterogeneity(fed)
    # pooled mean 6, pooled variance (36 + 16 + 16 + 36) / 4 = 26; client means 1 and 11; the second input is constant
    assert found["features"]["shift"] == pytest.approx(5 / 26**0.5)
    assert found["features"]["pairwise"] == pytest.approx(10 / 26**0.5)
    assert found["features"]["largest"][0] == {"input": 0, "shift": pytest.approx(5 / 26**0.5)}
    assert found["features"]["spread"] == 0.0
    # P = (1, 0), Q = (1/2, 1/2): JS = H(3/4) - (0 + 1)/2 bits, TV = 1/2
    assert found["labels"]["jensen_shannon"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5)
    assert found["labels"]["total_variation"] == 0.5
    assert found["labels"]["classes_per_client"] == 1.0
    assert found["quantity"] == {"mean": 2.0, "min": 2, "median": 2.0, "max": 2, "empty": 0, "gini": 0.0, "cv": 0.0}


def test_feature_skew_of_unequal_clients_is_that_of_plain_loops():
    rng = np.random.default_rng(0)
    parts = [rng.normal(at, scale, (n, 3)) for at, scale, n in ((0, 1, 5), (1, 3, 9), (-2, 0.5, 2))]
    fed = Federation.from_clients([Data(x=torch.tensor(part)) for part in parts], client_test=0.0)
    found = heterogeneity(fed)["features"]
    pooled = np.concatenate(parts)
    centre, scale = pooled.mean(0), pooled.std(0)
    size = lambda v: np.sqrt(np.mean((v / scale) ** 2))  # noqa: E731
    means = [part.mean(0) for part in parts]
    assert found["shift"] == pytest.approx(np.mean([size(m - centre) for m in means]))
    assert found["pairwise"] == pytest.approx(np.mean([size(a - b) for a, b in combinations(means, 2)]))
    assert found["shift_iid"] == pytest.approx(np.mean([np.sqrt(1 / n - 1 / 16) for n in (5, 9, 2)]))
    own = [np.sqrt(part.var(0, ddof=1).sum()) for part in parts]
    assert found["spread"] == pytest.approx(np.mean([abs(np.log2(o / np.median(own))) for o in own]))
    shifts = [np.sqrt(np.mean([((m - centre) / scale)[k] ** 2 for m in means])) for k in range(3)]
    assert {e["input"]: e["shift"] for e in found["largest"]} == pytest.approx(dict(enumerate(shifts)))
    assert [e["shift"] for e in found["largest"]] == pytest.approx(sorted(shifts, reverse=True))


def test_inputs_that_never_vary_and_where_the_others_lie_are_no_skew():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(90, 2)))

    def found(level, constants):
        same = torch.tensor(constants).float().double().expand(90, -1)
        fed = Federation.from_offsets({"x": torch.cat([x + level, same], 1)}, [0, 17, 50, 90], client_test=0.0)
        features = heterogeneity(fed)["features"]
        return [features[name] for name in ("shift", "pairwise", "spread")]

    assert found(0, rng.normal(size=8)) == pytest.approx(found(0, np.zeros(8)))
    assert found(1e9, np.zeros(8)) == pytest.approx(found(0, np.zeros(8)), rel=1e-5)


def test_a_class_of_one_sample_is_a_class_held():
    fed = Federation.from_clients([Data(x=torch.zeros(len(y), 1), y=torch.tensor(y)) for y in ([0, 1, 1], [2])])
    assert heterogeneity(fed)["labels"]["classes_per_client"] == 1.5


def test_each_skew_shows_where_it_should():
    found = {
        spec: heterogeneity(federate("digits", 20, spec))
        for spec in ("iid", "dirichlet:0.1", "quantity:0.3", "noise:2/iid", "rotation:180/iid")
    }
    iid = found["iid"]
    assert iid["labels"]["jensen_shannon"] == pytest.approx(iid["labels"]["jensen_shannon_iid"], rel=0.25)
    assert iid["features"]["shift"] == pytest.approx(iid["features"]["shift_iid"], rel=0.1)
    assert found["dirichlet:0.1"]["labels"]["jensen_shannon"] > 0.4 > 5 * iid["labels"]["jensen_shannon"]
    assert found["quantity:0.3"]["quantity"]["gini"] > 0.5 > iid["quantity"]["gini"]
    assert found["noise:2/iid"]["features"]["spread"] > 5 * iid["features"]["spread"]
    assert found["rotation:180/iid"]["features"]["shift"] > 1.5 * iid["features"]["shift"]
    assert found["rotation:180/iid"]["labels"] == iid["labels"]


def test_a_million_clients_are_sampled():
    asked = []

    def make(id):
        asked.append(id)
        return torch.full((4, 2), float(id % 7)), torch.full((4,), id % 3)

    fed = Federation.generated(1_000_000, 4, make, classes=3)
    found = heterogeneity(fed, clients=30)
    assert found["clients"] == 1_000_000
    assert found["measured"] == 30
    assert len(set(asked)) <= 30
    assert heterogeneity(fed, clients=30) == found
    assert heterogeneity(fed, clients=30, seed=1) != found


def test_plain_numbers_that_travel_as_json():
    for name in ("digits", "diabetes", "synthetic"):
        found = heterogeneity(federate(name))
        assert json.loads(json.dumps(found)) == found
        assert all(
            np.isfinite(v)
            for part in ("quantity", "features")
            for v in found[part].values()
            if v != [] and not isinstance(v, list)
        )
    assert "labels" not in heterogeneity(federate("diabetes"))


def test_empty_clients_are_counted_and_nothing_is_an_error():
    fed = Federation.from_offsets({"x": torch.rand(6, 2)}, [0, 0, 3, 6, 6], empty=True)
    assert heterogeneity(fed)["quantity"]["empty"] == 2
    nothing = Federation.generated(3, 0, lambda i: torch.zeros(0, 2))
    with pytest.raises(DataError, match="none of the 3 clients"):
        heterogeneity(nothing)


@pytest.mark.parametrize("nothing", [{"clients": 0}, {"samples": 0}])
def test_looking_at_nothing_is_refused(nothing):
    with pytest.raises(ConfigError, match=r"1 or more clients and samples are looked at; given .*=0"):
        heterogeneity(Federation.from_arrays(torch.rand(8, 2), clients=2), **nothing)


def test_clients_of_different_shapes_have_no_feature_skew():
    fed = Federation.generated(3, 4, lambda i: (torch.rand(4, i + 1), torch.zeros(4, dtype=torch.int64)), classes=2)
    assert "features" not in heterogeneity(fed)
    assert heterogeneity(fed)["labels"]["jensen_shannon"] == 0.0


def test_positions_without_a_label_are_no_class():
    ignored = torch.full((20, 3), IGNORE)
    some = ignored.clone()
    some[:, 0] = torch.arange(20) % 2
    half = Federation.from_arrays(torch.rand(20, 3), some, 2)
    assert half.classes == 2
    assert heterogeneity(half)["labels"]["classes_per_client"] == 2
    none = Federation.from_arrays(torch.rand(20, 3), ignored, 2)
    assert none.classes is None
    assert "labels" not in heterogeneity(none)
