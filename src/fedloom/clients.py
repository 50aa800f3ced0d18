"""The server's view of its clients: whom to ask, and what came back. No data and no memory is visible from here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .asked import Asked, Summed
from .client import Client, Query
from .data.fields import Data
from .errors import ConfigError, DataError
from .keyed import choose
from .message import Message
from .model import Model
from .replies import Cohort, Evaluation, Replies, Without
from .training.request import Training

if TYPE_CHECKING:
    from .runs.host import Host


class Server(Client):
    """A client over the server's own declared data, whose calls return at once: server-side learning, no bytes."""

    def __init__(self, host: Host, draw: int) -> None:
        super().__init__(host.plan, -1, ("server", host.version, draw), {}, host.now)
        self._host = host

    @property
    def data(self) -> Any:
        data = self._host.plan.federation.validation
        if data is None:
            raise DataError(
                "this federation declares no data of the server's own; give some: Federation.from_arrays(..., "
                "validation=Data(x=..., y=...)), or pass data=clients.public"
            )
        return data

    @property
    def model(self) -> Model:
        return self._host.plan.model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Client.train`, at once."""
        return self._now(super().train(*args, **kwargs))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `Client.predict`, at once."""
        return self._now(super().predict(*args, **kwargs))

    def gradient(self, *args: Any, **kwargs: Any) -> Any:
        """As `Client.gradient`, at once."""
        return self._now(super().gradient(*args, **kwargs))

    def evaluate(self, vector: Any, data: Data | str = "test", model: Model | None = None) -> Any:
        """As `Client.evaluate`, at once, on given data or the server's own."""
        return self._now(super().evaluate(vector, self.data if isinstance(data, str) else data, model))

    def _now(self, work: Any) -> Any:
        try:
            request = work.send(None)
            assert isinstance(request, Training | Query)
            work.send(self._host.at_once(request))
        except StopIteration as end:
            return end.value
        raise AssertionError("one await, one request")


class Clients:
    """All clients (or, after `only`, some of them), as the server sees them."""

    def __init__(self, host: Host, ids: Sequence[int] | None = None, start: float | None = None) -> None:
        self._host = host
        self._ids: Sequence[int] = range(len(host.plan.federation)) if ids is None else ids
        self._groups: list[Clients] = []
        self._start = start
        self._here: tuple[object, Sequence[int]] | None = None

    # ------------------------------------------------------------ who is there
    @property
    def ids(self) -> Sequence[int]:
        """Every client's number."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def panel(self) -> Sequence[int]:
        """Clients that personal evaluation looks at: all, or a fixed random hundred of many."""
        if len(self._ids) <= 100:
            return self._ids
        return [self._ids[k] for k in sorted(choose(len(self._ids), 100, self._host.plan.seed, "panel"))]

    def available(self) -> Sequence[int]:
        """Those who are there now."""
        host, now = self._host, self._time()
        moment = host.plan.world.moment(host.version, now)
        if self._here is None or self._here[0] != moment:
            self._here = (moment, host.plan.world.here(self._ids, host.version, now))
        return self._here[1]

    def idle(self) -> Sequence[int]:
        """Those who are there and have no job under way."""
        there, busy = self.available(), self._host.dispatch.busy()
        return Without.positions(there, busy) if isinstance(there, range) else Without(there, busy)

    def only(self, ids: Iterable[int]) -> Clients:
        """The same view of some clients. Several of these in one round overlap in time, until `clients.now` is read
        or `clients` itself asks somebody: that waits for all of them."""
        group = Clients(self._host, list(map(index, ids)), self._time())
        self._groups.append(group)
        return group

    def info(self, id: int) -> Mapping[str, Any]:
        """What the server knows of a client: samples, model, device."""
        plan, id = self._host.plan, index(id)
        return {
            "samples": plan.federation.size(id),
            "model": plan.model_of(id).name,
            "device": plan.world.device(id),
        }

    def sample(
        self,
        k: int | float,
        ids: Sequence[int] | None = None,
        policy: Callable[..., Cohort] | None = None,
    ) -> Cohort:
        """Draw a cohort. A world that over-selects draws more, and an exchange with them waits for the first k replies.

        Args:
            k: how many (all when there are fewer); a float in (0, 1) draws each client with that chance (Poisson).
            ids: from these; default those available.
            policy: `policy(ids, k, rng) -> Cohort` instead of the uniform law.
        """
        ids = self.available() if ids is None else ids
        many = k if isinstance(k, float) else math.ceil(k * self._over - 1e-9)  # 50 times 1.1 is 55 and a rounding
        drawn = self._drawn(many, ids, policy)
        if not isinstance(k, float):
            drawn.wanted, drawn.expected = min(k, len(drawn)), min(float(k), drawn.expected)
            if drawn.law == "all" and drawn.wanted < len(drawn):
                drawn.law = "policy"  # of everybody those who are first
        return drawn

    @property
    def _over(self) -> float:
        """Clients asked for each that is wanted. Methods that keep their own clients busy keep as many as they say."""
        return 1.0 if "clock" in self._host.plan.method.card.needs else self._host.plan.world.over

    # ------------------------------------------------------------ what the server has
    @property
    def model(self) -> Model:
        return self._host.plan.model

    @property
    def models(self) -> Mapping[str, Model]:
        return self._host.plan.models

    @property
    def public(self) -> Data | None:
        return self._host.plan.federation.public

    @property
    def server(self) -> Server:
        """A client over the server's own data; its calls return at once."""
        return Server(self._host, self._host.draw())

    @property
    def stage(self) -> Any:
        """The federation's current task or season (its `info["stage"]`), None where there is only one."""
        return self._host.plan.federation.info.get("stage")

    def rng(self, purpose: str) -> torch.Generator:
        """A generator for this purpose; each call in a round is another draw."""
        from .keyed import generator

        return generator(*self._host.draw_key(purpose))

    def note(self, **numbers: float) -> None:
        """Numbers shown in progress and written to the round's log; never read back.

        Raises:
            ConfigError: a value that is not one number.
        """
        for name, number in numbers.items():
            try:
                self._host.notes[name] = float(number)
            except (TypeError, ValueError):
                raise ConfigError(
                    f"note({name}={type(number).__name__}) cannot be: a note is one number, as in note(loss=0.3)"
                ) from None

    # ------------------------------------------------------------ asking, all at once
    def map(
        self,
        program: Callable[..., Any],
        ids: Iterable[int] | None = None,
        each: Mapping[int, Mapping[str, Any]] | None = None,
        **down: Any,
    ) -> Replies:
        """Run a client program at `ids` (default all) and get every reply.

        Args:
            each: arguments for single clients, `{id: {name: value}}`.
            down: arguments for all.
        """
        return self._replied(self._asked(ids, program, each, down))

    def mean(
        self,
        program: Callable[..., Any],
        ids: Iterable[int] | None = None,
        weight: str | float | None = None,
        each: Mapping[int, Mapping[str, Any]] | None = None,
        least: int = 1,
        **down: Any,
    ) -> Message:
        """The weighted mean of every field of the replies; no single reply is seen.

        Args:
            weight: training samples (default), a number (equal weights), or the name of a number in the reply.
            least: below this many replies, or where they weigh nothing, the exchange is void: an empty message with
                `count` 0, and no client remembers it.

        Returns:
            the means, with `count` replies and total `weight`. `At` entries come back `Covered`: `.over(old)`.
        """
        return self._summed(self._asked(ids, program, each, down), Summed(weight, True, least))

    def sum(
        self,
        program: Callable[..., Any],
        ids: Iterable[int] | None = None,
        weight: str | float | None = 1.0,
        each: Mapping[int, Mapping[str, Any]] | None = None,
        least: int = 1,
        **down: Any,
    ) -> Message:
        """As `mean`, undivided, and unweighted by default (weight None: training samples)."""
        return self._summed(self._asked(ids, program, each, down), Summed(weight, False, least))

    # ------------------------------------------------------------ asking, in one's own time
    def send(
        self,
        ids: int | Iterable[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None = None,
        when: float | str | None = None,
        **down: Any,
    ) -> list[int]:
        """Start jobs and go on; `receive` gets what they return.

        Returns:
            job numbers.
        """
        chosen = ids if isinstance(ids, Iterable) else [ids]
        return self._sent(self._asked(chosen, program, each, down, when))

    def receive(self, count: int | None = None, until: float | None = None, of: Iterable[int] | None = None) -> Replies:
        """The next replies: all of one instant; exactly `count`; or all by time `until` (at most `count`).

        Args:
            of: only from these clients; default all of this view.
        """
        chosen = None if of is None else set(map(index, of))
        if chosen is None and not isinstance(self._ids, range):
            chosen = set(self._ids)
        return self._received(count, math.inf if until is None else until, chosen)

    def cut(self, ids: Iterable[int], at: float | None = None) -> None:
        """Training that runs at these clients at that time (default now) stops; programs go on with what they have."""
        self._host.dispatch.cut(map(index, ids), self._own_time() if at is None else at)

    def cancel(self, job: int) -> None:
        """Forget a job: no reply of it is received. Nothing of it remains if its reply has not arrived; one that has
        changed its client's memory by then, and that stands."""
        self._host.dispatch.cancel(job)

    @property
    def jobs(self) -> list[Any]:
        """Jobs under way, and replies not yet received: `.number`, `.id`, `.payload`, `.sent`."""
        jobs = self._host.dispatch.outstanding()
        if isinstance(self._ids, range):  # everybody
            return jobs
        mine = set(self._ids)
        return [p for p in jobs if p.id in mine]

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self._own_time()

    # ------------------------------------------------------------ peers and views
    def mix(self, name: str, topology: Any) -> None:
        """Peer-to-peer averaging of the vector `name` that clients hold in memory, along the edges of a topology."""
        self._passed(self._host.mix(name, topology, self._ids, self._own_time()))

    def evaluate(
        self,
        what: Tensor | Callable[..., Any],
        ids: Iterable[int] | None = None,
        split: str = "test",
        each: Mapping[int, Mapping[str, Any]] | None = None,
        **down: Any,
    ) -> Evaluation:
        """Metrics of a vector, of a function of a model's inputs, or of a program that returns one at each client.

        A vector or function without `ids` is judged on the federation's own test set where it has one; otherwise, and
        for programs, on the clients' own `split`, pooled and one by one. Nothing is charged and no memory changes.
        """
        chosen = None if ids is None else list(ids)
        return self._host.evaluate(what, ids=chosen, panel=self.panel, split=split, each=each or {}, down=down)

    def look(self, program: Callable[..., Any], ids: Iterable[int] | None = None, **down: Any) -> dict[int, Any]:
        """What a program returns at each client (default: all, there or away), for judging a simulation.

        Nothing is charged, no memory changes, no time passes; so a round may not look, and sites let nobody look.

        Raises:
            ConfigError: in a round.
            NotSupported: clients are sites, where memory stays.
        """
        return self._host.look(program, self._ids if ids is None else ids, down)

    # ------------------------------------------------------------ what a view can change (view.py)
    def _drawn(self, k: int | float, ids: Sequence[int], policy: Callable[..., Cohort] | None) -> Cohort:
        if policy is not None:
            return policy(ids, k, self.rng("sample"))
        key = self._host.draw_key("sample")
        n = len(ids)
        if isinstance(k, float):
            if not 0 < k < 1:
                raise ConfigError(f"sample({k}): a float is a chance in (0, 1); for a number of clients give an int")
            drawn = (torch.rand(n, generator=self.rng("poisson")) < k).nonzero().flatten().numpy()
            return Cohort([ids[j] for j in map(int, drawn)], k, k * n, "poisson")
        if k < 0:
            raise ConfigError(f"sample({k}): the number of clients is >= 0")
        if k >= n:
            return Cohort(ids, 1.0, float(n), "all")
        return Cohort([ids[j] for j in choose(n, k, *key)], k / n, float(k), "fixed")

    def _replied(self, asked: Asked) -> Replies:
        """Every reply."""
        replies, end = self._host.ask(self._from_now(asked))
        self._passed(end)
        return Replies(tuple(replies))

    def _summed(self, asked: Asked, how: Summed) -> Message:
        """The sum or mean of the replies."""
        total, end = self._host.total(self._from_now(asked), how)
        self._passed(end)
        return total

    def _sent(self, asked: Asked) -> list[int]:
        """Numbers of the jobs that were started."""
        return self._host.send(self._from_now(asked))

    def _received(self, count: int | None, until: float, of: set[int] | None) -> Replies:
        """The next replies."""
        self._own_time()
        replies = self._host.receive(count, until, of)
        self._passed(self._host.now)
        return Replies(tuple(replies))

    def _asked(
        self,
        ids: Iterable[int] | None,
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
        when: float | str | None = None,
    ) -> Asked:
        chosen = self._ids if ids is None else ids if isinstance(ids, Sequence) else list(ids)
        return Asked(chosen, program, each=each, down=down, when=when)

    def _from_now(self, asked: Asked) -> Asked:
        """The exchange as it begins now."""
        return replace(asked, start=self._own_time())

    # ------------------------------------------------------------ time
    def _time(self) -> float:
        return self._host.now if self._start is None else self._start

    def _own_time(self) -> float:
        """Now, after every group that ran side by side has ended; they go on from here."""
        now = self._time()
        for group in self._groups:
            now = max(now, group._own_time())
        for group in self._groups:
            group._passed(now)
        self._passed(now)
        return now

    def fresh_round(self) -> None:
        """Groups live for one round."""
        self._groups.clear()

    def _passed(self, end: float) -> None:
        if self._start is None:
            self._host.clock.reach(end)
        else:
            self._start = max(self._start, end)
