"""A federation of real processes on loopback, killed where a schedule says, and what it must come to.

Processes are forked from one that has imported everything, so that a start takes milliseconds; they die of SIGKILL,
before or after a call that the schedule names.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import upsets
from attacks import Attack
from disk import Disk, allow_writing, forbid_writing
from network import Proxy
from upsets import Upset

from fedloom.data import Data, Federation
from fedloom.deploy import Authority, Policy, Serving, Store, Terms, join
from fedloom.deploy.agreement import Offer
from fedloom.deploy.link import Link
from fedloom.deploy.replay import replay, same
from fedloom.deploy.serving import holdings, samples_of
from fedloom.method import catalogue
from fedloom.runs import Recipe, Run, checkpoint
from fedloom.testing.tiny import tiny_federation

catalogue()  # once, in the process that forks
SIZES = (18, 5, 10, 7)
# the process that forks imports from here, too
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["harness", "counting", "fedloom.deploy.replay", "fedloom.cli.app"])
UNHURRIED = 60.0
"""A deadline as long as this is one nobody misses, whatever happens."""

SERVER_POINTS = (
    "fedloom.deploy.journal:Journal.open",
    "fedloom.deploy.journal:Journal.reply",
    "fedloom.deploy.journal:Journal.close_exchange",
    "fedloom.deploy.journal:Journal.declare",
    "fedloom.deploy.journal:Journal.outlived",
    "fedloom.deploy.blobs:Blobs.put",
    "fedloom.deploy.blobs:Blobs.append",
    "fedloom.deploy.blobs:Blobs._place",
    "fedloom.deploy.coordinator:Coordinator.take",
    "fedloom.runs.checkpoint:save",
)
SITE_POINTS = (
    "fedloom.deploy.store:Store.done",
    "fedloom.deploy.site:Site._do",
    "fedloom.deploy.store:Store.memory",
    "fedloom.deploy.store:Store._rebase",
    "fedloom.deploy.store:Store.sweep",
    "fedloom.deploy.blobs:Blobs.put",
    "fedloom.deploy.blobs:Blobs.append",
    "fedloom.deploy.blobs:Blobs._place",
    "fedloom.deploy.link:Link.reply",
    "fedloom.deploy.link:Link._upload",
    "fedloom.deploy.link:Link.next_job",
    "fedloom.engines.local:Local.run",
)


@dataclass(frozen=True)
class Kill:
    """SIGKILL before (or after) the nth call of a function, `module:Class.name`."""

    point: str
    nth: int
    after: bool = False


@dataclass
class Setting:
    """What is run: small, but with memories, sums, replies that do not count, and evaluation at the sites."""

    method: str = "counting:Counting"
    rounds: int = 3
    sites: tuple[str, ...] = ("a", "b", "c")
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    tls: bool = True
    test: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Samples are made again in every process: tensors would be shared between them."""
        return {k: v for k, v in self.__dict__.items() if k != "samples"}

    def made(self) -> tuple[Recipe, Terms]:
        given = {"model": "mlp:4", "seed": 3, "evaluate_every": 2, **self.recipe}
        names: Any = self.terms.get("names", list(self.sites))
        recipe = Recipe(method=self.method, rounds=self.rounds, set=self.options, **given)
        return recipe, Terms(**{**self.terms, "names": names})

    @property
    def held_out(self) -> Data | None:
        """Test samples that lie at the coordinator."""
        return tiny_federation(dtype=torch.float32).test if self.test else None

    @property
    def clocked(self) -> bool:
        """Whether the time that things take has a say in the result."""
        recipe, terms = self.made()
        return (terms.deadline or UNHURRIED) < UNHURRIED or "clock" in recipe.method_object().card.needs

    @functools.cached_property
    def samples(self) -> list[Data]:
        """One data set a client."""
        n = sum(self.made()[1].names.values())
        whole = tiny_federation(sizes=[SIZES[i % len(SIZES)] for i in range(n)], dtype=torch.float32)
        return list(samples_of(whole).values())

    def of(self, site: str) -> Any:
        ids = self.made()[1].clients[site]
        parts = [self.samples[i] for i in ids]
        return parts if len(parts) > 1 else parts[0]

    def local(self, test: Data | None = None, **options: Any) -> Run:
        """The same on the local engine."""
        recipe, terms = self.made()
        offer = Offer.of(recipe.replace(engine="sequential"), terms)
        here: dict[int, Data] = {}
        for site, ids in terms.clients.items():
            here.update(samples_of(holdings(self.of(site), offer, site), ids[0]))
        federation = Federation.from_clients(
            [here[i] for i in sorted(here)],
            ordered=True,
            test=test or self.held_out,
            classes=4,
            val=recipe.val,
            **options,
        )
        federation.info["task"] = "classification"
        return offer.made.experiment(federation=federation).run()


