"""What adding up costs: updates sent to a flat server, in shared memory, and in a tree of aggregators.

    python -m benchmarks.lifl                      writes results/lifl.md and lifl.json

As many clients as there are updates, spread over two worker processes, each make one of a 6.7 MB model (its parameters
times a number), and the mean of all is wanted. What is compared is how they are added up:

    sent, kept     every update serialised and sent through a pipe; the server adds them when all have come
    sent           the same, but the server adds each as it comes
    shared, flat   engine pool: an update is written into shared memory, and the server adds it as it comes (fan-in 1)
    shared, tree   engine pool: a worker adds up 8 of its updates, the server the sums of these as they come (LIFL)

Seconds are those of a round, the best of several, and so hold the making of the updates, which is the same in all four
and measured by itself. Memory is what all processes together take at most (what they share counted once, Linux's Pss),
workers included, less what this process took before it had any. Each line is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fedloom as fl
from fedloom.engines.allocator import keep_freed_memory
from fedloom.engines.fold import weighted
from fedloom.engines.heap import ParentSide, Place
from fedloom.methods.systems.lifl import Lifl
from fedloom.written import dumps, loads

from .claims._updates import NUMBERS, Updates, update

RESULTS = Path(__file__).parent / "results"
WORKERS, FAN_IN = 2, 8
UPDATES = (50, 100, 200, 500, 1000)
WAYS = ("making alone", "sent, kept", "sent", "shared, flat", "shared, tree")


# ---------------------------------------------------------------- through the library


class Pool:
    """Rounds on engine pool."""

    def __init__(self, method: fl.Method, updates: int) -> None:
        x, y = torch.zeros(updates, 1), torch.zeros(updates, dtype=torch.long)
        federation = fl.Federation.from_arrays(x, y, clients=updates, partition=fl.IID())
        task = fl.Classification(model=torch.nn.Linear(1, 2))
        self.run = fl.Run(fl.Experiment(method, task, federation, rounds=1, engine="pool", workers=WORKERS))
        self.run.host.start()
        self.sent = 0

    def round(self) -> Tensor:
        """The mean of all updates."""
        self.run.host.round()
        return self.run.host.state.mean

    def close(self) -> None:
        self.run.host.engine.close()


# ---------------------------------------------------------------- a server that updates are sent to


class Sent:
    """Two processes of clients, and a server at the other end of their pipes.

    Args:
        keep: the server adds up when all have come.
    """

    def __init__(self, updates: int, keep: bool) -> None:
        keep_freed_memory()  # as the engines do
        self.updates, self.keep = updates, keep
        context = multiprocessing.get_context("fork")
        self.params = torch.ones(NUMBERS).share_memory_()
        pairs = [context.Pipe() for _ in range(WORKERS)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=self._clients, args=(k, p), daemon=True) for k, (_, p) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        self.sent = 0

    def _clients(self, k: int, pipe: Connection) -> None:
        torch.set_num_threads(1)
        while pipe.recv():
            for id in range(k, self.updates, WORKERS):
                pipe.send_bytes(dumps(fl.Message(mean=update(self.params, id))))

    def round(self) -> Tensor:
        """The mean of all updates."""
        torch.set_num_threads(1)
        for pipe in self.pipes:
            pipe.send(True)
        kept: list[Tensor] = []
        total, came = torch.zeros(NUMBERS), 0
        while came < self.updates:
            for pipe in wait(self.pipes):
                assert isinstance(pipe, Connection)
                letter = pipe.recv_bytes()
                self.sent += len(letter)
                came += 1
                if self.keep:
                    kept.append(loads(letter)["mean"])
                else:
                    total.add_(loads(letter)["mean"])
        return (weighted(kept, [1.0] * len(kept)) if self.keep else total) / self.updates

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.join()


def way(name: str, updates: int) -> Pool | Sent:
    """One of `WAYS`, ready for rounds."""
    if name.startswith("sent"):
        return Sent(updates, keep=name == "sent, kept")
    fan_in = 1 if name == "shared, flat" else FAN_IN
    return Pool(Lifl(inner=Updates(NUMBERS, kept=name == "making alone"), fan_in=fan_in), updates)


# ---------------------------------------------------------------- one line


def measured(name: str, updates: int) -> dict[str, Any]:
    """Memory of a first round, seconds of the best of the following, bytes that come to the server in one."""
    claim, sent = ParentSide.claim, 0

    def counted(self: ParentSide, place: Place) -> Tensor:
        nonlocal sent
        sent += place.nbytes
        return claim(self, place)

    before = taken()
    one = way(name, updates)
    with Watch() as watch:
        mean = one.round()
    expected = 1.0 if name == "making alone" else 1.0 + (updates - 1) / 2048
    assert torch.allclose(mean, torch.full((NUMBERS,), expected), rtol=1e-4)
    ParentSide.claim, one.sent = counted, 0  # type: ignore[method-assign]
    times = [timed(one.round) for _ in range(max(1, min(5, 200 // updates)))]
    one.close()
    found = {"seconds": min(times), "bytes": (one.sent + sent) // len(times), "memory": watch.most - before}
    return {"way": name, "updates": updates, **found}


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Watch:
    """The most memory this process and its children take while it is open."""

    def __enter__(self) -> Watch:
        self.most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, taken())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def taken() -> int:
    """Bytes of memory of this process and its children, what several share counted once."""
    total = 0
    for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


# ---------------------------------------------------------------- all lines


def lines() -> Iterator[dict[str, Any]]:
    """Each way with each number of updates, in a process of its own."""
    context = multiprocessing.get_context("fork")
    for updates in UPDATES:
        for name in WAYS:
            ours, theirs = context.Pipe()
            process = context.Process(target=_line, args=(theirs, name, updates))
            process.start()
            yield ours.recv()
            process.join()


def _line(pipe: Connection, name: str, updates: int) -> None:
    pipe.send(measured(name, updates))


def page(found: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The results, to be read."""
    cell = {(line["way"], line["updates"]): line for line in found}
    size = NUMBERS * 4

    def table(title: str, text: Callable[[dict[str, Any]], str], ways: tuple[str, ...]) -> list[str]:
        head = [f"| {title} | {' | '.join(f'{n:,}' for n in UPDATES)} |", "|---" * (len(UPDATES) + 1) + "|"]
        return [*head, *(f"| {w} | {' | '.join(text(cell[w, n]) for n in UPDATES)} |" for w in ways), ""]

    return "\n".join(
        [
            "# Adding up",
            "",
            f"{about['date']}, {about['cores']} cores, {about['machine']}, python {about['python']}, torch "
            f"{about['torch']}; commit {about['commit']}; load average {about['load']:.1f} (above 1 it is slower).",
            "`python -m benchmarks.lifl`",
            "",
            f"Updates of {NUMBERS:,} numbers ({size / 1e6:.1f} MB) made by clients in {WORKERS} processes. Sent: "
            "serialised, through a pipe, to a server that keeps them until all are there, or adds each as it comes. "
            "Shared: written into shared memory once and added from there as they come, each by itself (flat) or in "
            f"leaves of {FAN_IN} (LIFL). Making alone: what every line has in it.",
            "",
            *table("seconds of a round, with so many updates", lambda line: f"{line['seconds']:.2f}", WAYS),
            *table("bytes that come to the server, in updates", lambda line: f"{line['bytes'] / size:,.1f}", WAYS[1:]),
            *table("memory at most, in updates", lambda line: f"{line['memory'] / size:,.0f}", WAYS[1:]),
        ]
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout[:10]
    about = {
        "date": str(date.today()),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
        "load": os.getloadavg()[0],
    }
    found = list(lines())
    text = page(found, about)
    (RESULTS / "lifl.json").write_text(json.dumps({**about, "numbers": NUMBERS, "lines": found}, indent=1) + "\n")
    (RESULTS / "lifl.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
