"""Metrics, outputs and one gradient over batches: the same as over everything at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from fedloom.data.fields import IGNORE, Data
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.model import Model
from fedloom.task import Accuracy, Classification, Metric, Regression, SquaredError
from fedloom.training.inference import evaluate, gradient, predict

N = 23


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Linear(4, 6))
    net.add_module("drop", nn.Dropout(0.5))
    net.add_module("head", nn.Linear(6, 3))
    return net.double()


@pytest.fixture
def model() -> Model:
    return Model(network(), Classification())


@pytest.fixture
def data() -> Data:
    rng = torch.Generator().manual_seed(1)
    return Data(x=torch.randn(N, 4, generator=rng, dtype=torch.float64), y=torch.randint(3, (N,), generator=rng))


def test_metrics_add_up_over_batches(model, data):
    w = model.initial()
    scores = network().eval()(data.x).detach()
    for size in (1024, 5, 1):
        (total,) = evaluate(model, w, data, batch_size=size)
        assert total.n == N
        assert total.hits == float((scores.argmax(1) == data.y).sum())
        assert total.loss == pytest.approx(float(nn.functional.cross_entropy(scores, data.y, reduction="sum")))


def test_metrics_are_in_evaluation_mode_whatever_the_model(model, data):
    w = model.initial()
    assert evaluate(model.train(), w, data) == evaluate(model, w, data)


def test_metrics_of_a_function(model, data):
    (total,) = evaluate(model, lambda x: torch.tensor([0.0, 0, 1]).expand(len(x), 3), data)
    assert total.hits == float((data.y == 2).sum())


def test_metrics_of_nothing(model, data):
    (total,) = evaluate(model, model.initial(), data.slice(0, 0))
    assert (total.n, total.hits, total.loss) == (0.0, 0.0, 0.0)


def pooled(metric: Metric, *batches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    counts = [metric.count(scores, Data(x=y, y=y)) for scores, y in batches]
    return metric.finish(Message({name: sum(c[name] for c in counts) for name in counts[0]}))


def test_errors_of_real_targets_are_pooled_over_batches_and_outputs():
    rng = np.random.default_rng(0)
    y, scores = rng.normal(3.0, 2.0, (7, 2)), rng.normal(3.0, 2.0, (7, 2))
    a, b = torch.from_numpy(scores), torch.from_numpy(y)
    found = pooled(SquaredError(), (a[:3], b[:3]), (a[3:], b[3:]))
    error = ((scores - y) ** 2).sum()
    assert found["rmse"] == pytest.approx(math.sqrt(error / 14))
    assert found["loss"] == pytest.approx(error / 14)
    assert found["r2"] == pytest.approx(1 - error / ((y - y.mean()) ** 2).sum())
    column = pooled(SquaredError(), (a[:, :1], b[:, 0]))
    assert column["rmse"] == pytest.approx(math.sqrt(((scores - y)[:, 0] ** 2).mean()))


def test_where_all_targets_are_alike_there_is_nothing_to_explain():
    alike = [torch.full((n,), 0.1, dtype=torch.float64) for n in range(1, 40)]
    assert {pooled(SquaredError(), (y + 1, y), (y + 1, y))["r2"] for y in alike} == {0.0}


def test_positions_that_are_not_asked_for_are_in_no_figure():
    scores = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [9.0, 0.0]], [[0.0, 1.0], [5.0, 0.0], [0.0, 5.0]]])
    y = torch.tensor([[0, 0, IGNORE], [1, IGNORE, IGNORE]])
    found = pooled(Accuracy(), (scores[:1], y[:1]), (scores[1:], y[1:]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(z)) for z in (-2.0, 3.0, -1.0)) / 3)


def test_a_loss_of_real_targets_is_the_mean_over_a_sample_s_outputs():
    task, two = Regression(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert task.losses(two, Data(x=two, y=torch.zeros(2, 2))).tolist() == [2.5, 12.5]
    assert task.losses(two[:, :1], Data(x=two, y=torch.tensor([1, 1]))).tolist() == [0.0, 4.0]


def test_outputs(model, data):
    w = model.initial()
    whole = network().eval()(data.x)
    assert torch.allclose(predict(model, w, data), whole)
    assert torch.allclose(predict(model, w, data, batch_size=4), whole)
    assert not predict(model, w, data).requires_grad
    assert torch.equal(predict(model, lambda x: x * 2, data, batch_size=4), data.x * 2)
    assert predict(model, w, data.slice(0, 0)).shape == (0, 3)


def test_outputs_of_a_function_of_the_model(model, data):
    def both(model, w, batch):
        return {"features": model[:"head"](w, batch.x), "rest": (model.losses(w, batch), batch.y)}

    w = model.initial()
    out = predict(model, w, data, both, batch_size=6)
    assert torch.allclose(out["features"], network().body(data.x))  # type: ignore[operator]
    assert torch.allclose(out["rest"][0], model.losses(w, data))
    assert torch.equal(out["rest"][1], data.y)


class Exits(NamedTuple):
    """The outputs of two exits."""

    first: torch.Tensor
    last: torch.Tensor


@pytest.mark.parametrize("batch_size", [6, 1024])
def test_outputs_keep_their_names(model, data, batch_size):
    out = predict(model, lambda x: Exits(x, 2 * x), data, batch_size=batch_size)
    assert isinstance(out, Exits)
    assert torch.equal(out.first, data.x)
    assert torch.equal(out.last, 2 * data.x)


def test_a_model_in_training_mode_stays_there(model, data):
    torch.manual_seed(0)
    a, b = predict(model.train(), model.initial(), data), predict(model.train(), model.initial(), data)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda model, w, batch: model(w, batch.x).sum(), "one row per sample"),
        (lambda model, w, batch: model(w, batch.x)[:2], "one row per sample"),
        (lambda model, w, batch: "scores", "given str"),
    ],
)
def test_outputs_without_rows_are_refused(model, data, fn, says):
    with pytest.raises(ConfigError, match=says):
        predict(model, model.initial(), data, fn)


def test_gradient_by_hand():
    """Linear regression: 2/n sum (x w + b - y) x."""
    x = torch.tensor([[1.0, 2], [0, 1], [3, -1], [2, 2], [-1, 0]], dtype=torch.float64)
    y = torch.tensor([1.0, -1, 2, 0, 3], dtype=torch.float64)
    net = nn.Linear(2, 1, dtype=torch.float64)
    model = Model(net, Regression())
    w = torch.tensor([0.5, -0.25, 1.0], dtype=torch.float64)
    e = 2 * (x @ w[:2] + w[2] - y) / 5
    by_hand = torch.cat([e @ x, e.sum().reshape(1)])
    for size in (1024, 2):
        torch.testing.assert_close(gradient(model, w, Data(x=x, y=y), batch_size=size), by_hand)


def test_gradient_is_in_training_mode_and_keyed(model, data):
    w = model.initial()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b, c = (gradient(model, w, data, key=(k,)) for k in (1, 2, 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_gradient_is_zero_for_statistics(data):
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    model = Model(net, Classification(), buffers="vector")
    w = model.initial()
    before = w.clone()
    g = gradient(model, w, data)
    t = model.layout.trainable
    assert bool((g[:t] != 0).any())
    assert torch.equal(g[t:], torch.zeros(8, dtype=torch.float64))
    assert torch.equal(w, before)
