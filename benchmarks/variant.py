"""The process of one variant: `python -m benchmarks.variant r1 mlp`; it is asked for rounds as `turns`
says.

Variants: r1, r2, flower, pfl, fedloom:ENGINE. The peers are run by the interpreter of their own
environment.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .turns import Turns
from .workloads import Round, Workload, flat, on, workload


def main() -> None:
    """Parse, then hand over to the variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant")
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, default=1000, help="at most so many rounds will be asked for")
    parser.add_argument("--plans", type=Path, help="members and batch orders of every round, from torch.save")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    turns = Turns()
    name, _, engine = args.variant.partition(":")
    if name in ("r1", "r2"):
        work = on(args.device, workload(args.workload))
        baseline(name, work, reader(args.plans, work), turns, args.device)
    elif name == "flower":
        from .peers import flower_sim

        flower_sim.play(args.workload, args.plans, turns, args.rounds)
    elif name == "pfl":
        from .peers import pfl_sim

        pfl_sim.play(args.workload, args.plans, turns, args.rounds)
    elif name == "fedloom":
        from . import ours

        ours.play(workload(args.workload), engine, turns, args.device)
    else:
        parser.error(f"unknown variant {args.variant!r}: r1, r2, flower, pfl or fedloom:ENGINE")


def reader(path: Path | None, work: Workload) -> Callable[[int], Round]:
    """Members and batch orders of a round: from a file, or the workload's own."""
    if path is None:
        return work.plan
    rounds: list[Round] = torch.load(path)
    return rounds.__getitem__


def baseline(name: str, work: Workload, plan: Callable[[int], Round], turns: Turns, device: str) -> None:
    """R1 or R2, one round after another."""
    from .baselines import R1, R2

    if name == "r1":
        torch.set_num_threads(1)
    loop = R1(work, device) if name == "r1" else R2(work)
    turns.ready(torch=torch.__version__, **settings())
    done = 0
    while turns.wait():
        members, orders = plan(done)
        began = time.perf_counter()
        weights = loop.round(members, orders)
        synchronise(device)
        turns.done(time.perf_counter() - began, lambda weights=weights: vector(weights))
        done += 1
    loop.close()


def vector(weights: list[torch.Tensor]) -> np.ndarray:
    """The weights as one vector."""
    return flat(weights).cpu().numpy()


def settings() -> dict[str, object]:
    """Thread settings of this process, for the record."""
    return {"intraop_threads": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def synchronise(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
