"""The contract suite finds what it is for: methods broken in one way each, and the check that must say so."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

import fedloom as fl
from fedloom.errors import ConfigError
from fedloom.methods.optimisation.fedavg import FedAvg, FedAvgState
from fedloom.testing import ContractBroken, check_method, checks, example_of, names, tiny_federation
from fedloom.testing.compare import difference


def card(id: str, **changes) -> fl.Card:
    return replace(FedAvg.card, id=id, **changes)


@dataclass(frozen=True)
class GlobalDice(FedAvg):
    """Draws from torch's global generator."""

    card = card("global-dice")

    async def local(self, client, params):
        got = await super().local(client, params)
        return fl.Message(delta=got.delta + 1e-3 * torch.randn_like(params))


@dataclass(frozen=True)
class PythonDice(FedAvg):
    """Draws from Python's global generator at the server."""

    card = card("python-dice")

    def round(self, state, clients):
        state = super().round(state, clients)
        return replace(state, params=state.params * (1 - 1e-3 * random.random()))


@dataclass(frozen=True)
class Forgetful(FedAvg):
    """Keeps its momentum outside the state."""

    card = card("forgetful")

    def round(self, state, clients):
        new = super().round(state, clients)
        before = self.__dict__.get("momentum", torch.zeros_like(new.params))
        object.__setattr__(self, "momentum", 0.5 * before + new.params - state.params)
        return replace(new, params=state.params + self.momentum)


@dataclass(frozen=True)
class Overshoots(FedAvg):
    """Goes on the way it went, running statistics and all."""

    card = card("overshoots")

    def round(self, state, clients):
        new = super().round(state, clients)
        return replace(new, params=new.params + 0.5 * (new.params - state.params))


@dataclass(frozen=True)
class InPlace(FedAvg):
    """Changes its state's tensor."""

    card = card("in-place")

    def round(self, state, clients):
        state.params.mul_(0.99)
        return super().round(state, clients)


@dataclass(frozen=True)
class Leaky(FedAvg):
    """Sends a training sample along."""

    card = card("leaky", up=None, why_bytes="an image too")

    async def local(self, client, params):
        got = await super().local(client, params)
        return got.replace(prototype=client.data.x[0].flatten())


@dataclass(frozen=True)
class TellsAll(FedAvg):
    """Sends its whole memory."""

    card = card("tells-all", up=None, why_bytes="everything", needs=frozenset({"memory", "replies"}))

    async def local(self, client, params):
        got = await super().local(client, params)
        return got.replace(memory=dict(client.memory))

    def round(self, state, clients):
        got = clients.map(self.local, clients.sample(self.cohort), params=state.params)
        return replace(state, params=state.params + got.mean().delta) if got else state


@dataclass(frozen=True)
class Heavier(FedAvg):
    """Sends a number that is not on the card."""

    card = card("heavier")

    async def local(self, client, params):
        return (await super().local(client, params)).replace(loss=0.5)


@dataclass(frozen=True)
class Counting(FedAvg):
    """Depends on how many programs ran before."""

    card = card("counting")

    async def local(self, client, params):
        CALLS.append(client.id)
        got = await super().local(client, params)
        return fl.Message(delta=got.delta * (1 + 1e-3 * len(CALLS)))


CALLS: list[int] = []


@dataclass(frozen=True)
class Lazy(FedAvg):
    """Changes nothing."""

    card = card("lazy")

    def round(self, state, clients):
        super().round(state, clients)
        return state


@dataclass(frozen=True)
class StartsAnew(FedAvg):
    """Forgets the run it should continue."""

    card = card("starts-anew")

    def start(self, clients, before=None):
        return FedAvgState(params=clients.model.initial())


@dataclass(frozen=True)
class NeedsSomebody(FedAvg):
    """Does not think of an empty cohort."""

    card = card("needs-somebody")

    def round(self, state, clients):
        got = clients.mean(self.local, clients.sample(self.cohort), params=state.params)
        return replace(state, params=state.params + got.delta)


@dataclass(frozen=True)
class SeedBlind(FedAvg):
    """The same cohort, order and start whatever the seed."""

    card = card("seed-blind")

    def start(self, clients, before=None):
        return FedAvgState(params=torch.linspace(-0.1, 0.1, clients.model.layout.size, dtype=torch.float64))

    async def local(self, client, params):
        return fl.Message(delta=-0.1 * await client.gradient(params))

    def round(self, state, clients):
        got = clients.mean(self.local, params=state.params)
        return replace(state, params=state.params + got.delta) if got.count else state


@dataclass(frozen=True)
class WrongReduction(FedAvg):
    """Says that it is FedAvg, and takes half steps.

    Args:
        scale: of steps.
    """

    card = card("wrong-reduction", reduces=(("scale=1", "fedavg"),))
    scale: float = 1.0

    def round(self, state, clients):
        new = super().round(state, clients)
        return replace(new, params=(new.params + state.params) / 2)


@dataclass(frozen=True)
class ReadsReplies(FedAvg):
    """Reads single replies, and does not say so."""

    card = card("reads-replies")

    def round(self, state, clients):
        got = clients.map(self.local, clients.sample(self.cohort), params=state.params)
        return replace(state, params=state.params + got.mean().delta) if got else state


@dataclass(frozen=True)
class Remembers(FedAvg):
    """Keeps something, and does not say so."""

    card = card("remembers-quietly")

    async def local(self, client, params):
        client.memory["last"] = params
        return await super().local(client, params)


