"""FedAST (Askin, Sharma, Joe-Wong, Joshi, UAI 2024): several models train at once on the same clients.

    task m     has R_m requests under way (sum R_m = R), a buffer B_m of size b_m = ceil(R_m / rho), a version
    client:    does its requests one after the other, whatever they are for:   Delta = y - x_m^s
    server:    Delta joins B_m; when there are b_m:   x_m <- x_m + server_lr / b_m * sum Delta;   version += 1
               as many requests as task m lacks go to clients drawn at random
    adaptive   every 3/4 R arrivals per task:   R_m in proportion to sqrt(v_m), in units of rho,
               v_m = sum_j ||Delta_j - mean||^2 / (J ||mean||^2 K_m^2)   over its last J updates, of K_m steps each

R is `requests`, rho `ratio`, J `window`. The tasks are the networks of the run's task, by name, each with its samples
(see `several`). Running statistics are averaged as they are, not their differences to x_m^s.
Sent: the task's name and x_m down, Delta and its steps up. Kept at clients: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, Declined
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver

from .several import Training, judged, lacking, samples, scatter, share_out


@dataclass(frozen=True)
class FedASTState(State):
    """tasks by name; arrivals since requests were last shared out."""

    tasks: dict[str, Training]
    arrivals: int = 0


@register
@dataclass(frozen=True)
class FedAST(Method):
    """Buffered asynchronous training of several models on one population and clock. A round is one step of one of them.

    Args:
        requests: R, jobs under way or waiting at clients at any time, of all tasks.
        ratio: rho, requests per buffered update, >= 1.
        adaptive: requests follow the spread of updates; False: every task keeps its equal share.
        window: J, >= 2 (authors' code: 8).
        ends: steps after which each task has ended, in the order of the networks; its requests then go to the others in
            proportion to theirs. (): never.
    """

    card = Card(
        id="fedast",
        title="FedAST",
        paper="FedAST: Federated Asynchronous Simultaneous Training",
        authors="B. Askin, P. Sharma, C. Joe-Wong, G. Joshi",
        venue="UAI",
        year=2024,
        url="https://arxiv.org/abs/2406.00302",
        family="systems",
        summary="several models train at once on the same clients, each with a buffer and a share of the requests",
        down=None,
        up=None,
        why_bytes="4 per number of the task's network both ways; its name down, 8 more up",
        needs=frozenset({"clock", "replies", "families"}),
        reduces=(("one network, as many requests as are buffered, all in at once", "fedavg (weight = uniform)"),),
        deviations=(
            "one solver and server_lr for all tasks, so step sizes drop out of v_m; v_m is not averaged over a period",
            "a task ends after a number of steps, not at an accuracy on test data",
            "requests follow the square root of v_m as in the analysis; the authors' code halves v_m",
        ),
        claim="all tasks reach their targets in less time than when synchronous rounds train them side by side",
    )

    requests: int = 18
    ratio: int = 3
    solver: Solver = SGD(lr=0.1, steps=10, batch_size=32)
    server_lr: float = 1.0
    adaptive: bool = True
    window: int = 8
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.ratio < 1 or self.requests < self.ratio or self.window < 2 or any(n < 1 for n in self.ends):
            raise ConfigError(f"{self} cannot be: requests >= ratio >= 1, window >= 2, every number of `ends` >= 1")

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Enough arrivals for requests to be shared out anew."""
        return {"method": cls(requests=9, ratio=2, window=2, solver=SGD(lr=0.1, steps=2, batch_size=4)), "rounds": 5}

    def start(self, clients: Clients, before: FedASTState | None = None) -> FedASTState:
        names = list(clients.models)
        if self.requests < self.ratio * len(names) or len(self.ends) not in (0, len(names)):
            raise ConfigError(f"{self} does not fit {len(names)} networks: `ratio` requests and one of `ends` for each")
        tasks = before.tasks if before else {m: Training(model.initial(), 0) for m, model in clients.models.items()}
        if list(tasks) != names:
            raise ConfigError(
                f"FedAST cannot start from a run of the networks {list(tasks)}; this one's are {names}. Give those, or "
                f"leave before out"
            )
        going = {m: float(task.share) for m, task in tasks.items() if not self.done(tasks, m)}
        return FedASTState(share_out(tasks, going, self.requests, self.ratio))

    async def local(self, client: Client, task: str, params: Tensor) -> Message:
        data = samples(client.data, list(client.models).index(task))
        if not data:
            raise Declined(f"no samples of task {task}")
        out = await client.train(params, solver=self.solver, model=client.models[task], data=data)
        return Message(delta=out.vector - params, steps=out.steps)

    def round(self, state: FedASTState, clients: Clients) -> FedASTState:
        while True:
            for name in lacking(state.tasks, [job.payload.task for job in clients.jobs], self.requests):
                clients.send(clients.sample(1), self.local, task=name, params=state.tasks[name].params)
            if not (got := clients.receive(count=1)):
                return state  # nobody is there
            (reply,) = got
            name, task = reply.sent.task, state.tasks[reply.sent.task]
            recent = (*task.recent, (reply.delta, reply.steps))[-self.window :] if self.adaptive else ()
            layout, since = clients.models[name].layout, reply.sent.params + reply.delta - task.params
            delta = layout.keep_statistics(reply.delta, since)  # x_m stays until the buffer is full
            task = replace(task, buffer=(*task.buffer, delta), recent=recent)
            full = len(task.buffer) >= math.ceil(task.share / self.ratio)
            if full:
                mean = torch.stack(task.buffer).mean(0)
                params = layout.keep_statistics(task.params + self.server_lr * mean, task.params + mean)
                task = replace(task, params=params, version=task.version + 1, buffer=())
            state = self.adapted(FedASTState(state.tasks | {name: task}, state.arrivals + 1))
            if full:
                return self.ended(state, name, clients)

    def adapted(self, state: FedASTState) -> FedASTState:
        """Requests shared out by v_m, when it is time."""
        going = {m: task for m, task in state.tasks.items() if task.share}
        due = self.adaptive and state.arrivals >= 0.75 * self.requests * len(going)
        if not due or any(len(task.recent) < self.window for task in going.values()):
            return state
        weights = {m: math.sqrt(scatter(task.recent)) for m, task in going.items()}
        return FedASTState(share_out(state.tasks, weights, self.requests, self.ratio))

    def ended(self, state: FedASTState, name: str, clients: Clients) -> FedASTState:
        """A task with all its steps done gives its requests to the others."""
        if not self.done(state.tasks, name):
            return state
        for job in clients.jobs:
            if job.payload.task == name:
                clients.cancel(job.number)
        shares = {m: float(task.share) for m, task in state.tasks.items() if task.share and m != name}
        return FedASTState(share_out(state.tasks, shares, self.requests, self.ratio))

    def done(self, tasks: Mapping[str, Training], name: str) -> bool:
        """Whether a task has all its steps behind it."""
        return bool(self.ends) and tasks[name].version >= self.ends[list(tasks).index(name)]

    def evaluate(self, state: FedASTState, clients: Clients) -> dict[str, Evaluation]:
        """Every task's model on the samples of its task."""
        return judged(clients, {name: task.params for name, task in state.tasks.items()})