# ---------------------------------------------------------------- the processes


@dataclass(frozen=True)
class Life:
    """What a process is started with: where it dies, what was broken in it on purpose, when its clock jumps."""

    kills: list[Kill]
    hurt: Callable[[], None] | None
    jumps: list[tuple[float, float]]
    slow: float = 0.0


def plant(life: Life) -> None:
    """In a child: die where the schedule says."""
    import importlib

    kills, hurt, slow = life.kills, life.hurt, life.slow
    upsets.jumping(life.jumps)
    if hurt is not None:
        hurt()
    if slow:
        Link.reply = _dawdling(Link.reply, slow)  # type: ignore[method-assign]
    for kill in kills:
        module, _, path = kill.point.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, name, _dying(getattr(owner, name), kill))


def _dying(function: Callable[..., Any], kill: Kill) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.nth and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == kill.nth and kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _dawdling(function: Callable[..., Any], most: float) -> Callable[..., Any]:
    rng = random.Random(os.getpid())

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        time.sleep(rng.uniform(0, most))
        return function(*args, **kwargs)

    return wrapped


def _witnessed(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A site that is told its reply was taken looks whether it is in the journal: only then was it acknowledged."""

    @functools.wraps(function)
    def wrapped(link: Link, job: str, *args: Any, **kwargs: Any) -> Any:
        verdict = function(link, job, *args, **kwargs)
        if verdict == {"taken": "yes"} and not _kept(folder / "server" / "journal.db", job):
            (folder / f"lost-{job}").touch()
        return verdict

    return wrapped


def _kept(journal: Path, job: str) -> bool:
    """Whether a journal holds the reply to a job, or has done with its round."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30)) as c:
        try:
            held = c.execute(
                "SELECT (SELECT 1 FROM replies WHERE job = ?), (SELECT 1 FROM jobs WHERE id = ?)", (job, job)
            )
            reply, under_way = held.fetchone()
        except sqlite3.OperationalError:  # it cannot be read while its disk is full and nobody has it open
            return True
    return reply is not None or under_way is None


def server_main(setting: Setting, folder: Path, port: int, life: Life) -> None:
    with _logged(folder / "server.log"):
        torch.set_num_threads(1)
        plant(life)
        certs = folder / "certs" if setting.tls else None
        Serving(setting.made(), folder / "server", f"127.0.0.1:{port}", certs, test=setting.held_out).run()


def site_main(setting: Setting, folder: Path, name: str, url: str, life: Life) -> None:
    with _logged(folder / f"{name}.log"):
        torch.set_num_threads(1)
        Link.reply = _witnessed(Link.reply, folder)  # type: ignore[method-assign]
        plant(life)
        join(
            url,
            setting.of(name),
            name,
            certs=folder / "certs" / "sites" / name if setting.tls else None,
            out=folder / name,
            policy=Policy(modules=["counting"]),
            approve=lambda approval: True,
            patience=30,
            wait=5,
        )


class _logged:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> bool:
        if error[0] is not None:
            allow_writing(os.getpid())
            with open(self.path, "a") as f:
                f.write("".join(traceback.format_exception(*error)))
            os._exit(1)
        return False


@dataclass
class Schedule:
    """Who dies where, incarnation by incarnation; who else is killed after how many seconds; which faults the network
    has, and how often (by default as `network.RATES`); how long a site may dawdle before it sends a reply; and all that
    is no death.
    """

    server: list[list[Kill]] = field(default_factory=list)
    sites: dict[str, list[list[Kill]]] = field(default_factory=dict)
    timed: list[tuple[float, str]] = field(default_factory=list)
    network: int | None = None
    slow: float = 0.0
    upsets: list[Upset] = field(default_factory=list)
    rates: dict[str, float] | None = None

    @staticmethod
    def seeded(seed: int, setting: Setting) -> Schedule:
        rng = random.Random(seed)

        def lives(points: tuple[str, ...]) -> list[list[Kill]]:
            deaths = rng.choice((0, 1, 1, 2, 3))
            return [[Kill(rng.choice(points), rng.randint(1, 8), rng.random() < 0.5)] for _ in range(deaths)]

        sites = {name: lives(SITE_POINTS) for name in setting.sites}
        timed = [
            (rng.uniform(0.05, 2.0), rng.choice(["server", *setting.sites])) for _ in range(rng.choice((0, 0, 1, 2)))
        ]
        network = None if setting.tls else rng.randrange(1 << 30)
        deadline = setting.made()[1].deadline or UNHURRIED
        slow = 1.5 * deadline if deadline < UNHURRIED else 0.2
        more = [upsets.possible(u) for u in upsets.seeded(rng, setting)]
        return Schedule(lives(SERVER_POINTS), sites, sorted(timed), network, slow, more)


class Unfinished(AssertionError):
    """A federation that did not come to its end in time, or a process that failed; with what it wrote."""


class Course:
    """A schedule as it happens to a federation."""

    def __init__(self, bench: Bench, schedule: Schedule) -> None:
        self.bench, self.schedule, self.setting = bench, schedule, bench.setting
        self.proxy = None if schedule.network is None else Proxy(bench.port, schedule.network, schedule.rates)
        scheme = "https" if self.setting.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{bench.port if self.proxy is None else self.proxy.port}"
        self.lives = {"server": 0, **dict.fromkeys(self.setting.sites, 0)}
        self.done, self.stopped = set[str](), set[str]()
        self.timed, self.due = list(schedule.timed), list(schedule.upsets)
        self.now: list[Upset] = []
        self.past: list[Upset] = []
        self.attacks: list[Attack] = []
        for who in {u.who for u in schedule.upsets if u.kind == "full disk"}:
            bench.disks[who] = Disk(bench.folder / who, "32m")
        self.began = time.monotonic()

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    @property
    def got_through(self) -> list[str]:
        return [text for attack in self.attacks for text in attack.got_through]

    def go(self, seconds: float) -> None:
        for who in self.lives:
            self.start(who)
        while len(self.done) < len(self.lives):
            if self.passed > seconds:
                left = sorted(set(self.lives) - self.done)
                raise Unfinished(f"not at its end after {seconds} s: {left}\n{self.bench.logs()}")
            if lost := [p.name for p in self.bench.folder.glob("lost-*")]:
                raise Unfinished(f"acknowledged, and not in the journal: {lost}")
            self.kill()
            self.upset()
            self.mend()
            for who, process in list(self.bench.running.items()):
                if who not in self.done | self.stopped and process.exitcode is not None:
                    self.ended(who, process.exitcode)
            time.sleep(0.005)

    def close(self) -> None:
        for attack in self.attacks:
            attack.stop()
            self.bench.counts.update(attack.tried)
        for process in self.bench.running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        if self.proxy is not None:
            self.proxy.close()
            self.bench.counts.update({f"network: {k}": n for k, n in self.proxy.counts.items()})
        for who, disk in self.bench.disks.items():  # what is on it is looked at afterwards
            disk.free()
            kept = disk.folder.with_name(f"{who}-kept")
            shutil.copytree(disk.folder, kept)
            disk.close()
            disk.folder.rmdir()
            kept.rename(disk.folder)

    # ------------------------------------------------------------ deaths, and new lives
    def start(self, who: str) -> None:
        plans = self.schedule.server if who == "server" else self.schedule.sites.get(who, [])
        kills = plans[self.lives[who]] if self.lives[who] < len(plans) else []
        self.lives[who] += 1
        jumps = [(self.began + u.at, u.hours) for u in self.schedule.upsets if u.kind == "jump" and u.who == who]
        life = Life(kills, self.bench.hurt, jumps, self.schedule.slow)
        where = (self.setting, self.bench.folder)
        target, args = (
            (server_main, (*where, self.bench.port)) if who == "server" else (site_main, (*where, who, self.url))
        )
        process: Any = _PROCESSES.Process(target=target, args=(*args, life), daemon=True)
        process.start()
        self.bench.running[who] = process
        if any(u.kind == "no room" and u.who == who for u in self.now):
            forbid_writing(process.pid)

    def kill(self) -> None:
        while self.timed and self.timed[0][0] <= self.passed:
            _, who = self.timed.pop(0)
            if who not in self.done and self.bench.running[who].is_alive():
                os.kill(self.bench.running[who].pid, signal.SIGKILL)

    def ended(self, who: str, code: int) -> None:
        """A process is no more: it is done, it is started again, or it stopped for a reason it has given."""
        if code == 0:
            befell = [u for u in self.now if u.who == who and u.kind in upsets.STOPS]
            if any(self.passed - u.at > upsets.NOTICED for u in befell):
                raise Unfinished(f"{who} was let in all the same: {befell}")
            self.done.add(who)
        elif code == -signal.SIGKILL:
            self.bench.counts["killed " + ("server" if who == "server" else "site")] += 1
            self.start(who)
        elif self.has_reason(who):
            self.bench.counts["stopped, and said why"] += 1
            self.stopped.add(who)
        else:
            raise Unfinished(f"{who} failed with {code}\n{self.bench.logs()}")

    def has_reason(self, who: str) -> bool:
        """Whether the last thing a process said is what an upset makes it say."""
        said = (self.bench.folder / f"{who}.log").read_text().rstrip().splitlines()[-1]
        return any(u.who == who and re.search(upsets.SAYS.get(u.kind, "$^"), said) for u in (*self.now, *self.past))

    # ------------------------------------------------------------ what is no death
    def upset(self) -> None:
        for upset in [u for u in self.due if u.at <= self.passed and (not u.after or self.lives[u.after] > 1)]:
            self.due.remove(upset)
            if upset.who in self.done | self.stopped or any(u.who == upset.who for u in self.now):
                continue  # one thing at a time
            self.bench.counts[upset.kind] += upset.kind not in upsets.ATTACKS
            if upset.kind in upsets.ATTACKS:
                others = [s for s in self.setting.sites if s != upset.who]
                attack = Attack(
                    upset.kind,
                    f"{self.url.rpartition(':')[0]}:{self.bench.port}",
                    self.bench.folder,
                    self.setting.tls,
                    upset.who,
                    others,
                    self.lives["server"],
                )
                attack.start()
                self.attacks.append(attack)
                continue
            upsets.begin(self.bench, upset)
            self.now.append(replace(upset, at=self.passed))

    def mend(self) -> None:
        for upset in [u for u in self.now if self.passed >= u.at + u.lasts]:
            if upset.kind in upsets.STOPS and upset.who not in self.stopped | self.done:
                continue
            upsets.end(self.bench, upset)
            self.now.remove(upset)
            self.past.append(upset)
        for who in [w for w in self.stopped if not any(u.who == w for u in self.now)]:
            self.stopped.remove(who)
            self.start(who)


class Bench:
    """One federation in a folder.

    Args:
        hurt: run in every process first: breaks something on purpose, to see that the suite notices.

    Attributes:
        counts: what happened, by kind.
        running: process by name; `disks` those that have one of their own.
    """

    def __init__(self, setting: Setting, folder: Path, hurt: Callable[[], None] | None = None) -> None:
        self.setting, self.folder, self.hurt = setting, folder, hurt
        self.counts, self.running = Counter[str](), dict[str, Any]()
        self.disks: dict[str, Disk] = {}
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        if setting.tls:
            authority = Authority.init(folder / "certs")
            for name in setting.sites:
                authority.issue(name)

    def run(self, schedule: Schedule, seconds: float = 90.0) -> None:
        """To the end, with every death and every upset of the schedule."""
        course = Course(self, schedule)
        try:
            course.go(seconds)
        finally:
            course.close()
        assert not course.got_through, f"accepted what must be refused: {course.got_through[:3]}"

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))

    # ------------------------------------------------------------ what it must come to
    def saved(self) -> dict[str, Any]:
        return checkpoint.load(self.folder / "server" / "checkpoints")[1]

    def check(self, reference: Run | None = None) -> None:
        """The model, every memory and every book are those of the undisturbed run; where the clock on the wall decided
        who was late, of the run that the journal's closings make.
        """
        run = self.replayed()
        if self.setting.clocked:
            saved = self.saved()
            assert _figures(saved["rows"]) == _figures(run.rows), "other figures"
            self.check_sites(saved, run.memories, late=True)
            return
        reference = reference or self.setting.local()
        saved = self.saved()
        assert saved["version"] == self.setting.rounds
        assert same(saved["state"], reference.state), "another model"
        assert _figures(saved["rows"]) == _figures(reference.rows), "other figures"
        self.check_sites(saved, reference.memories)
        assert saved["books"] == reference.host.books, "the server's books differ"

    def check_sites(self, saved: dict[str, Any], memories: dict[int, dict[str, Any]], late: bool = False) -> None:
        """Every site has, under the name the server counts on, the memory of the undisturbed run."""
        _, terms = self.setting.made()
        for name, ids in terms.clients.items():
            store = Store(self.folder / name)
            try:
                held = store.memories()
                store.audit()
                for id in ids:
                    version = saved["memories"].get(id, {}).get("version")
                    if version is None:
                        assert id not in memories, f"client {id} of {name} never counted"
                        continue
                    assert version in held.get(id, {}), f"{name} lost version {version} of client {id}"
                    assert same(held[id][version], memories[id]), f"the memory of client {id} at {name} differs"
                if saved["books"] and not late:  # what was late was booked where it was done
                    assert store.books() == {i: saved["books"][i] for i in ids}, f"the books at {name} differ"
            finally:
                store.close()

    def replayed(self) -> Run:
        """Computed again from the closings; fails where it is another model."""
        run, equal = replay(self.folder / "server", self.setting.samples, self.setting.held_out)
        assert equal, "a replay of the closings gives another model"
        return run


def _figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on the clock on the wall."""
    return [{k: v for k, v in row.items() if k not in ("wall", "exclusions")} for row in rows]


def free_port() -> int:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fresh() -> Path:
    return Path(tempfile.mkdtemp(prefix="fedloom-chaos-"))
