"""Engines: interchangeable ways to run the same jobs. `make` gives one by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedloom.errors import ConfigError, unknown
from fedloom.training import Trainer

from .base import Answer, Engine, Job, Outcome, Plan
from .debug import Debug
from .fold import Fold, Total
from .local import Local
from .team import Cluster
from .threads import cores
from .workers import Workers, can_fork

NAMES = ("auto", "sequential", "stacked", "pool", "ray", "debug")


def make(
    name: str,
    plan: Plan,
    answer: Answer | None = None,
    workers: int | None = None,
    chosen: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
) -> Engine:
    """An engine by name.

    Args:
        name: "auto" (measures, and says what it took), "sequential", "stacked", "pool" (several processes),
            "ray" (actors of a cluster), "debug".
        workers: of the pool or the cluster; default one per core.
        chosen: decisions of an earlier run to repeat.
        cluster: for "ray"; default one on this machine.

    Raises:
        ConfigError: unknown name, workers < 1, a cluster for another engine than "ray", or workers that cannot use the
            plan's GPU.
        MissingExtra: "ray" without that package.
    """
    if name not in NAMES:
        raise unknown("engine", name, NAMES)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} cannot be: at least 1")
    if cluster is not None and name != "ray":
        raise ConfigError(f"{cluster} is of the engine 'ray', and this run's engine is {name!r}")
    on_gpu = plan.device.type != "cpu"
    if on_gpu:
        _check_gpu(name, plan.device, workers, cluster or Cluster())
    if name == "debug":
        return Debug(plan, answer)
    if name == "sequential":
        return Local(plan, Trainer("plain", chosen), 1, answer, name="sequential")
    if name == "stacked":
        return Local(plan, Trainer("stacked", chosen), 1, answer)
    count = workers or (1 if on_gpu else min(len(cores()), 8))
    trainer = Trainer("auto", chosen)
    if name == "ray":
        from .ray import Actors, need_ray

        need_ray()
        where = cluster or Cluster()
        return Local(plan, trainer, count, answer, lambda run: Actors(count, where, plan, run, trainer, answer), "ray")
    if count == 1 or not can_fork():
        return Local(plan, trainer, 1, answer)
    return Local(plan, trainer, count, answer, lambda run: Workers(count, plan, run, trainer, answer), "pool")


def _check_gpu(name: str, device: torch.device, workers: int | None, cluster: Cluster) -> None:
    """Refuse processes that could not use the GPU: forked ones, and actors that were given none."""
    if name == "ray":
        if cluster.gpus == 0:
            raise ConfigError(
                f"device={str(device)!r} with actors that have no GPU: give each one, or a share of one, as in "
                f"cluster=Cluster(gpus=1) (--worker-gpus 1)"
            )
    elif name == "pool" or (workers or 1) > 1:
        given = f"engine={name!r}" + (f", workers={workers}" if workers else "")
        raise ConfigError(
            f"{given} on {str(device)!r}: a GPU cannot be used by forked processes, and one trains many clients at "
            f"once. Use engine='auto' without workers, or engine='ray' with cluster=Cluster(gpus=1) for several GPUs"
        )


__all__ = ["NAMES", "Cluster", "Engine", "Fold", "Job", "Local", "Outcome", "Plan", "Total", "make"]
