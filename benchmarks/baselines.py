"""The two baselines every engine is measured against: bare loops, with nothing the work does not need.

R1: one model object, `torch.autograd.grad` and `torch._foreach_add_`, one intra-op thread, client by client.
R2: R1 in two long-lived worker processes with one thread each; the cohort is split longest-first, weights
    travel through shared memory.

Both know FedAvg, FedProx and SCAFFOLD, take an explicit batch order per client, so that their results can
be compared with anybody's, and return the new global weights. With `method` "noop" and "sum" no client
trains: what is timed is the mean of models that all equal the start, or of updates that are already there.

    R1(work).round(work.members(0), work.orders(0))     -> list of tensors, the new global weights
    with R2(work) as pair: pair.round(...)              -> the same, to rounding
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from .workloads import Orders, Workload

Weights = list[Tensor]
"""One tensor per trainable parameter, in the order of `named_parameters()`."""


METHODS = ("fedavg", "fedprox", "scaffold", "noop", "sum")


class Local:
    """The local work of any client, on one reused model: load, train, leave the result in `params`."""

    def __init__(self, work: Workload, device: str = "cpu") -> None:
        self.work = work
        self.module = work.module().to(device)
        self.params: Weights = [p for p in self.module.parameters() if p.requires_grad]
        self.offsets = work.offsets

    def train(self, client: int, start: Weights, order: Tensor, shift: Weights | None = None) -> int:
        """Train a client from `start`; `shift` is added to every gradient. Returns the number of steps."""
        work, params, lr = self.work, self.params, self.work.lr
        steps = 0
        with torch.no_grad():
            torch._foreach_copy_(params, start)
        for permutation in order:
            index = permutation.to(work.x.device) + self.offsets[client]
            xs, ys = work.x.index_select(0, index), work.y.index_select(0, index)
            for at in range(0, len(index), work.batch):
                loss = F.cross_entropy(self.module(xs[at : at + work.batch]), ys[at : at + work.batch])
                grads = torch.autograd.grad(loss, params)
                with torch.no_grad():
                    if work.mu:  # w + lr mu (start - w), before the gradient taken at w is used
                        torch._foreach_lerp_(params, start, lr * work.mu)
                    torch._foreach_add_(params, grads, alpha=-lr)
                    if shift is not None:
                        torch._foreach_add_(params, shift, alpha=-lr)
                steps += 1
        return steps


class Sums:
    """What a worker adds up over its clients: weighted models, and SCAFFOLD's changes of client variates."""

    def __init__(self, like: Weights) -> None:
        self.model = [torch.zeros_like(w) for w in like]
        self.control = [torch.zeros_like(w) for w in like]

    def clear(self) -> None:
        """Back to zero, in place: the tensors may be shared."""
        torch._foreach_zero_(self.model)
        torch._foreach_zero_(self.control)

    def add(self, other: Sums) -> None:
        """Another worker's sums."""
        torch._foreach_add_(self.model, other.model)
        torch._foreach_add_(self.control, other.control)


class Part:
    """Some clients' share of a round: trains them one by one and adds to `sums` as it goes.

    Args:
        variates: for SCAFFOLD the client variates c_i, one list of tensors per client id; may be shared.
    """

    def __init__(self, local: Local, sums: Sums, variates: list[Weights]) -> None:
        self.local, self.sums, self.variates = local, sums, variates
        method = local.work.method
        if method not in ("fedavg", "fedprox", "scaffold", "noop", "sum"):
            raise ValueError(f"no baseline for the method {method!r}; there are fedavg, fedprox, scaffold, noop, sum")
        self.updates = (
            [updates_of([p.shape for p in local.params], i) for i in range(DISTINCT_UPDATES)] if method == "sum" else []
        )

    @torch.no_grad()
    def run(self, start: Weights, control: Weights, jobs: list[tuple[int, Tensor, float]]) -> None:
        """Jobs are (client, batch order, weight)."""
        method, total = self.local.work.method, self.sums.model
        for client, order, weight in jobs:
            if method == "noop":
                torch._foreach_add_(total, start, alpha=weight)
            elif method == "sum":
                torch._foreach_add_(total, self.updates[client % DISTINCT_UPDATES], alpha=weight)
            elif method == "scaffold":
                self._scaffold(client, start, control, order, weight)
            else:
                with torch.enable_grad():
                    self.local.train(client, start, order)
                torch._foreach_add_(total, self.local.params, alpha=weight)

    def _scaffold(self, client: int, start: Weights, control: Weights, order: Tensor, weight: float) -> None:
        """Option II of the paper: c_i' = c_i - c + (start - trained) / (steps lr)."""
        own = self.variates[client]
        shift = list(torch._foreach_sub(control, own))
        with torch.enable_grad():
            steps = self.local.train(client, start, order, shift)
        torch._foreach_add_(self.sums.model, self.local.params, alpha=weight)
        change = torch._foreach_sub(start, self.local.params)
        torch._foreach_mul_(change, 1 / (steps * self.local.work.lr))
        torch._foreach_sub_(change, control)
        torch._foreach_add_(own, change)
        torch._foreach_add_(self.sums.control, change)


