"""The server's view of its clients with a policy in the place of the uniform law, and ears for what replies tell."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.asked import Asked, Summed
from fedloom.clients import Clients
from fedloom.engines.fold import Fold
from fedloom.errors import NotSupported
from fedloom.message import Message, leaves
from fedloom.replies import Cohort, Replies, Reply
from fedloom.training.request import Trained
from fedloom.view import View

from .history import History, Told
from .policy import Hears, Policy, Uniform

TOLD = "selection"
"""The field of a reply in which a client tells a policy something, besides what the method inside sends."""


@dataclass
class Desk:
    """A policy at work for one round: what it knows, and how candidates are asked for their loss.

    Attributes:
        inside: the name of the method whose cohorts it draws, for messages.
    """

    policy: Policy
    history: History
    ask: Callable[[Clients, Sequence[int]], Replies]
    inside: str


class Selecting(View):
    """All clients, chosen by a policy. Groups (`only`) share it."""

    def __init__(self, of: Clients, desk: Desk) -> None:
        super().__init__(of)
        self._desk = desk

    def over(self, of: Clients) -> Selecting:
        return Selecting(of, self._desk)

    def _drawn(self, k: int | float, ids: Sequence[int], policy: Callable[..., Cohort] | None) -> Cohort:
        """`k` of `ids` as the policy at the desk draws them."""
        desk = self._desk
        if isinstance(desk.policy, Uniform):
            cohort = super()._drawn(k, ids, policy)
        elif policy is not None:
            raise NotSupported(
                f"{desk.inside} draws its cohorts by a law of its own, so {type(desk.policy).__name__} would have no "
                f"say. Use one or the other: {desk.inside} alone, or this policy around FedAvg"
            )
        else:
            cohort = self._chosen_by(desk.policy, ids, desk.policy.counted(k), self.rng("sample"))
        desk.history = desk.history.chosen(cohort)
        return cohort

    def _chosen_by(self, policy: Policy, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        candidates = policy.candidates(self, self._desk.history, ids, k, rng)
        if policy.asks and len(candidates) > k:
            candidates = self._answered(candidates)
        return policy.chosen(self, self._desk.history, candidates, k, rng)

    def _answered(self, ids: Sequence[int]) -> Sequence[int]:
        """Those that answered with their loss."""
        replies = self._desk.ask(self._of, ids)  # an answer is no update: its length and its time say nothing
        self._desk.history = self._desk.history.heard(Told(r.id, r.n, r.loss) for r in replies)
        return replies.ids

    # ------------------------------------------------------------ what replies tell
    def _replied(self, asked: Asked) -> Replies:
        return self._heard(super()._replied(asked))

    def _summed(self, asked: Asked, how: Summed) -> Message:
        """Where the policy hears replies, they are added up here instead of on their way."""
        if not self._desk.policy.hears:
            return super()._summed(asked, how)
        replies, weight = self._replied(asked), Fold(how.weight)
        if how.void(len(replies), sum(weight.of(r.message, r.n) for r in replies)):
            return Message(count=0, weight=0.0)
        return (replies.mean if how.mean else replies.sum)(lambda r: weight.of(r.message, r.n))

    def _received(self, count: int | None, until: float, of: set[int] | None) -> Replies:
        return self._heard(super()._received(count, until, of))

    def _heard(self, replies: Replies) -> Replies:
        """The replies as the method inside sent them; what they tell besides goes into the history."""
        hears = self._desk.policy.hears
        if not hears:
            return replies
        plain = Replies(tuple(map(_plain, replies)))
        told = [Told(r.id, r.n, **r.message.get(TOLD, {}), **_measured(p, hears)) for r, p in zip(replies, plain)]
        self._desk.history = self._desk.history.heard(told)
        return plain


def _plain(reply: Reply) -> Reply:
    return replace(reply, message=Message({k: v for k, v in reply.message.items() if k != TOLD}))


def _measured(reply: Reply, hears: frozenset[Hears]) -> dict[str, Any]:
    """What the server sees by itself."""
    seen: dict[str, Any] = {}
    if "seconds" in hears:
        seen["seconds"] = reply.time - reply.began
    if "norm" in hears:
        arrows = [v for v in leaves(reply.message) if isinstance(v, Tensor) and v.is_floating_point()]
        seen["norm"] = math.sqrt(sum(float(v.double().square().sum()) for v in arrows))
    return seen


def told_loss(done: Trained, listener: str) -> float:
    """The mean loss over the steps of a training.

    Raises:
        NotSupported: there is none to tell, though the training went well.
    """
    loss = float(done.loss)
    if math.isnan(loss) and bool(done.vector.isfinite().all()):
        raise NotSupported(
            f"{listener} hears the training loss, and there is none: the steps of this method take gradients of losses "
            f"of their own. Use another method, or a policy that asks for the loss, e.g. policy.loss=asked"
        )
    return loss


@types.coroutine
def overheard(work: Any, hear: Callable[[Trained], None]) -> Generator[Any, Any, Any]:
    """Run a client program; whoever waits here hears of its trainings, which go on as if nobody did."""
    step, given = work.send, None
    try:
        while True:
            request = step(given)
            try:
                step, given = work.send, (yield request)
            except Exception as e:
                step, given = work.throw, e
            if isinstance(given, Trained):
                hear(given)
    except StopIteration as end:
        return end.value
