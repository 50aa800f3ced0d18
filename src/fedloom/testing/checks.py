"""The contract, as small named checks. Each takes a `Trial` and raises `ContractBroken` with what it saw.

A check is asked of every method whose card it is `when` for; there are no special cases by name.
"""

from __future__ import annotations

import inspect
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.channel.stage import Stage
from fedloom.client import Client
from fedloom.engines.base import Engine, Job, Outcome
from fedloom.engines.fold import Fold, Total
from fedloom.errors import ClientFailure, Declined, FedloomError, NotSupported
from fedloom.message import At, Message, dumps, leaves, mapped, nbytes
from fedloom.method import Method, catalogue
from fedloom.runs import Run
from fedloom.runs.options import configure, written
from fedloom.runs.recipe import pairs
from fedloom.timing.world import World

from .compare import difference, outcome
from .tiny import SIZES
from .trial import Spy, Trial

_SHARED = {"cohort", "solver", "server_lr"}  # mean the same everywhere

LONGEST = 170
"""Lines of a method's file that a reader can hold in the head."""


class ContractBroken(FedloomError, AssertionError):
    """A method does not keep the contract; says which promise, and what was seen."""


@dataclass(frozen=True, eq=False)
class Check:
    """One check of one method; call it. `id` is `fedavg-resume`."""

    name: str
    trial: Trial
    body: Callable[[Trial], None]

    @property
    def id(self) -> str:
        return f"{self.trial.cls.card.id}-{self.name}"

    @property
    def doc(self) -> str:
        """What is promised, in one sentence."""
        return (inspect.getdoc(self.body) or "").partition("\n\n")[0].replace("\n", " ")

    def __call__(self) -> None:
        self.body(self.trial)

    def __repr__(self) -> str:
        return self.id


_CHECKS: dict[str, tuple[Callable[[Trial], None], Callable[[Card], bool]]] = {}


def check(when: Callable[[Card], bool] = lambda card: True):
    """Enter a function in the suite under its name, with dashes; asked of methods whose card `when` accepts."""

    def enter(body: Callable[[Trial], None]) -> Callable[[Trial], None]:
        _CHECKS[body.__name__.replace("_", "-")] = (body, when)
        return body

    return enter


def checks(method: Method | type[Method], **overrides: Any) -> Iterator[Check]:
    """Every check of a method's card, in order; `overrides` replace hyperparameters of its example."""
    trial = Trial(method, **overrides)
    for name, (body, when) in _CHECKS.items():
        if when(trial.cls.card):
            yield Check(name, trial, body)


def names() -> list[str]:
    """All checks there are."""
    return list(_CHECKS)


def require(fine: object, text: str) -> None:
    if not fine:
        raise ContractBroken(text)


def equal(a: Any, b: Any, what: str, tolerance: float = 0.0) -> None:
    found = difference(a, b, tolerance, what)
    require(not found, found)


def lasting(run: Run) -> dict[str, Any]:
    """What the next round builds on."""
    return {"state": run.state, "memories": run.memories}


def finite(value: Any) -> bool:
    return all(
        bool(torch.isfinite(v).all()) if isinstance(v, Tensor) else not isinstance(v, float) or math.isfinite(v)
        for v in leaves(value)
    )


# ---------------------------------------------------------------- what a reader sees


