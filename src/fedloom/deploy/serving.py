"""A federation of real sites in two calls: `serve` at the coordinator, `join` at each site."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedloom.channel.stage import Channel, Exchange
from fedloom.data import Data, Federation
from fedloom.data.convert import as_data
from fedloom.data.readers import read_npz
from fedloom.engines.base import Plan
from fedloom.errors import CheckpointError, ConfigError
from fedloom.keyed import generator
from fedloom.message import Message
from fedloom.runs import Experiment, Recipe, Run, checkpoint
from fedloom.runs.describe import COUNTS
from fedloom.written import pieces

from .agreement import Agreement, Offer, Policy, Refused, Terms, declaration, differing, read_deployment
from .alone import alone
from .app import Service
from .arrivals import Arrivals, Sites
from .blobs import Blobs
from .certs import name_in
from .coordinator import Coordinator, Look, Stopped
from .journal import Journal
from .link import Link
from .listening import Listener, gate_of
from .logs import say
from .partner import Partner
from .signing import Identity
from .site import Site, shared
from .store import Store
from .tables import Table

Observer = Callable[[dict[str, Any]], None]
_GOODBYE = 10.0
"""Seconds an ended coordinator stays, so that every site hears of it."""


@dataclass(frozen=True)
class Secret(Channel):
    """A channel whose noise nobody can work out: it is keyed by a secret of this coordinator, not by the run's seed,
    which every site knows. Kept in the journal, so that a killed coordinator draws the same noise again.
    """

    secret: str = ""

    def settle(self, total: Message, exchange: Exchange) -> Message:
        keyed = exchange.rng

        def drawn(purpose: str) -> torch.Generator:
            return generator(self.secret, keyed(purpose).initial_seed())

        exchange.rng = drawn
        return super().settle(total, exchange)


class Serving:
    """A coordinator: listens from the start, runs when every site has declared its data.

    Args:
        recipe: a file with a table `[sites]`, or a recipe and its terms.
        out: folder of the run, its journal and its blobs; what is there is continued.
        listen: "HOST:PORT"; port 0: one the system picks, see `url`.
        certs: the authority's folder; None: plain HTTP on loopback.
        test, validation: samples that lie at the coordinator; public: samples that everybody holds.
        observers: called with each event of the run, a dict.

    Raises:
        ConfigError: the folder holds another federation, or is in use; or something cannot be.
    """

    def __init__(
        self,
        recipe: Path | str | tuple[Recipe, Terms],
        out: Path | str,
        listen: str = "127.0.0.1:0",
        certs: Path | str | None = None,
        *,
        test: Any = None,
        public: Any = None,
        validation: Any = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        made, terms = recipe if isinstance(recipe, tuple) else read_deployment(Path(recipe))
        self.out, self.observers = Path(out), observers
        self.test, self.public, self.validation = (read_samples(d, terms.table) for d in (test, public, validation))
        with ExitStack() as held:
            held.enter_context(alone(self.out))
            self.journal = held.enter_context(closing(Journal(self.out / "journal.db")))
            self.blobs = Blobs(self.out / "blobs")
            self.offer = self._offered(made, terms)
            self.blobs.keep({self.offer.public, *self.journal.bodies()}, transfers=True)
            place = None if certs is None else Path(certs)
            self.service = Service(self.offer, gate_of(place), self.journal, self.blobs)
            self.listener = Listener(self.service.app(), listen, place)
            self._held = held.pop_all()
        self.url, self._closed, self._wall = self.listener.url, False, 0.0
        self._closing = threading.Lock()  # `run` closes when it ends, and others may
        say("listening", url=self.url, sites=len(terms.names), certificates=certs is not None)

    def _offered(self, made: Recipe, terms: Terms) -> Offer:
        """What this folder's federation is offered, today as on its first day."""
        public_name = "" if self.public is None else self.blobs.put(*pieces(dict(self.public.items())))
        offer = Offer.of(made.replace(engine="sequential"), terms, public_name)
        if self.journal.fact("offer") is None and checkpoint.found(self.out / checkpoint.FOLDER):
            raise CheckpointError(
                f"{self.out} holds rounds of a run, but nothing in its journal: {self.journal.path} was lost, or put "
                f"back from before it began. Put the newest copy back, or begin anew with another --out"
            )
        stands = self.journal.decide("offer", offer.content())
        if stands != offer.content():
            raise ConfigError(
                f"{self.out} holds another federation ({differing(stands, offer.content())}); choose another --out"
            )
        return offer

    def run(self) -> Run:
        """Wait for the sites, run to the end, tell them."""
        try:
            while not self.service.complete.wait(0.2):
                if self._closed:
                    raise Stopped("stopped before every site had joined")
            run = self._prepared()
            say("agreed", plan=self.service.plan, sites=len(self.offer.terms.names), round=run.host.version or None)
            run.go()
            self.service.end(_brief(run))
            say("ended", plan=self.service.plan, rounds=run.host.version, seconds=run.wall)
            self._wait_for_goodbyes()
            return run
        finally:
            self.close()

    def close(self) -> None:
        self._closed = True
        if self.service.coordinator is not None:
            self.service.coordinator.stop()
        self.service.leave()
        self.listener.close()
        with self._closing:
            self._held.close()

    def _prepared(self) -> Run:
        assert self.service.agreement is not None
        run, coordinator = prepared(
            self.service.agreement,
            self.out,
            self.journal,
            self.blobs,
            [self._watch, *self.observers],
            test=self.test,
            public=self.public,
            validation=self.validation,
        )
        coordinator.desk.bell = self.service.ring
        self.service.coordinator = coordinator
        self.service.progress["round"] = run.host.version
        self._wall = run.wall
        return run

    def _watch(self, event: Mapping[str, Any]) -> None:
        """What the status says, and the log."""
        if event["event"] == "note":
            say("note", text=event["text"])
        row = event.get("row")
        if row is not None:
            views = {k: v for k, v in row.items() if isinstance(v, dict) and k not in COUNTS}
            figures = {
                f"{view}.{k}": v
                for view, values in views.items()
                for k, v in values.items()
                if isinstance(v, int | float)
            }
            sent = {k.removeprefix("bytes_"): row[k] for k in ("bytes_up", "bytes_down")}
            self.service.progress = {"round": row["round"], "figures": figures, "bytes": sent}
            about = {"plan": self.service.plan, "replies": row["replies"], "excluded": row["excluded"]}
            sums = {"bytes_up": sent["up"], "bytes_down": sent["down"]}
            say("round", round=row["round"], **about, **sums, figures=figures, seconds=row["wall"] - self._wall)
            self._wall = row["wall"]

    def _wait_for_goodbyes(self) -> None:
        end = time.monotonic() + _GOODBYE
        while self.service.told < set(self.offer.terms.names) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)  # the last answer is on its way


