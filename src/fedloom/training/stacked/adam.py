"""Adam over blocks: the gradient is built, and one fused kernel moves weights and moments in a single pass."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch

from fedloom.training.solvers import Adam

from .batches import Step
from .cohort import Cohort
from .forward import Forward
from .rows import Piece
from .sinks import Explicit
from .steps import Blocks, Track, clip_scale, differentiate
from .twin import Twin


class AdamSteps:
    """Adam with decoupled decay along the gradient.

    Step hooks run explicitly instead: where a direction is zero up to rounding, Adam makes full steps of the rounding,
    so their arithmetic must stay as written.
    """

    how = "fused Adam"

    def __init__(self, cohort: Cohort, twin: Twin, forward: Forward, moving: set[str]) -> None:
        assert isinstance(cohort.solver, Adam)
        self.cohort, self.forward, self.solver = cohort, forward, cohort.solver
        self.blocks = Blocks(cohort, twin, moving, set())
        names = [w.name for w in self.blocks.weights]
        arenas = [twin.blocks(a, names, cohort.k) for a in ("gradient", "first moment", "second moment")]
        self.g, self.m, self.v = (list(a.values()) for a in arenas)
        for moment in (*self.m, *self.v):
            moment.zero_()
        self.blocks.sink(Explicit(arenas[0], bool(self.solver.clip)))
        self.t = torch.zeros((), dtype=torch.float32, device=twin.like.device)

    def active(self, k: int) -> None:
        self.forward.active(k)
        self.blocks.active(k)

    def step(self, step: Step, track: Track) -> None:
        losses = self.forward.losses(step, self.forward.hook)
        seed = step.seed(losses)
        track(losses, seed, step.active)
        differentiate(losses, seed)
        k, solver, weights = step.active, self.solver, self.blocks.weights
        with torch.no_grad():
            scale = None
            if solver.clip:
                for w in weights:
                    w.collect()
                scale = clip_scale(solver.clip, [w.square() for w in weights])
            for w in weights:
                w.flush(scale)
            stacks, g = self.blocks.stacks, [b[:k] for b in self.g]
            if not stacks:
                return
            self.t += 1
            torch._fused_adamw_(
                stacks,
                g,
                [b[:k] for b in self.m],
                [b[:k] for b in self.v],
                [],
                [self.t] * len(stacks),
                lr=solver.lr,
                beta1=solver.betas[0],
                beta2=solver.betas[1],
                weight_decay=solver.weight_decay,
                eps=solver.eps,
                amsgrad=False,
                maximize=False,
            )

    def pieces(self) -> list[Piece]:
        return self.blocks.pieces()

    def carry(self, j: int) -> Any:
        return self.cohort.requests[j].carry