@dataclass(frozen=True)
class ReadsOthers(FedAvg):
    """Learns from the samples of its neighbour."""

    card = card("reads-others")

    async def local(self, client, params):
        others = client.federation.local((client.id + 1) % len(client.federation))
        return fl.Message(delta=-0.1 * await client.gradient(params, others))


@dataclass(frozen=True)
class LearnsTheTest(FedAvg):
    """Learns from the samples it is judged on."""

    card = card("learns-the-test")

    async def local(self, client, params):
        data = client.data.test if len(client.data.test) else client.data
        return fl.Message(delta=-0.1 * await client.gradient(params, data))


@dataclass(frozen=True)
class ChoosesByTheTest(FedAvg):
    """Keeps the better of two models, by the test set."""

    card = card("chooses-by-the-test")

    def round(self, state, clients):
        new = super().round(state, clients)
        loss, before = (clients.evaluate(s.params)["loss"] for s in (new, state))
        return new if loss < before else replace(new, params=(new.params + state.params) / 2)


@dataclass(frozen=True)
class EndsInNaN(FedAvg):
    """Divides by zero in its last round."""

    card = card("ends-in-nan")

    async def local(self, client, params):
        got = await super().local(client, params)
        return fl.Message(delta=got.delta / (2 - client.round))


@dataclass(frozen=True)
class CountedState(fl.State):
    """params: the model; times: how often each client was asked."""

    params: torch.Tensor
    times: dict[int, int]


@dataclass(frozen=True)
class CountsInPlace(FedAvg):
    """Changes a dict of its state."""

    card = card("counts-in-place")

    def start(self, clients, before=None):
        return before or CountedState(clients.model.initial(), {})

    def round(self, state, clients):
        for i in (cohort := clients.sample(self.cohort)):
            state.times[i] = state.times.get(i, 0) + 1
        got = clients.mean(self.local, cohort, params=state.params)
        return replace(state, params=state.params + got.delta) if got.count else state


@dataclass(frozen=True)
class RefusesItself(FedAvg):
    """Goes on from no run at all."""

    card = card("refuses-itself")

    def start(self, clients, before=None):
        if before:
            raise ConfigError("RefusesItself cannot start from an earlier run. Leave before out")
        return super().start(clients)


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (GlobalDice, "keyed-randomness"),
        (GlobalDice, "debug"),
        (PythonDice, "keyed-randomness"),
        (Forgetful, "resume"),
        (Forgetful, "attributes-stay"),
        (Overshoots, "statistics"),
        (InPlace, "runs"),
        (Leaky, "raw-data-stays"),
        (TellsAll, "memory-stays"),
        (Heavier, "bytes-as-on-the-card"),
        (Counting, "seed"),
        (Counting, "debug"),
        (Lazy, "runs"),
        (StartsAnew, "continues"),
        (RefusesItself, "continues"),
        (ReadsOthers, "others-data-stay"),
        (LearnsTheTest, "evaluation-data-stay-out"),
        (ChoosesByTheTest, "evaluation-data-stay-out"),
        (EndsInNaN, "runs"),
        (CountsInPlace, "states-stay"),
        (NeedsSomebody, "nobody"),
        (SeedBlind, "seed"),
        (WrongReduction, "reductions"),
        (ReadsReplies, "needs"),
        (Remembers, "needs"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_broken_method_is_found(method, check):
    one = next(c for c in checks(method) if c.name == check)
    with pytest.raises(fl.FedloomError):
        one()


def test_check_method_lists_every_broken_promise():
    with pytest.raises(ContractBroken, match="bytes-as-on-the-card") as caught:
        check_method(Heavier)
    assert "raw-data-stays" not in str(caught.value)


def test_an_object_is_asked_with_its_own_settings():
    method = example_of(fl.PruneFL(cohort=3, every=7)).method
    assert (method.cohort, method.every) == (3, 7)
    assert example_of(fl.PruneFL).method.every == 2


def test_expected_failures_must_fail():
    reason = {"bytes-as-on-the-card": "sends a number more"}
    assert "bytes-as-on-the-card" not in check_method(Heavier, expected=reason)
    with pytest.raises(ContractBroken, match="expected to fail"):
        check_method(FedAvg, expected={"resume": "no reason"})


def test_every_check_says_what_it_promises():
    assert len(names()) == len(set(names())) >= 20
    assert all(c.doc.endswith((".", "`.")) for c in checks(FedAvg))


def test_difference_names_the_place():
    a = {"x": [1.0, torch.tensor([1.0, 2.0])]}
    b = {"x": [1.0, torch.tensor([1.0, 2.5])]}
    assert difference(a, a) == ""
    assert difference(a, b, at="run").startswith("run['x'][1]: differs by")
    assert difference(a, b, tolerance=0.2) == ""
    assert difference({"a": 1}, {"b": 1}) != ""
    assert difference(float("nan"), float("nan")) == ""
    assert difference(torch.tensor([float("nan")]), torch.tensor([0.0]), 1.0) != ""


def test_tiny_federation_is_uneven():
    federation = tiny_federation()
    sizes = [federation.size(i) for i in federation.ids]
    assert 1 in sizes
    assert len(set(sizes)) == len(sizes)
    assert federation.public is None
    assert tiny_federation(needs={"public"}).public is not None