class Coordinated(Run):
    """A run whose jobs are done at sites.

    Args:
        engine_of: makes the coordinator of a plan, given how to look at the round and the state.
    """

    def __init__(self, experiment: Experiment, resume: bool, engine_of: Callable[[Plan, Look], Coordinator]) -> None:
        self._engine_of = engine_of
        super().__init__(experiment, resume)
        if self.resumed_from is None:
            self._take_over()

    def _restore(self, saved: dict[str, Any]) -> None:
        self._take_over(float(saved["now"]))  # before jobs under way are revived
        super()._restore(saved)

    def _take_over(self, now: float = 0.0) -> None:
        host = self.host
        host.engine = self.coordinator = self._engine_of(self.plan, lambda: (host.version, host.state))
        host.dispatch = Arrivals(host, Sites(self.coordinator, now))


def prepared(
    agreement: Agreement,
    out: Path,
    journal: Journal,
    blobs: Blobs,
    observers: Sequence[Observer],
    *,
    test: Data | None = None,
    public: Data | None = None,
    validation: Data | None = None,
) -> tuple[Run, Coordinator]:
    """The run of an agreement, continued from what its folder holds, and the coordinator that is its engine.

    Args:
        test, public, validation: samples that lie here.
    """
    offer = agreement.offer
    federation = agreement.federation(test=test, public=public, validation=validation)
    experiment = offer.made.experiment(
        out=out, federation=federation, checkpoint_seconds=0.0, observers=list(observers)
    )
    secret = journal.decide("secret", secrets.token_hex(32))
    experiment.channel = Secret(Channel.of(experiment.channel).stages, secret)
    run = Coordinated(
        experiment,
        resume=bool(checkpoint.found(out / checkpoint.FOLDER)),
        engine_of=lambda plan, look: Coordinator(plan, look, offer.terms, journal, blobs),
    )
    run.coordinator.agreed = agreement.hash
    return run, run.coordinator


