"""The same run on an existing Flower federation: Flower carries the messages, the coordinator and the sites are ours.

    # federated.py, named in the app's pyproject.toml as serverapp and clientapp
    from fedloom.deploy.flower import client_app, server_app
    server = server_app("hospitals.toml", out="runs/hospitals")
    client = client_app()
    # each node says who it is: flower-supernode --node-config 'site="cleveland" data="cleveland.npz" out="kept"'

Only Flower's public message API is used (`Grid.push_messages`, `Grid.pull_messages`); bodies travel as raw bytes. What
a client keeps lies on the node's disk, for Flower starts a client app anew for every message. Journal, closings and
resuming are those of `fedloom serve`. Tested with flwr 1.42.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedloom.errors import ConfigError, FedloomError, MissingExtra, NotSupported
from fedloom.runs import Recipe, Run

from .agreement import Agreement, Offer, Policy, Refused, Terms, compatible, declaration, differing, read_deployment
from .blobs import Blobs
from .coordinator import Coordinator
from .journal import Journal
from .serving import Observer, holdings, prepared, read_samples, samples_of
from .site import Site
from .store import Store

_PAUSE = 0.2  # seconds between looks at Flower's mailbox
_RECORD, _BODY = "fedloom", "body"


def flwr(module: str) -> Any:
    """A module of Flower's.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(f"flwr.{module}")
    except ImportError:
        raise MissingExtra("flwr", "flower", "a Flower app") from None


# ---------------------------------------------------------------- letters


def packed(content: Mapping[str, Any], body: bytes = b"") -> Any:
    """JSON and raw bytes as the content of a Flower message."""
    app = flwr("app")
    array = app.Array(dtype="uint8", shape=(len(body),), stype="bytes", data=body)
    return app.RecordDict(
        {_RECORD: app.ConfigRecord({"json": json.dumps(content)}), _BODY: app.ArrayRecord({_BODY: array})}
    )


def unpacked(content: Any) -> tuple[dict[str, Any], bytes]:
    """The way back."""
    return json.loads(content[_RECORD]["json"]), content[_BODY][_BODY].data


# ---------------------------------------------------------------- the server app


def server_app(
    recipe: Path | str | tuple[Recipe, Terms],
    out: Path | str,
    *,
    test: Any = None,
    validation: Any = None,
    observers: Sequence[Observer] = (),
) -> Any:
    """A Flower `ServerApp` that runs a federation of sites to its end.

    Args:
        recipe: a file with a table `[sites]`, or a recipe and its terms.
        out: folder of the run; what is there is continued.
        test, validation: samples that lie at the server.
        observers: called with each event of the run, a dict.

    Raises:
        MissingExtra: without Flower.
    """
    app: Any = flwr("serverapp").ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        made, terms = recipe if isinstance(recipe, tuple) else read_deployment(Path(recipe))
        offer = Offer.of(made.replace(engine="sequential"), terms)
        Courier(grid, offer, Path(out), read_samples(test), read_samples(validation), observers).run()

    return app