@check()
def card(trial: Trial) -> None:
    """Registered, a complete card, a docstring, hyperparameters that are documented, a file one can read."""
    cls, c = trial.cls, trial.cls.card
    for name in ("title", "paper", "authors", "venue", "family", "summary", "claim"):
        require(getattr(c, name).strip(), f"the card of {c.id} lacks {name!r}")
    require(1950 < c.year < 2100, f"year {c.year}")
    own = cls.__doc__ or ""
    require(own and not own.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring")
    doc = "".join(base.__doc__ or "" for base in cls.__mro__ if base is not object)
    for f in getattr(cls, "__dataclass_fields__", {}):
        require(f in _SHARED or f in doc, f"{cls.__name__}'s docstring does not explain the hyperparameter {f!r}")
    if cls.__module__.startswith("fedloom.methods."):
        require(catalogue().get(c.id) is cls, f"{c.id} is not in the catalogue")
        path = Path(inspect.getsourcefile(cls) or "")
        require(path.parent.name == c.family, f"family {c.family!r}, but the file lies in {path.parent.name!r}")
        module = inspect.getmodule(cls)
        require(module is not None and module.__doc__, f"{path.name} does not begin with what the method is")
        lines = len(path.read_text().splitlines())
        require(lines <= LONGEST, f"{path.name} has {lines} lines, more than {LONGEST}")


@check()
def hyperparameters(trial: Trial) -> None:
    """As text and through pickle, hyperparameters come back equal."""
    m = trial.method
    equal(configure(type(m), written(m)), m, "hyperparameters read back from text")
    equal(pickle.loads(pickle.dumps(m)), m, "hyperparameters through pickle")


# ---------------------------------------------------------------- it runs


@check()
def runs(trial: Trial) -> None:
    """A few rounds change something, and all of it is finite."""
    begun, ended = trial.run(rounds=0), trial.reference
    if begun.state is None:
        begun.host.start()
    require(difference(lasting(begun), lasting(ended)), "after all rounds neither state nor memories had changed")
    require(finite(lasting(ended)), "the state or a memory holds NaN or infinity")


@check()
def evaluation(trial: Trial) -> None:
    """Every view has finite figures; every client can be sent `down` and answer; judging leaves no trace."""
    run = trial.reference
    method, host = run.plan.method, run.host
    before = outcome(run)
    kept = dumps({k: before[k] for k in ("state", "memories", "books", "ledger")})
    views = method.evaluate(host.state, host.clients)
    require(views, "evaluate gave no view of the result")
    for view, figures in views.items():
        require(dict(figures), f"view {view!r} is empty")
        for name, value in figures.items():
            require(math.isfinite(value), f"{view}.{name} is {value}")
    each = {i: method.down(host.state, i) for i in host.clients.ids}
    if type(method).personalise is not Method.personalise or all("params" in d for d in each.values()):
        personal = host.clients.evaluate(method.personalise, list(each), each=each)
        require(personal.clients, "no client could answer by personalise")
        require(finite({i: dict(m) for i, m in personal.clients.items()}), "a client's own figures are not finite")
    after = dumps({k: v for k, v in outcome(run).items() if k in ("state", "memories", "books", "ledger")})
    require(kept == after, "judging changed the state, a memory, a book or the byte count")


@check()
def attributes_stay(trial: Trial) -> None:
    """A method keeps nothing on itself: the object is after a run what it was before."""
    m = trial.method
    before = pickle.dumps(m)
    names = set(vars(m))
    trial.run()
    require(set(vars(m)) == names and pickle.dumps(m) == before, "the run changed attributes of the method")


# ---------------------------------------------------------------- any engine, any order, any moment


def _engine(name: str) -> Callable[[Trial], None]:
    def body(trial: Trial) -> None:
        run = trial.run(engine=name, workers=2 if name == "pool" else None)
        tolerance = trial.example.stacked_tolerance
        for part in ("state", "memories", "books", "ledger", "now"):
            found = difference(outcome(run)[part], outcome(trial.reference)[part], tolerance, part)
            require(not found, f"{name} and sequential: {found}")

    body.__name__ = name
    body.__doc__ = f"The {name} engine gives the sequential engine's run to 1e-9 in float64."
    return body


for _name in ("stacked", "pool", "debug"):
    check()(_engine(_name))


@check()
def float32(trial: Trial) -> None:
    """In float32, stacked and sequential agree to 1e-5 after one round."""
    a, b = (trial.run(engine=e, dtype=torch.float32, rounds=1) for e in ("stacked", "sequential"))
    equal(lasting(a), lasting(b), "stacked and sequential in float32", 1e-5)


class _Backwards:
    """An engine that runs the jobs it is given last to first."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    def run(self, jobs: list[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        outcomes, total = self._inner.run(list(reversed(jobs)), fold)
        return list(reversed(outcomes)), total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@check()
def order(trial: Trial) -> None:
    """The order in which an engine runs clients does not matter."""
    run = Run(trial.experiment())
    run.host.engine = _Backwards(run.host.engine)  # type: ignore[assignment]
    run.go()
    equal(lasting(run), lasting(trial.reference), "clients run last to first", trial.example.stacked_tolerance)


@check()
def seed(trial: Trial) -> None:
    """The same seed gives the same run bit for bit, another seed another one."""
    equal(lasting(trial.run()), lasting(trial.reference), "two runs of one seed")
    other = trial.run(seed=1)
    require(difference(lasting(other), lasting(trial.reference)), "seeds 0 and 1 gave the same result")


@check()
def keyed_randomness(trial: Trial) -> None:
    """Draws are keyed: global random states neither matter nor move."""
    before = _global_states()
    try:
        torch.manual_seed(11)
        random.seed(11)
        np.random.seed(11)
        seeded = _global_states()
        run = trial.run()
        moved = [name for name, state in _global_states().items() if difference(state, seeded[name])]
    finally:
        torch.set_rng_state(before["torch"])
        random.setstate(before["random"])
        np.random.set_state(before["numpy"])
    equal(lasting(run), lasting(trial.reference), "a run under other global seeds")
    require(not moved, f"the run drew from global randomness of {', '.join(moved)}; use client.rng or clients.rng")


def _global_states() -> dict[str, Any]:
    numpy: Any = np.random.get_state()
    plain = tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in numpy)
    return {"torch": torch.get_rng_state(), "random": random.getstate(), "numpy": plain}


@check()
def resume(trial: Trial) -> None:
    """Killed in any round and resumed, a run ends bit for bit as if it had not been."""
    for r in range(1, trial.example.rounds + 1):
        equal(outcome(trial.killed_after(r)), outcome(trial.reference), f"killed in round {r} and resumed")


# ---------------------------------------------------------------- what travels


@check()
def bytes_as_on_the_card(trial: Trial) -> None:
    """Bytes per client and exchange (or per client and round) are the card's; something travels where it says None."""
    spy = Spy()
    run = trial.run(dtype=torch.float32, behave=dict.fromkeys(range(len(SIZES)), spy))
    host, c = run.host, run.plan.method.card
    sizes = {"d": run.plan.model.layout.size, **run.plan.method.sizes(host.clients)}
    per_round = len({(h.client, h.round) for h in spy.heard})
    arrived = sum(row["replies"] for row in run.rows)
    for way, measured, exchanges in (("down", host.ledger.down, host.posted), ("up", host.ledger.up, arrived)):
        promised = c.bytes(way, sizes)  # type: ignore[arg-type]
        if promised is None:
            require(measured + host.ledger.peers > 0, f"nothing travels {way}, where the card leaves it to the data")
            continue
        fits = measured == promised * exchanges or (not trial.clocked and measured == promised * per_round)
        require(
            fits,
            f"{way}: the card says {getattr(c, way)} = {promised} bytes a client; measured {measured} in "
            f"{exchanges} exchanges ({measured / max(exchanges, 1):.1f} each), {per_round} client-rounds; {sizes}",
        )
    if (promised := c.bytes("up", sizes)) is not None:
        for h in spy.heard:
            size = 0 if h.reply is None else nbytes(h.reply)
            require(size <= promised, f"client {h.client} sent {size} bytes at once, the card says {promised}")


@check()
def raw_data_stays(trial: Trial) -> None:
    """No row of raw inputs is in any payload, reply or state."""
    run = trial.reference
    marks = {i: list(_marks(run.plan.federation.local(i))) for i in range(len(SIZES))}
    places = [
        *((f"the payload for client {h.client}", h.payload) for h in trial.spy.heard),
        *((f"the reply of client {h.client}", h.reply) for h in trial.spy.heard if h.reply is not None),
        ("the state", run.state),
    ]
    for where, value in places:
        for leaf in leaves(_opened(value)):
            if isinstance(leaf, Tensor):
                for i, found in marks.items():
                    require(not any(_holds(leaf, mark) for mark in found), f"{where} holds raw inputs of client {i}")


def _marks(data: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Numbers that give away one sample: three unusual ones of a real field, a run of eight of a whole one."""
    for name, field in data.items():
        if name == "y" or not len(field):
            continue
        row = field[0].flatten()
        if row.is_floating_point():
            unusual = row[(row.abs() > 1e-3) & (row != row.round())]
            if len(unusual) >= 3:
                yield unusual[:: max(1, len(unusual) // 3)][:3]
        elif len(row) >= 8 and len(row[:8].unique()) > 2:
            yield row[:8]


def _holds(leaf: Tensor, mark: Tensor) -> bool:
    flat = leaf.detach().flatten()
    if len(flat) < len(mark) or flat.is_floating_point() != mark.is_floating_point():
        return False
    if mark.is_floating_point():
        return all(bool(((flat.double() - m).abs() < 1e-10).any()) for m in mark.double())
    return bool((flat.unfold(0, len(mark), 1) == mark.to(flat.dtype)).all(1).any())


def _opened(value: Any) -> Any:
    """Compressed entries made dense."""
    if not isinstance(value, Message):
        return value
    return mapped(value, lambda v: v.dense() if hasattr(v, "dense") and not isinstance(v, At) else v)


@check()
def memory_stays(trial: Trial) -> None:
    """What a client remembers is never seen by another, nor sent as a whole."""
    troubles: list[str] = []

    def secret(id: int) -> Tensor:
        return torch.tensor([math.pi + id, math.e - id], dtype=torch.float64)

    async def remembers(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
        held = client.memory.get("testing.secret", secret(client.id))
        if not torch.equal(held, secret(client.id)):
            troubles.append(f"client {client.id} found another client's memory")
        client.memory["testing.secret"] = secret(client.id)
        reply = await honest(client, **payload)
        for where, value in (("payload", payload), ("reply", reply)):
            tensors = [t for t in leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]
            if any(_holds(t, secret(i)) for t in tensors for i in range(len(SIZES))):
                troubles.append(f"a client's whole memory is in the {where} of client {client.id}")
        return reply

    run = trial.run(behave=dict.fromkeys(range(len(SIZES)), remembers))
    for i, memory in run.memories.items():
        equal(memory.get("testing.secret", secret(i)), secret(i), f"the memory of client {i}")
    require(not troubles, "; ".join(dict.fromkeys(troubles)))


@dataclass(frozen=True)
class _Watches(Stage):
    """Changes nothing."""

    name = "watches"


@dataclass(frozen=True)
class _HidesReplies(Stage):
    """Lets the server see sums alone, and changes nothing."""

    name = "hides-replies"
    sums_only = True


@check()
def channel(trial: Trial) -> None:
    """A channel stage that changes nothing changes nothing."""
    equal(lasting(trial.run(channel=_Watches())), lasting(trial.reference), "with an observer in the channel", 1e-12)


@check()
def needs(trial: Trial) -> None:
    """The card declares what the method uses: single replies, memory, peers, jobs that outlive a round."""
    c, host = trial.cls.card, trial.reference.host
    try:
        trial.run(channel=_HidesReplies())
        refused = False
    except NotSupported:
        refused = True
    require(refused == ("replies" in c.needs), f"it {'reads' if refused else 'does not read'} single replies")
    require("memory" in c.needs or not host.memories, "clients keep something, but the card does not need 'memory'")
    require(bool(c.keeps) == bool(host.memories), f"the card says that clients keep {c.keeps!r}; {bool(host.memories)}")
    require("peers" in c.needs or not host.ledger.peers, "clients talk to each other, but 'peers' is not declared")
    require("clock" in c.needs or not host.dispatch.jobs, "jobs outlive a round, but 'clock' is not declared")


# ---------------------------------------------------------------- edges


@check()
def nobody(trial: Trial) -> None:
    """With no client available, rounds pass and nothing breaks."""
    world = replace(trial.example.world or World(), present=1e-12)
    run = trial.run(world=world, rounds=2, evaluate_every=1)
    require(run.host.version == 2 and finite(lasting(run)), "rounds without clients did not end well")


@check()
def one_client(trial: Trial) -> None:
    """A federation of one client."""
    run = trial.run(sizes=(9,), rounds=2, evaluate_every=1)
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")


@check()
def one_sample(trial: Trial) -> None:
    """Clients with a single sample each."""
    run = trial.run(sizes=(1, 1, 1), rounds=2, evaluate_every=1)
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")


async def _declines(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    await honest(client, **payload)
    raise Declined("not today")


async def _breaks(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    await honest(client, **payload)
    raise RuntimeError("out of battery")


async def _sends_nan(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    return _spoilt(await honest(client, **payload), lambda t: t * math.nan)


async def _sends_more(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    return _spoilt(await honest(client, **payload), _longer)


def _longer(t: Any) -> Any:
    return torch.cat([t, t[-1:]]) if isinstance(t, Tensor) and t.dim() and len(t) else t


def _spoilt(reply: Message | None, f: Callable[[Any], Any]) -> Message | None:
    """Every real tensor and number of a reply changed."""

    def one(v: Any) -> Any:
        if isinstance(v, At):
            more = f is _longer and len(v.index) > 0
            index = torch.cat([v.index, torch.tensor([v.size])]) if more else v.index
            return At(index, f(v.values), v.size + 1 if more else v.size, v.known)
        if hasattr(v, "dense") and not isinstance(v, Tensor):
            v = v.dense()
        real = isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point())
        return f(v) if real else v

    return None if reply is None else mapped(reply, one)


@check()
def client_declines(trial: Trial) -> None:
    """A client that declines is counted and nothing of it remains."""
    _left_out(trial, trial.misled(_declines))


@check()
def client_fails(trial: Trial) -> None:
    """A client that raises is named; or, excluded, it is as if it had declined."""
    try:
        trial.run(behave={trial.victim: _breaks})
    except ClientFailure as e:
        require(e.client == trial.victim, f"the error names client {e.client}, and client {trial.victim} failed")
    else:
        raise ContractBroken("a client that raises did not stop the run, though on_failure='raise'")
    run = trial.misled(_breaks)
    _left_out(trial, run)
    equal(lasting(run), lasting(trial.misled(_declines)), "a failing and a declining client")


@check()
def client_sends_nan(trial: Trial) -> None:
    """A reply that is not finite is left out and counted; the others count as if its sender had declined."""
    if all(h.reply is None or _unspoilable(h.reply) for h in trial.spy_on_reference()):
        return  # nothing real is sent
    run = trial.misled(_sends_nan)
    _left_out(trial, run)
    if not trial.clocked:
        equal(lasting(run), lasting(trial.misled(_declines)), "a client that sends NaN and one that declines")


@check()
def client_sends_wrong_shape(trial: Trial) -> None:
    """A reply of the wrong shape is a clear error or a counted exclusion, and spoils nobody else's."""
    if all(h.reply is None or not difference(_spoilt(h.reply, _longer), h.reply) for h in trial.spy_on_reference()):
        return  # only numbers are sent
    try:
        run = trial.misled(_sends_more)
    except FedloomError:
        return
    if "replies" in trial.method.card.needs:  # the method saw the reply itself: it may cope
        require(not _shapes(run) ^ _shapes(trial.reference), "a reply of the wrong shape changed shapes of the state")
        return
    _left_out(trial, run)
    equal(lasting(run), lasting(trial.misled(_declines)), "a client that sends a wrong shape and one that declines")


def _shapes(run: Run) -> set[tuple[int, ...]]:
    return {tuple(t.shape) for t in leaves(run.state) if isinstance(t, Tensor)}


def _unspoilable(reply: Message) -> bool:
    return not difference(_spoilt(reply, lambda t: t * math.nan), reply)


def _left_out(trial: Trial, run: Run) -> None:
    excluded = sum(row["excluded"] for row in run.rows)
    require(excluded > 0, f"client {trial.victim} should have been left out, and nobody was")
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")
    require(trial.victim not in run.memories, f"client {trial.victim} never counted, yet its memory was kept")


# ---------------------------------------------------------------- what it reduces to


@check(lambda c: any(_reduction(s, i) for s, i in c.reduces))
def reductions(trial: Trial) -> None:
    """With the settings its card names, the method gives the run of the method it reduces to."""
    m = trial.method
    for setting, other in m.card.reduces:
        found = _reduction(setting, other)
        if found is None:
            continue  # told in words; the method's own test has it
        options, cls = found
        special = configure(type(m), {**written(m), **options})
        shared = {k: v for k, v in written(m).items() if k.partition(".")[0] in cls.__dataclass_fields__}
        plain = configure(cls, shared)
        a, b = (_vector(trial.run(method=x).state) for x in (special, plain))
        equal(a, b, f"the vector of {m.card.id} with {setting} and of {other}", 1e-9)


def _vector(state: Any) -> Tensor:
    """`params`, or the first real tensor of a state (k = 1 models are one model)."""
    params = getattr(state, "params", None)
    real = (t for t in leaves(state) if isinstance(t, Tensor) and t.is_floating_point())
    return (params if isinstance(params, Tensor) else next(real)).flatten()


def _reduction(setting: str, other: str) -> tuple[dict[str, Any], type[Any]] | None:
    """The card's words as options and a method, where they are `name=value, ...` and an id."""
    cls = catalogue().get(other.strip())
    parts = [p.strip().replace(" ", "") for p in setting.split(",")]
    if cls is None or not all(
        p.count("=") == 1 and p.partition("=")[0].replace(".", "_").isidentifier() for p in parts
    ):
        return None
    return dict(pairs(parts)), cls