def serve(
    recipe: Path | str | tuple[Recipe, Terms], out: Path | str, listen: str = "127.0.0.1:0", **options: Any
) -> Run:
    """Run a federation of sites to its end; options are those of `Serving`."""
    return Serving(recipe, out, listen, **options).run()


# ---------------------------------------------------------------- at a site


@dataclass(frozen=True)
class Approval:
    """What a site's operator is asked to agree to.

    Attributes:
        offer: method, rounds and all, as TOML under `offer.recipe`.
        declaration: what will be said of the data: sizes, shapes, classes, a hash.
    """

    site: str
    offer: Offer
    declaration: Mapping[str, Any]


def join(
    url: str,
    data: Any,
    site: str = "",
    *,
    certs: Path | str | None = None,
    out: Path | str | None = None,
    policy: Policy | Path | str | None = None,
    approve: Callable[[Approval], bool],
    patience: float = float("inf"),
    wait: float = 20.0,
) -> Mapping[str, Any]:
    """Take part in a federation until its run is over.

    Args:
        url: of the coordinator.
        data: this site's samples: a file (.npz), `Data`, `(x, y)`; a list of these is one client each.
        site: its name; default: the one its certificate was issued to.
        certs: the folder `fedloom certs issue` made; None: plain HTTP to this very machine.
        out: what this site keeps (memories, replies, audit log); default "sites/NAME". Never put back an older copy.
        policy: what this site takes part in.
        approve: asked once, before anything is said of the data.
        patience: seconds without any answer after which to give up.

    Returns:
        what the coordinator says of the ended run.

    Raises:
        Refused: by this site's policy or operator, or because the two sides would not do the same.
        ConfigError: something cannot be, or its folder is in use.
        MemoryLost, Turned, Unreachable: see there.
    """
    place = None if certs is None else Path(certs)
    site = site or (name_in(place) if place is not None else "")
    if not site:
        raise ConfigError("which site is this? join(url, data, site='cleveland', ...)")
    rules = policy if isinstance(policy, Policy) else Policy.read(None if policy is None else Path(policy))
    folder = Path(out or Path("sites") / site)
    with closing(Link(url, site, place, patience, wait)) as link, alone(folder), closing(Store(folder)) as store:
        store.tidy()
        given = link.offer()
        offer = Offer.read(given)
        rules.check(offer)
        made = offer.made
        say("offered", site=site, method=made.method, rounds=made.rounds, sites=len(offer.terms.names))
        if offer.mine != given["versions"]:
            raise Refused(f"the coordinator computes with something else: {differing(offer.mine, given['versions'])}")
        if site not in offer.terms.names:
            raise Refused(f"{site!r} is not a site of this federation: {', '.join(offer.terms.names)}")
        held = holdings(data, offer, site)
        said = declaration(held)
        if store.fact("joined") is None and not approve(Approval(site, offer, said)):
            raise Refused("not approved at this site; nothing was said of its data")
        if store.decide("joined", [offer.content(), said]) != [offer.content(), said]:
            raise Refused(f"{store.path.parent} belongs to another federation, or to other data; choose another --out")
        say("joined", site=site, **_counted(link.hello(said)))
        agreement = _agreed(link, offer, site, said)
        link.plan = agreement.hash
        store.note({"left": "declaration", "plan": agreement.hash, **said})
        plan = _plan(agreement, held, site, link, store)
        partner = _partner(plan, agreement, store, site, rules, place)
        return Site(plan, link, store, int(offer.terms.piece * 1e6), partner).work()