class Courier:
    """Carries jobs and replies between a coordinator and Flower's nodes."""

    def __init__(
        self, grid: Any, offer: Offer, out: Path, test: Any, validation: Any, observers: Sequence[Observer]
    ) -> None:
        self.grid, self.offer, self.out = grid, offer, out
        self.test, self.validation, self.observers = test, validation, observers
        self.journal, self.blobs = Journal(out / "journal.db"), Blobs(out / "blobs")
        self.nodes: dict[str, int] = {}  # site -> node
        if (stands := self.journal.decide("offer", offer.content())) != offer.content():
            raise ConfigError(
                f"{out} holds another federation ({differing(stands, offer.content())}); take another out"
            )

    def run(self) -> Run:
        """Agree with every node, run to the end."""
        agreement = self._agreed()
        run, coordinator = prepared(
            agreement, self.out, self.journal, self.blobs, self.observers, test=self.test, validation=self.validation
        )
        failed: list[BaseException] = []

        def go() -> None:
            try:
                run.go()
            except BaseException as e:
                failed.append(e)

        playing = threading.Thread(target=go, name="run", daemon=True)
        playing.start()
        try:
            self._carry(coordinator, playing)
        finally:
            coordinator.stop()
            playing.join()
            self.journal.close()
        if failed:
            raise failed[0]
        return run

    # ------------------------------------------------------------ before the run
    def _agreed(self) -> Agreement:
        """Every site of the terms has declared its data and worked out the same plan.

        Raises:
            Refused: by a site, with its reason; or two sites whose samples are unlike each other.
        """
        names = self.offer.terms.names
        held: dict[str, Any] = {}
        asked: set[int] = set()
        while set(held) != set(names):
            fresh = [n for n in self.grid.get_node_ids() if n not in asked]
            asked.update(fresh)
            for node, said in self._asked(fresh, {"what": "declare", "offer": self.offer.content()}):
                if said["site"] not in names:
                    continue
                if (why := compatible(said["held"], held)) is not None:
                    raise Refused(f"{said['site']}: {why}")
                held[said["site"]], self.nodes[said["site"]] = said["held"], node
            if not fresh:
                time.sleep(_PAUSE)
        held = self.journal.decide("held", {name: held[name] for name in names})
        agreement = Agreement(self.offer, held)
        self._asked(self.nodes.values(), {"what": "agree", **agreement.content(), "hash": agreement.hash})
        return agreement

    def _asked(self, nodes: Any, content: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """What nodes say to a question, each with its node.

        Raises:
            Refused: one of them refuses.
        """
        due = {self._push(node, "query", content): node for node in nodes}
        found: list[tuple[int, dict[str, Any]]] = []
        while due:
            for reply in self.grid.pull_messages(list(due)):
                node = due.pop(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    raise Refused(f"node {node} cannot take part: {reply.error.reason}")
                said, _ = unpacked(reply.content)
                if "refused" in said:
                    raise Refused(f"{said.get('site') or f'node {node}'}: {said['refused']}")
                found.append((node, said))
            time.sleep(_PAUSE / 4)
        return found

    def _push(self, node: int, kind: str, content: Mapping[str, Any], body: bytes = b"") -> str:
        message = flwr("app").Message(packed(content, body), dst_node_id=node, message_type=kind)
        (id,) = self.grid.push_messages([message])
        return id

    # ------------------------------------------------------------ the run
    def _carry(self, coordinator: Coordinator, playing: threading.Thread) -> None:
        """One job at a time to each node. A message that came to nothing is sent again: the node answers the same."""
        out: dict[str, tuple[str, str]] = {}  # message -> site, job
        while playing.is_alive():
            busy = {site for site, _ in out.values()}
            for site, node in self.nodes.items():
                job = None if site in busy else coordinator.desk.next(site)
                if job is not None:
                    out[self._push(node, "train", {"job": job}, self.blobs.get(job["payload"]))] = site, job["id"]
            for reply in self.grid.pull_messages(list(out)) if out else ():
                site, id = out.pop(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    coordinator.desk.counts[f"again {site}"] += 1
                    continue
                said, body = unpacked(reply.content)
                if "refused" in said:
                    raise Refused(f"{site}: {said['refused']}")
                coordinator.take(site, id, self.blobs.put(body))
            time.sleep(_PAUSE / 4)


# ---------------------------------------------------------------- the client app


def client_app(
    data: Callable[[Mapping[str, Any]], Any] | None = None, policy: Policy | Path | str | None = None
) -> Any:
    """A Flower `ClientApp`: one site. The node's operator says which, and what it may use, in its `--node-config`:
    `site="cleveland" data="cleveland.npz" out="sites/cleveland"`.

    Args:
        data: gives the samples for that configuration; default: the file it names under "data".
        policy: what this site takes part in.

    Raises:
        MissingExtra: without Flower.
    """
    app: Any = flwr("clientapp").ClientApp()
    rules = policy if isinstance(policy, Policy) else Policy.read(None if policy is None else Path(policy))

    def reply(message: Any, context: Any, answer: Callable[[Node], tuple[dict[str, Any], bytes]]) -> Any:
        config = dict(context.node_config)
        try:
            node = Node(config, config.get("data") if data is None else data(config), rules)
            try:
                content = packed(*answer(node))
            finally:
                node.store.close()
        except FedloomError as e:
            content = packed({"refused": str(e), "site": config.get("site", "")})
        return flwr("app").Message(content, reply_to=message)

    @app.query()
    def query(message: Any, context: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        given, _ = unpacked(message.content)
        return reply(
            message,
            context,
            lambda node: (node.declare(given) if given["what"] == "declare" else node.agree(given), b""),
        )

    @app.train()
    def train(message: Any, context: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        given, body = unpacked(message.content)
        return reply(message, context, lambda node: ({}, node.work(given["job"], body)))

    return app


class Node:
    """A site for the length of one message: what lasts is in its folder."""

    def __init__(self, config: Mapping[str, Any], data: Any, policy: Policy) -> None:
        if "site" not in config or data is None:
            raise ConfigError("""which site is this? flower-supernode --node-config 'site="cleveland" data="c.npz"'""")
        self.site, self.data, self.policy = str(config["site"]), data, policy
        self.store = Store(Path(str(config.get("out") or Path("sites") / self.site)))
        self.store.tidy()

    def declare(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Look at an offer; say what is held."""
        offer = Offer.read(given["offer"])
        self.policy.check(offer)
        if self.site not in offer.terms.names:
            return {"site": self.site, "held": {}}
        said = declaration(holdings(self.data, offer, self.site))
        if self.store.decide("joined", [offer.content(), said]) != [offer.content(), said]:
            raise Refused(f"{self.store.path.parent} belongs to another federation, or to other data")
        return {"site": self.site, "held": said}

    def agree(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The plan, worked out here and not believed."""
        agreement = Agreement.read(given)
        joined = self.store.fact("joined")
        if joined is None or [agreement.offer.content(), dict(agreement.held[self.site])] != joined:
            raise Refused("the plan is not what was offered, or says something else of this site's data")
        if agreement.hash != given["hash"]:
            raise Refused(f"this site works the plan out as {agreement.hash}, the server as {given['hash']}")
        self.store.decide("agreement", agreement.content())
        return {"site": self.site}

    def work(self, job: Mapping[str, Any], payload: bytes) -> bytes:
        """One job: the same one gets the same bytes again."""
        content = self.store.fact("agreement")
        if content is None:
            raise Refused("no plan was agreed on")
        agreement = Agreement.read(content)
        held = holdings(self.data, agreement.offer, self.site)
        first = agreement.offer.terms.clients[self.site][0]
        plan = agreement.plan(agreement.federation(samples_of(held, first)))
        return _Working(plan, Carried(self.site, agreement.hash, payload), self.store).answer(job)


class Carried:
    """The way to the server when a message brought everything and takes everything back."""

    def __init__(self, site: str, plan: str, payload: bytes) -> None:
        self.site, self.plan, self.payload = site, plan, payload

    def fetch(self, name: str, blobs: Blobs) -> Path:
        """Where the payload lies, under its name."""
        if blobs.put(self.payload) != name:
            raise Refused("the payload is not the one the job names")
        return blobs.checked(name)

    def ask(self, *_: Any) -> Any:
        """Raises NotSupported: Flower's client apps answer one message with one."""
        raise NotSupported("a question in mid-job cannot be asked over Flower; use `fedloom serve` and `fedloom join`")


class _Working(Site):
    """A site for one job."""

    def __init__(self, plan: Any, link: Any, store: Store) -> None:
        super().__init__(plan, link, store, piece=0)

    def answer(self, job: Mapping[str, Any]) -> bytes:
        """The bytes of the reply."""
        return self.store.blobs.get(self.store.reply(str(job["id"])) or self._run(job))
