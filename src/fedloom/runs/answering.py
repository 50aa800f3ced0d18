"""Questions that a client asks in mid-job, and what a program comes to at a client over what it has committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedloom.client import Ask, Client, Unanswered, handed
from fedloom.errors import NotSupported
from fedloom.message import Message, opened
from fedloom.replies import Replies, Reply

if TYPE_CHECKING:
    from .host import Host


def answer_to(host: Host, question: Ask, id: int) -> Any:
    """The answer to a client's question; where failures are excluded, one here is its asker's."""
    if host.plan.on_failure == "raise":
        return _answer(host, question, id)
    try:
        return _answer(host, question, id)
    except Exception as e:
        return Unanswered(f"its question in mid-job could not be answered: {type(e).__name__}: {e}")


def _answer(host: Host, question: Ask, id: int) -> Any:
    """Of the server's last state, or of peers' committed memories."""
    plan = host.plan
    if question.of is None:
        if plan.channel.secure is not None and question.message:
            raise NotSupported(
                f"a question in mid-job tells the server something of one client, and {plan.channel.secure} "
                f"lets it see sums alone; drop that stage, or ask without a message"
            )
        return question.program(host.state, **question.message)
    replies: list[Reply] = []
    for peer in question.of:
        answer = returned(host, question.program, peer, ("ask", peer, id, host.version), question.message)
        message = opened(answer if answer is not None else Message())
        n = plan.federation.size(peer)
        replies.append(Reply(peer, n, len(replies), 0, host.now, host.now, question.message, message))
    return Replies(tuple(replies))


def returned(host: Host, program: Callable[..., Any], id: int, key: tuple[Any, ...], message: Mapping[str, Any]) -> Any:
    """What a program returns at a client, over what it has committed; what it writes is dropped."""
    work = program(Client(host.plan, id, key, dict(host.memory_of(id)), host.now), **handed(message))
    try:
        request = work.send(None)
        while True:
            request = work.send(host.at_once(request))
    except StopIteration as end:
        return end.value
