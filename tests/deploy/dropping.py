"""Sites that spoil secure sums: in one phase of every sum they refuse, or are late, or cheat, or forget."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedloom.channel.secure.protocol import INPUT
from fedloom.deploy.partner import Partner, Unsafe
from fedloom.deploy.site import Site
from fedloom.deploy.store import Store
from fedloom.message import Message


def in_phase(phase: str, sites: tuple[str, ...], then: Callable[[], None]) -> None:
    """In these sites something happens before that phase."""

    def before(honest: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(honest)
        def wrapped(self: Partner, given: Any, *args: Any) -> Any:
            if self.site in sites and given["secure"]["phase"] == phase:
                then()
            return honest(self, given, *args)

        return wrapped

    name = "begun" if phase == INPUT else "answer"
    setattr(Partner, name, before(getattr(Partner, name)))


def refuses() -> None:
    raise Unsafe("not today")


def dawdles() -> None:
    time.sleep(2.0)


def secret_after_answer() -> None:
    """A site writes where it stands in a sum when the server has its reply."""
    honest, do, kept = Store.done, Site._do, dict[str, Any]()

    def done(self: Store, job: str, client: int, *rest: Any, sum: Any = None) -> str:
        kept[job] = (client, sum)
        return honest(self, job, client, *rest)

    def after(self: Site, given: Any) -> None:
        do(self, given)
        client, row = kept.pop(given["id"], (0, None))
        if row is not None:
            self.store.write("INSERT OR REPLACE INTO sums VALUES (?, ?)", client, json.dumps(row))

    Store.done, Site._do = done, after  # type: ignore[method-assign]


def sends_unmasked(site: str) -> None:
    """A site whose replies are not masked."""
    honest = Partner.masked

    def masked(self: Partner, row: Any, reply: Any, job: Any) -> Any:
        if self.site != site:
            return honest(self, row, reply, job)
        return replace(reply, message=Message(delta=reply.message["delta"].value))

    Partner.masked = masked  # type: ignore[method-assign]


def shows_other_shares(site: str) -> None:
    """A site that says something else than the shares it holds."""
    honest = Partner.answer

    def answer(self: Partner, given: Any, payload: Any) -> Any:
        reply, row = honest(self, given, payload)
        if self.site == site and given["secure"]["phase"] == "unmask":
            reply = replace(reply, message=Message(shown=dict.fromkeys(reply.message["shown"], "00" * 16)))
        return reply, row

    Partner.answer = answer  # type: ignore[method-assign]