DISTINCT_UPDATES = 8
"""Different updates of the "sum" workload, used in turn: 8 x 6.7 MB is more than the caches hold."""


def updates_of(shapes: Iterable[torch.Size], which: int) -> Weights:
    """An update of the "sum" workload, by its number."""
    rng = torch.Generator().manual_seed(which)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def weighting(work: Workload, clients: list[int]) -> list[float]:
    """Weights that add up to 1: by samples; equal for SCAFFOLD, as in its paper."""
    sizes = [1 if work.method == "scaffold" else work.sizes[i] for i in clients]
    return [n / sum(sizes) for n in sizes]


class R1:
    """A bare sequential loop. `weights` is the current global model, `control` SCAFFOLD's server variate."""

    def __init__(self, work: Workload, device: str = "cpu") -> None:
        self.work = work
        self.local = Local(work, device)
        self.weights: Weights = [p.detach().clone() for p in self.local.params]
        self.control: Weights = [torch.zeros_like(w) for w in self.weights]
        variates = [[torch.zeros_like(w) for w in self.weights] for _ in range(_variates(work))]
        self.sums = Sums(self.weights)
        self.part = Part(self.local, self.sums, variates)

    def round(self, clients: list[int], orders: Orders) -> Weights:
        """One round over `clients`, each with its batch order; keeps and returns the new global weights."""
        self.sums.clear()
        jobs = list(zip(clients, orders, weighting(self.work, clients), strict=True))
        self.part.run(self.weights, self.control, jobs)
        self.weights, self.control = _moved(self.work, self.weights, self.control, self.sums)
        return self.weights

    def close(self) -> None:
        """Nothing to close."""


def _variates(work: Workload) -> int:
    """How many clients keep a variate."""
    return len(work.sizes) if work.method == "scaffold" else 0


def _moved(work: Workload, weights: Weights, control: Weights, sums: Sums) -> tuple[Weights, Weights]:
    """The server's step; an update ("sum") is added, a mean of models replaces the model."""
    if work.method == "sum":
        return torch._foreach_add(weights, sums.model), control  # type: ignore[return-value]
    if work.method == "scaffold":
        control = torch._foreach_add(control, sums.control, alpha=1 / len(work.sizes))  # type: ignore[assignment]
    return [w.clone() for w in sums.model], control


# --------------------------------------------------------------------------------------------- two processes
class R2:
    """R1 in two long-lived processes. A context manager; `round` as in R1."""

    def __init__(self, work: Workload, workers: int = 2) -> None:
        self.work = work
        self.weights: Weights = [
            p.detach().clone().share_memory_() for p in work.module().parameters() if p.requires_grad
        ]
        self.control: Weights = [torch.zeros_like(w).share_memory_() for w in self.weights]
        variates = [[torch.zeros_like(w).share_memory_() for w in self.weights] for _ in range(_variates(work))]
        for tensor in (work.x, work.y):
            tensor.share_memory_()
        spawn = mp.get_context("spawn")
        self.sums: list[Sums] = []
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for _ in range(workers):
            sums = Sums(self.weights)
            for tensor in (*sums.model, *sums.control):
                tensor.share_memory_()
            here, there = spawn.Pipe()
            process = spawn.Process(
                target=_worker, args=(there, work, self.weights, self.control, sums, variates), daemon=True
            )
            process.start()
            there.close()
            self.sums.append(sums)
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def round(self, clients: list[int], orders: Orders) -> Weights:
        """As `R1.round`."""
        jobs = list(zip(clients, (o.numpy() for o in orders), weighting(self.work, clients), strict=True))
        for pipe, share in zip(self.pipes, longest_first(self.work, jobs, len(self.pipes)), strict=True):
            pipe.send(share)
        for pipe in self.pipes:
            pipe.recv()
        first, *rest = self.sums
        for other in rest:
            first.add(other)
        weights, control = _moved(self.work, self.weights, self.control, first)
        torch._foreach_copy_(self.weights, weights)
        torch._foreach_copy_(self.control, control)
        return self.weights

    def close(self) -> None:
        """End the workers."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)

    def __enter__(self) -> R2:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def longest_first(work: Workload, jobs: list[Any], workers: int) -> list[list[Any]]:
    """Jobs dealt to workers: the longest that is left goes to the worker with the fewest steps."""
    load = [0] * workers
    shares: list[list[Any]] = [[] for _ in range(workers)]
    for job in sorted(jobs, key=lambda job: -work.steps(job[0])):
        least = load.index(min(load))
        load[least] += work.steps(job[0])
        shares[least].append(job)
    return shares


def _worker(
    pipe: Connection, work: Workload, weights: Weights, control: Weights, sums: Sums, variates: list[Weights]
) -> None:
    torch.set_num_threads(1)
    part = Part(Local(work), sums, variates)
    pipe.send("ready")
    while (jobs := pipe.recv()) is not None:
        sums.clear()
        part.run(weights, control, [(i, torch.from_numpy(order), weight) for i, order, weight in jobs])
        pipe.send("done")
