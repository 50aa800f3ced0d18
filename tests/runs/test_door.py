"""What a run refuses before any work: each mistake in the words of the person who made it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedloom as fl
from fedloom.errors import ConfigError, FedloomError
from fedloom.runs.experiment import Experiment
from fedloom.task import Accuracy

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.a(x) + self.b(z)


class Both(fl.Classification):
    def inputs(self, batch: fl.Data) -> tuple[Tensor, ...]:
        return batch.x, batch.z


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def linear() -> nn.Module:
    return nn.Linear(8, 3)


def federation(x: Any = X, y: Any = Y, **fields: Any) -> fl.Federation:
    return fl.Federation.from_data({"x": x, "y": y, **fields}, clients=4)


class Numbers(nn.Module):
    """Takes samples that are one number each."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, None])


async def silent(client: fl.Client, honest: Any, **payload: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": fl.FedAvg}, "the class FedAvg"),
        ({"method": "fedavg"}, "fl.FedAvg(cohort=10)"),
        ({"task": linear()}, "fl.Classification(model=MyNet)"),
        ({"federation": (X, Y)}, "Federation.from_arrays"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"evaluate_every": -1}, "evaluate_every=-1"),
        ({"device": "gpu"}, "'gpu' is not a device"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "float64"}, "torch.float64"),
        ({"dtype": torch.int64}, "torch.float64"),
        ({"out": 5}, "a folder"),
        ({"behave": [silent]}, "a dict"),
        ({"behave": {0: "flip"}}, "'flip'"),
        ({"behave": {99: silent}}, "clients 0..3"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused(options: dict[str, Any], said: str):
    given: dict[str, Any] = {"method": fl.FedAvg(), "task": fl.Classification(model=linear), **options}
    with pytest.raises(ConfigError) as raised:
        Experiment(given.pop("method"), given.pop("task"), given.pop("federation", federation()), **given)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("round", "Did you mean 'rounds'"),
        ("epochs", r"It is the solver's: fl.FedAvg\(solver=fl.SGD\(epochs=...\)\)"),
        ("cohort", r"It is the method's: fl.FedAvg\(cohort=...\)"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_or_where_it_belongs(name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        fl.run(fl.FedAvg(), fl.Classification(model=linear), federation(), **{name: 3})


def test_a_network_that_takes_the_softmax_of_the_loss_itself_is_warned_of():
    task = fl.Classification(model=lambda: nn.Sequential(nn.Linear(8, 3), nn.Softmax(-1)))
    with pytest.warns(fl.FedloomWarning, match="leave the one of the network out"):
        Experiment(fl.FedAvg(), task, federation()).plan()
    logs = fl.Classification(model=lambda: nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(-1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Experiment(fl.FedAvg(), logs, federation()).plan()


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        (fl.Classification(model=lambda: nn.Linear(9, 3)), federation(), "float32 (2, 8)"),
        (fl.Classification(model=lambda: nn.LazyLinear(3)), federation(), "nn.Linear(20, 5), not nn.LazyLinear(5)"),
        (fl.Classification(model=lambda: nn.Linear(8, 2)), federation(), "it needs 3 of them"),
        (fl.Classification(model=linear), federation(y=Y + 1), "labels that begin at 0: y - 1"),
        (fl.Classification(model=linear), federation(x=(X * 10).long()), "for measurements give floats"),
        (fl.Classification(model=linear), federation(x=X.double()), "dtype=torch.float64"),
        (fl.Classification(model=linear), federation(y=nn.functional.one_hot(Y)), "give y.argmax(1)"),
        (fl.Classification(model=TwoInputs), federation(z=X[:, :4]), "a subclass that returns them all"),
        (Both(model=linear), federation(z=X[:, :4]), "float32 (2, 8), float32 (2, 4)"),
        (fl.Classification(model=Pair(8, 3)), federation(), "gives, tuple"),
        (fl.Regression(model=lambda: nn.Linear(8, 3)), federation(y=X[:, :2]), "own losses"),
        (fl.Classification(model=lambda: nn.Conv2d(1, 3, 1)), federation(x=X.view(-1, 2, 4)), "x[:, None]"),
        (fl.Classification(model=lambda: nn.Conv2d(1, 3, 1)), federation(x=X.view(-1, 2, 4, 1)), "x.permute"),
        (
            fl.Classification(model=linear),
            fl.Federation.from_data({"image": X, "y": Y}, clients=4),
            "needs the field 'x'; this data has image, y",
        ),
        (fl.Classification(model=nn.Linear), federation(), "model=lambda: MyNet(10)"),
        (fl.Classification(model=lambda: 3), federation(), "gave 3"),
        (fl.Classification(model=lambda: nn.Linear(8, "3")), federation(), "cannot be made: TypeError"),  # type: ignore[arg-type]
        (fl.Classification(model=5), federation(), "given 5"),  # type: ignore[arg-type]
        (fl.Classification(model={}), federation(), "no network"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_the_first_round(
    task: fl.Task, data: fl.Federation, said: str
):
    with pytest.raises(FedloomError) as raised:
        Experiment(fl.FedAvg(), task, data).plan()
    assert said in str(raised.value)


def test_samples_and_weights_of_one_precision_go_together():
    task = fl.Classification(model=linear)
    run = fl.run(fl.FedAvg(), task, federation(x=X.double()), rounds=1, dtype=torch.float64)
    assert run.params is not None
    assert run.params.dtype is torch.float64


@pytest.mark.parametrize("metric", ["f1", Accuracy, Accuracy().count])
def test_what_is_no_metric_is_refused(metric: Any):
    with pytest.raises(ConfigError, match=r"metrics=\(Accuracy\(\),\) with `from fedloom.task import Accuracy`; given"):
        fl.run(fl.FedAvg(), fl.Classification(linear, metrics=(Accuracy(), metric)), federation(), rounds=1)


def test_a_task_without_a_loss_says_which_has_one():
    with pytest.raises(FedloomError, match=r"Task has no loss. Use fl.Classification, .*losses\(scores, batch\)"):
        fl.run(fl.FedAvg(), fl.Task(linear), federation(), rounds=1)


@pytest.mark.parametrize("model", [Numbers, f"{__name__}:Numbers", f"{__name__}:Numbers:width=5"])
def test_samples_may_be_single_numbers_for_a_network_of_ones_own(model: Any):
    assert fl.run(fl.FedAvg(), fl.Classification(model), federation(X[:, 0]), rounds=1).params is not None


def test_samples_that_are_single_numbers_are_refused_by_networks_over_features():
    with pytest.raises(ConfigError, match=r"Numbers are given as x\[:, None\]"):
        fl.run(fl.FedAvg(), fl.Classification("mlp"), federation(X[:, 0]), rounds=1)


def test_two_inputs_are_a_task_that_returns_both():
    run = fl.run(fl.FedAvg(), Both(model=TwoInputs), federation(z=X[:, :4]), rounds=1)
    assert run.summary["excluded"] == 0


def test_the_trial_leaves_no_trace_and_needs_no_full_first_client():
    data = fl.Federation.from_clients([(X[:0], Y[:0]), (X[:1], Y[:1]), (X, Y)], empty=True)
    norm = fl.Classification(model=lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), buffers="batch")
    before = torch.get_rng_state()
    for task in (fl.Classification(model="mlp"), norm):
        Experiment(fl.FedAvg(), task, data).plan()
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_that_cannot_be_or_is_taken_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    task = fl.Classification(model=linear)
    with pytest.raises(ConfigError, match="cannot make the folder"):
        fl.run(fl.FedAvg(), task, federation(), rounds=1, out=tmp_path / "file" / "run")
    fl.run(fl.FedAvg(), task, federation(), rounds=1, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run\(resume=True\)"):
        fl.run(fl.FedAvg(), task, federation(), rounds=1, out=tmp_path / "run")


def test_a_finished_run_resumed_remembers_what_was_chosen(tmp_path: Path):
    experiment = Experiment(fl.FedAvg(), fl.Classification(model=linear), federation(), rounds=1, out=tmp_path)
    chosen = experiment.run().summary["choices"]
    assert chosen
    assert experiment.run(resume=True).summary["choices"] == chosen


def test_clients_without_samples_sit_out_on_request():
    data = fl.Federation.from_clients([(X[:0], Y[:0]), (X, Y)], empty=True)
    with pytest.raises(FedloomError, match="on_failure='exclude'"):
        fl.run(fl.FedAvg(), fl.Classification(model=linear), data, rounds=1)
    run = fl.run(fl.FedAvg(), fl.Classification(model=linear), data, rounds=1, on_failure="exclude")
    assert run.summary["excluded"] == 1


@dataclass(frozen=True)
class Forgetful(fl.FedAvg):
    def round(self, state: Any, clients: fl.Clients) -> Any:
        super().round(state, clients)


def test_a_round_that_returns_nothing_is_an_error():
    with pytest.raises(FedloomError, match="returns the new state"):
        fl.run(Forgetful(), fl.Classification(model=linear), federation(), rounds=1)


BEFORE = {
    "no such field": (
        fl.Mifa,
        "Mifa cannot start from the FedAvgState of an earlier run: FedAvgState has no 'updates'",
    ),
    "no method inside": (fl.Selected, "FedAvgState has no 'inner'"),
    "taken whole": (
        fl.FedLD,
        "FedLD cannot start from the FedAvgState of an earlier run: it goes on with a FedLDState",
    ),
    "kept at clients": (fl.DPSGD, "DPSGD cannot start from an earlier run: what it learns lies at its clients"),
}


@pytest.mark.parametrize(("method", "said"), BEFORE.values(), ids=list(BEFORE))
def test_a_run_that_a_method_cannot_start_from_is_refused(method: Any, said: str):
    first = fl.run(fl.FedAvg(), fl.Classification(model=linear), federation(), rounds=1)
    with pytest.raises(ConfigError, match=said):
        fl.run(method(), fl.Classification(model=linear), federation(), rounds=1, before=first)


def test_a_method_may_start_from_the_model_of_another():
    first = fl.run(fl.FedAvg(), fl.Classification(model=linear), federation(), rounds=1)
    same = fl.run(fl.Scaffold(), fl.Classification(model=linear), federation(), rounds=0, before=first)
    assert torch.equal(same.state.params, first.state.params)


def test_what_is_wrong_inside_start_is_not_taken_for_the_earlier_run():
    @dataclass(frozen=True)
    class Broken(fl.FedAvg):
        def start(self, clients: fl.Clients, before: Any = None) -> Any:
            return clients.modle

    first = fl.run(fl.FedAvg(), fl.Classification(model=linear), federation(), rounds=1)
    with pytest.raises(AttributeError, match="modle"):
        fl.run(Broken(), fl.Classification(model=linear), federation(), rounds=1, before=first)


FAMILY = {"narrow": "mlp:6,6", "wide": "mlp:6,5"}
OTHERWISE = {
    "another network": (fl.FedAvg(), fl.FedAvg(), "mlp:7", r"its params is \(\d+,\), and this run's \(\d+,\)"),
    "another network inside": (fl.Oort(), fl.Oort(), "mlp:7", r"its inner.params is \(\d+,\)"),
    "other bitwidths": (fl.ProWD(bits=(32, 8)), fl.ProWD(bits=(32, 4)), "mlp:6", r"its lift holds \[8\].* also 4"),
    "another dequantiser": (fl.ProWD(), fl.ProWD(window=3), "mlp:6", r"its lift\[8\] is \(3, 2, 8, 5\)"),
    "other sizes": (fl.FedConv(rates=(1, 0.5)), fl.FedConv(rates=(1, 0.25)), "mlp:6", "its shrink holds .* also 0.25"),
    "another strategy": (fl.FlexiFed(strategy="max"), fl.FlexiFed(strategy="basic"), FAMILY, "its table is"),
    "another union": (fl.FedADP(), fl.FedADP(), {**FAMILY, "wide": "mlp:6,9"}, "its union is"),
    "other personal layers": (fl.FedPer(), fl.FedPer(personal=()), "mlp:6", "its shared is"),
}


@pytest.mark.parametrize(("method", "next_method", "model", "said"), OTHERWISE.values(), ids=list(OTHERWISE))
def test_a_run_with_another_network_or_other_settings_is_refused(
    method: fl.Method, next_method: fl.Method, model: Any, said: str
):
    data = fl.Federation.from_clients([(X, Y)] * 2, classes=3, validation=fl.Data(x=X, y=Y))
    network = FAMILY if isinstance(model, dict) else "mlp:6"
    first = fl.run(method, fl.Classification(model=network), data, rounds=0)
    with pytest.raises(ConfigError, match=rf"cannot start from the \w+ of an earlier run: {said}"):
        fl.run(next_method, fl.Classification(model=model), data, rounds=1, before=first)


def test_a_run_of_another_type_of_numbers_is_refused():
    """It went on in that type, which samples of this run's did not fit."""
    task, wide = fl.Classification(model="mlp:6"), fl.Federation.from_clients([(X.double(), Y)] * 2, classes=3)
    first = fl.run(fl.FedAvg(), task, wide, rounds=0, dtype=torch.float64)
    with pytest.raises(
        ConfigError, match=r"its params is torch.float64, and this run's torch.float32. Give .* the dtype"
    ):
        fl.run(fl.FedAvg(), task, fl.Federation.from_clients([(X, Y)] * 2, classes=3), rounds=1, before=first)


def test_a_run_that_starts_from_another_draws_what_it_would_draw_afresh():
    @dataclass(frozen=True)
    class Noisy(fl.FedAvg):
        def start(self, clients: fl.Clients, before: Any = None) -> Any:
            return type(super().start(clients))(torch.randn(4, generator=clients.rng("noise")))

    run = [fl.run(Noisy(), fl.Classification(model=linear), federation(), rounds=0)]
    run.append(fl.run(Noisy(), fl.Classification(model=linear), federation(), rounds=0, before=run[0]))
    assert torch.equal(run[0].state.params, run[1].state.params)
