"""FedAvg on Flower's simulation runtime (Message API, Ray backend): one actor per core, each with one
thread.

Flower leaves the training loop to its user. Here that is R1's, on a model that each actor keeps between
messages, so the difference to R1 is the framework: messages, serialisation, scheduling, aggregation.
Evaluation is off. A round is timed in the server's strategy, from `configure_train` to the end of
`aggregate_train`.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.baselines import Local
from benchmarks.turns import Turns
from benchmarks.variant import reader
from benchmarks.workloads import workload

client_app = ClientApp()


@cache
def trainer(name: str, plans: str) -> tuple[Local, Any]:
    """The model, data and batch orders of this actor process, built with its first message."""
    torch.set_num_threads(1)
    work = workload(name)
    return Local(work), reader(Path(plans) if plans else None, work)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's round: load the arrays, train, send the arrays back with the number of samples."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    local, plan = trainer(str(config["workload"]), str(config["plans"]))
    client = int(context.node_config["partition-id"])
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    start = [torch.from_numpy(a) for a in arrays.to_numpy_ndarrays()]
    local.train(client, start, plan(int(config["server-round"]) - 1)[1][client])  # type: ignore[call-overload]
    reply = RecordDict(
        {
            "arrays": ArrayRecord([p.detach().numpy() for p in local.params]),
            "metrics": MetricRecord({"num-examples": local.work.sizes[client]}),
        }
    )
    return Message(content=reply, reply_to=message)


class Timed(FedAvg):
    """Flower's FedAvg that waits for its turn and says how long each round took."""

    def __init__(self, turns: Turns, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.turns, self.over, self.began = turns, False, 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Wait for the turn, then as FedAvg."""
        self.over = self.over or not self.turns.wait()
        if self.over:
            return []
        self.began = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg, then tell the time."""
        if self.over:
            return None, None
        arrays, metrics = super().aggregate_train(server_round, replies)
        seconds = time.perf_counter() - self.began
        if arrays is None:
            raise RuntimeError("no client replied; the log above says why")
        self.turns.done(seconds, lambda: np.concatenate([a.ravel() for a in arrays.to_numpy_ndarrays()]))
        return arrays, metrics


def play(name: str, plans: Path | None, turns: Turns, rounds: int) -> None:
    """Run the simulation, one round a turn."""
    work = workload(name)
    if work.method != "fedavg" or work.cohort:
        raise ValueError(f"{name}: here Flower runs FedAvg with every client in every round")
    server_app = ServerApp()
    start = [p.detach().numpy().copy() for p in work.module().parameters() if p.requires_grad]
    clients, cores = len(work.sizes), os.cpu_count() or 2

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < clients:
            time.sleep(0.05)
        strategy = Timed(
            turns,
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_available_nodes=clients,
        )
        turns.ready(flwr=version("flwr"), ray=version("ray"), torch=torch.__version__, actors=cores, intraop_threads=1)
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(start),
            num_rounds=rounds,
            train_config=ConfigRecord({"workload": name, "plans": str(plans or "")}),
        )

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_name="ray",
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": cores}},
    )
