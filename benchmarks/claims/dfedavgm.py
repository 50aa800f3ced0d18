"""DFedAvgM on two graphs and alone (Sun et al. 2023, section 6): denser graphs agree sooner."""

from __future__ import annotations

from _clients import common_test

import fedloom as fl
from fedloom.claims import Beats, Claim, FirstReach, Setting


def setting(seed: int, quick: bool) -> Setting:
    """16 nodes with 60 images of three classes each, judged on all classes."""
    return common_test(seed, 16, 4 if quick else 60, "mlp:64", classes=3)


WORK = fl.SGD(epochs=1, batch_size=10, momentum=0.9)

claim = Claim(
    method="dfedavgm",
    statement="nodes reach 60 % on all classes in at most 0.8 times the rounds on a complete graph as on a ring, and "
    "on a ring in at most 0.8 times those of training alone",
    setting=setting,
    arms={
        "complete": fl.DFedAvgM(topology="complete", solver=WORK),
        "ring": fl.DFedAvgM(topology="ring", solver=WORK),
        "alone": fl.FedPer(cohort=16, solver=WORK, personal=("*",)),
    },
    grid={"solver.lr": (0.003, 0.01, 0.03)},
    measure=FirstReach(0.60, "personal.mean"),
    rule=(Beats("complete", "ring", ratio=0.8), Beats("ring", "alone", ratio=0.8)),
    notes="Rounds are counted up to the budget of 60. Three classes cannot give 60 % on ten, so training alone always "
    "takes the whole budget; the second rule asks that a ring does not.",
)
