"""Replies that become one message: added up by the engine or as they came in time, noised, divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fedloom.asked import Asked, Summed
from fedloom.channel.ledger import Ledger
from fedloom.channel.stage import Exchange
from fedloom.engines.fold import Fold, Total, as_sent, check_names, divided, fold_chunk, tree
from fedloom.engines.secured import secured
from fedloom.errors import NotSupported
from fedloom.keyed import generator
from fedloom.message import Message
from fedloom.replies import Cohort
from fedloom.timing.posted import Posted

if TYPE_CHECKING:
    from .host import Host


def summed(host: Host, asked: Asked, how: Summed) -> tuple[Message, float]:
    """The (weighted) sum or mean of the replies, and when the last one was in."""
    weight = how.weight
    if host.plan.channel.uniform and (weight is None or isinstance(weight, str)):
        raise NotSupported(
            f"the channel needs equal weights (a client's influence must be bounded), but "
            f"{type(host.plan.method).__name__} weights replies by {weight or 'samples'}. Call "
            f"clients.mean(..., weight=1), or set the method's weight option, e.g. --set weight=uniform"
        )
    total, void, end = (_in_time if host.queues(asked.ids) else _at_once)(host, asked, how)
    if void:
        return Message(count=0, weight=0.0), end
    check_names(total.values, weight=weight == "weight")
    return _divided(host, total, asked.ids, how.mean), end


def _at_once(host: Host, asked: Asked, how: Summed) -> tuple[Total, str | None, float]:
    """The engine's sum, why it is void, and when the last reply was in; a void one is so for its clients too."""
    outcomes, total = host.engine.run(host.starting(asked), Fold(how.weight, how.fan_in))
    assert total is not None
    void = how.void(len(total.jobs), total.weight)
    for o in outcomes if void else ():
        o.excluded = void if o.job.number in total.jobs else o.excluded
    return total, void, host.settle(outcomes, asked.start)


def _in_time(host: Host, asked: Asked, how: Summed) -> tuple[Total, str | None, float]:
    """The same of the replies that came in time."""
    got, end = host.in_time(asked, how.weight if isinstance(how.weight, str) else None)
    posted = [p for _, p in got]
    total, left_out = _added(host, posted, asked, Fold(how.weight))
    void = how.void(len(total.jobs), total.weight)
    if void:
        left_out |= dict.fromkeys(total.jobs, void)
    _undone(host, posted, left_out)
    return total, void, end


def _added(host: Host, got: Sequence[Posted], asked: Asked, fold: Fold) -> tuple[Total, dict[int, str]]:
    """Replies that came in time as the sum that was asked for, and why some of them are not in it."""
    entries = [(p.number, p.reply, p.samples) for p in got if p.reply is not None]
    stage = host.plan.channel.secure
    if stage is None:
        total, left_out = tree([fold_chunk([(k, reply, fold.of(reply, n)) for k, reply, n in entries])])
    else:
        lost = range(-1, len(got) - len(asked.ids) - 1, -1)  # whoever they are, their replies did not come
        done = secured(stage, fold, entries, [*(p.number for p in got), *lost])
        total, left_out = done.total, done.left_out
        for up, down in done.nbytes.values():
            host.charge(Ledger(up, down))
    return total, left_out


def _undone(host: Host, got: Sequence[Posted], left_out: Mapping[int, str]) -> None:
    """Replies that had come in time are in no sum: their clients have the memory the jobs began with, unless a later
    job, one that counts, has built on what they wrote."""
    for p in reversed(got):
        if p.number not in left_out:
            continue
        why = left_out[p.number]
        host.excluded[why] = host.excluded.get(why, 0) + 1
        if p.pending is None or host.memories.get(p.id) is not p.pending:
            continue
        if p.memory:
            host.memories[p.id] = cast("dict[str, Any]", p.memory)  # as it was, so that the job before it is found
        else:
            del host.memories[p.id]


def _divided(host: Host, total: Total, ids: Sequence[int], mean: bool) -> Message:
    """What the server program reads: through the channel, and as a mean where one was asked for."""
    values, count, weight = total.message(), float(len(total.jobs)), total.weight
    if host.plan.channel:
        law = ids if isinstance(ids, Cohort) else Cohort(ids, 1.0, float(len(ids)), "all")
        law.uses += 1
        exchange = Exchange(
            count=count,
            expected=law.expected,
            weight=weight,
            population=len(host.plan.federation),
            probability=law.probability if isinstance(law.probability, float) else None,
            rng=lambda purpose: generator(*host.draw_key(f"channel.{purpose}")),
            ledger=host.spent,
            law=law.law,
            use=law.uses,
        )
        values = host.plan.channel.settle(values, exchange)
        count, weight = exchange.count, exchange.weight  # a stage may hide how many really replied
    read = {k: divided(v, weight) if mean else v for k, v in values.items()}
    return Message(as_sent(read, total.structure), count=count, weight=weight)
