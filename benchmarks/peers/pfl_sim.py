"""FedAvg on pfl-research's simulated backend: one process per core with one thread each, joined by
torch.distributed.

Training, weighting, aggregation and the central optimizer are pfl's own (`FederatedAveraging`,
`SimulatedBackend`, `WeightByDatapoints`, SGD with learning rate 1). Users of unequal size are dealt to the
processes by pfl's `user_id_to_weight`. Every user takes part once a round; its samples are laid out once an
epoch in that epoch's order, and pfl asks the user's dataset for its batches once an epoch. It would ask for
them in evaluation too, so evaluation is off, also in pfl's first round, where no parameter of pfl turns it off.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.turns import Turns
from benchmarks.variant import reader, vector
from benchmarks.workloads import Workload, workload

PROCESSES = 2


def play(name: str, plans: Path | None, turns: Turns, rounds: int) -> None:
    """Rank 0 takes turns and starts the other ranks, which follow it."""
    rank = int(os.environ.get("RANK", "0"))
    followers = [] if rank else _join(name, plans, rounds)
    torch.set_num_threads(1)
    _run(workload(name), plans, turns if rank == 0 else None, rounds)
    for process in followers:
        process.wait(timeout=60)


def _join(name: str, plans: Path | None, rounds: int) -> list[subprocess.Popen[bytes]]:
    """Set up torch.distributed as torchrun does, and start the processes after this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "bench",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    command = [sys.executable, "-m", "benchmarks.variant", "pfl", name, "--rounds", str(rounds)]
    command += ["--plans", str(plans)] if plans else []
    return [
        subprocess.Popen(
            command,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, PROCESSES)
    ]


def _run(work: Workload, plans: Path | None, turns: Turns | None, rounds: int) -> None:
    """The simulation of one rank. Importing pfl joins torch.distributed, hence only here."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    if work.method != "fedavg" or work.cohort:
        raise ValueError(f"{work.name}: here pfl runs FedAvg with every client in every round")
    clients, offsets, plan = len(work.sizes), work.offsets, reader(plans, work)
    now = _Round()

    class Network(torch.nn.Module):
        """The network with the two functions that pfl requires; without evaluation it calls only the first."""

        def __init__(self) -> None:
            super().__init__()
            self.net = work.module()

        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.net(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            raise NotImplementedError("evaluation is off")

    class Model(PyTorchModel):
        """pfl's model without evaluation: pfl asks for it in round 0 whatever `evaluation_frequency` is."""

        def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:
            return Metrics()

    class User(PyTorchTensorDataset):
        """A user of one round, whose samples come in another order in each epoch. Where nothing is evaluated only
        pfl's `do_multiple_epochs_of` calls `iter`, once an epoch."""

        def __init__(self, client: int) -> None:
            epochs = [(work.x.index_select(0, index), work.y.index_select(0, index)) for index in now.indices[client]]
            super().__init__(epochs[0], user_id=str(client))  # tells its size, hence its weight
            self._epochs = iter(epochs)

        def iter(self, batch_size: int) -> Iterable[tuple[torch.Tensor, ...]]:
            x, y = next(self._epochs)  # asked once more than there are epochs, this ends the run
            return zip(x.split(batch_size), y.split(batch_size), strict=True)

    class Turn(TrainingProcessCallback):
        """Tells the time after each round and waits for the next turn; the other ranks follow rank 0."""

        def on_train_begin(self, *, model: Any) -> Metrics:
            if turns:
                turns.ready(pfl=version("pfl"), torch=torch.__version__, processes=PROCESSES, intraop_threads=1)
            self._next(0)
            return Metrics()

        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            if turns:
                seconds = time.perf_counter() - now.began
                turns.done(seconds, lambda: vector([p for p in network.parameters() if p.requires_grad]))
            return not self._next(central_iteration + 1), Metrics()

        def _next(self, round: int) -> bool:
            wanted = torch.tensor(int(turns.wait()) if turns else 0)
            torch.distributed.broadcast(wanted, 0)
            if wanted and round < rounds:
                now.indices = [order + offset for order, offset in zip(plan(round)[1], offsets, strict=True)]
            now.began = time.perf_counter()
            return bool(wanted)

    network = Network()
    model = Model(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0),
    )
    users = range(clients)
    weights = dict(enumerate(work.sizes)) if len(set(work.sizes)) > 1 else None
    data = FederatedDataset(User, get_user_sampler("minimize_reuse", list(users)), weights)
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=clients,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=work.epochs, local_learning_rate=work.lr, local_batch_size=work.batch),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Turn()],
        send_metrics_to_platform=False,
    )


class _Round:
    """The round under way: which samples in which order, `(epochs, n)` for each client; and when it began."""

    def __init__(self) -> None:
        self.indices: list[torch.Tensor] = []
        self.began = 0.0
