"""What travels and what stays: bytes, raw data, memories, and what the card says a method needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.channel.stage import Stage
from fedloom.client import Client
from fedloom.errors import NotSupported
from fedloom.message import At, Message, leaves, mapped, nbytes
from fedloom.testing.compare import difference
from fedloom.testing.tiny import SIZES
from fedloom.testing.trial import Spy, Trial

from .suite import check, equal, lasting, require


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


@check(lambda card: "peers" not in card.needs)
def others_data_stay(trial: Trial) -> None:
    """What a client answers to its first payloads is the same whatever data other clients hold."""
    others = trial.federation()
    for i in others.ids:
        if i != trial.victim:
            _changed(others.local(i))
            _changed(others.local(i).test)
    spy = Spy()
    trial.run(federation=others, behave={trial.victim: spy}, rounds=1)
    for here, there in zip((h for h in trial.spy_on_reference() if h.client == trial.victim), spy.heard):
        if difference(here.payload, there.payload):
            break  # the server had heard of the others by then
        equal(there.reply, here.reply, f"the reply of client {trial.victim} among clients with other data")


@check()
def evaluation_data_stay_out(trial: Trial) -> None:
    """Test samples decide nothing: with others in their place, the same is learned."""
    others = trial.federation()
    for part in (others.test, *(others.local(i).test for i in others.ids)):
        _changed(part or {})
    equal(lasting(trial.run(federation=others)), lasting(trial.reference), "with other test samples")


def _changed(data: Mapping[str, Tensor]) -> None:
    """Every field mirrored between its smallest and its largest value, in place."""
    for field in data.values():
        if len(field):
            field.copy_(field.amax() + field.amin() - field)


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
    c, host = trial.method.card, trial.reference.host
    try:
        trial.run(channel=_HidesReplies())
        refused = False
    except NotSupported:
        refused = True
    require(refused == ("replies" in c.needs), f"it {'reads' if refused else 'does not read'} single replies")
    require(
        "memory" in c.needs or not host.memories,
        "clients keep something: say so on the card, needs=frozenset({'memory'}), keeps='what it is'",
    )
    require(bool(c.keeps) == bool(host.memories), f"the card says that clients keep {c.keeps!r}; {bool(host.memories)}")
    require("peers" in c.needs or not host.ledger.peers, "clients talk to each other, but 'peers' is not declared")
    require("clock" in c.needs or not host.dispatch.jobs, "jobs outlive a round, but 'clock' is not declared")