def holdings(data: Any, offer: Offer, site: str) -> Federation:
    """This site's clients, their rows shuffled by the run's seed and split into train, val and test by the recipe."""
    several = isinstance(data, list)
    table = offer.terms.table
    parts = [read_samples(part, table) for part in (data if several else [data])]
    due = offer.terms.names[site]
    if len(parts) != due:
        raise ConfigError(
            f"{site} is {due} client{'s' * (due > 1)} of this federation, and was given {len(parts)} files"
        )
    recipe = offer.made
    classes = None if table is None else table.classes
    kept = [part for part in parts if part is not None]
    return Federation.from_clients(kept, val=recipe.val, seed=recipe.seed, name=site, classes=classes)


def samples_of(held: Federation, first: int = 0) -> dict[int, Data]:
    """Client -> all its samples, in the order train, val, test; numbered from `first`."""
    found: dict[int, Data] = {}
    for id in held.ids:
        table, start, n = held.population.rows(id)
        found[first + id] = table.slice(start, start + n)
    return found


def read_samples(given: Any, table: Table | None = None) -> Data | None:
    """Samples from a file (.npz: one array a field; a table, where the plan says how it is read), or as `as_data` takes
    them.
    """
    if given is None or isinstance(given, Data):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.exists():
            raise ConfigError(f"no file {path}")
        if path.suffix != ".npz":
            if table is None:
                raise ConfigError(
                    f"{path} is no .npz, and the recipe has no [sites.table] that says how tables are read"
                )
            return table.read(path)
        return as_data(read_npz(path, path.name), path.name)
    return as_data(given, "samples")


def _agreed(link: Link, offer: Offer, site: str, said: Mapping[str, Any]) -> Agreement:
    """The plan, when everybody is there; worked out here, not believed."""
    while (given := link.agreement()) is None:
        say("waiting", site=site)
    agreement = Agreement.read(given)
    if agreement.offer.content() != offer.content() or dict(agreement.held[site]) != dict(said):
        raise Refused("the plan is not what was offered, or says something else of this site's data")
    if agreement.hash != given["hash"]:
        raise Refused(f"this site works the plan out as {agreement.hash}, the coordinator as {given['hash']}")
    say("agreed", site=site, plan=agreement.hash)
    return agreement


def _plan(agreement: Agreement, held: Federation, site: str, link: Link, store: Store) -> Any:
    name, first = agreement.offer.public, agreement.offer.terms.clients[site][0]
    public = shared(link.fetch(name, store.blobs)) if name else None
    return agreement.plan(agreement.federation(samples_of(held, first), public=public))


def _partner(
    plan: Plan, agreement: Agreement, store: Store, site: str, rules: Policy, certs: Path | None
) -> Partner | None:
    """This site in secure sums; None where the plan has none."""
    stage = plan.channel.secure
    if stage is None:
        return None
    identity = None if certs is None else Identity(certs)
    return Partner(stage, store, agreement.offer.terms, site, agreement.hash, rules.least_partners, identity)


def _counted(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"sites": answer["sites"], "of": answer["of"]}


def _brief(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {k: summary[k] for k in ("method", "rounds", "final", "bytes_up", "bytes_down", "excluded")}
