"""FedKSeed against FedAvg (Qin et al. 2024): how near scalars on seeds come to first-order tuning."""

from __future__ import annotations

import torch
from _clients import NotWorse

import fedloom as fl
from fedloom.claims import Claim, Final, Setting
from fedloom.data import federate


def setting(seed: int, quick: bool) -> Setting:
    """Softmax regression on the digits of scikit-learn: all its 650 weights are tuned at 20 clients."""
    torch.set_num_threads(1)
    data = federate("digits", 20, "dirichlet:0.5", seed, val=0.15, client_test=0.05)
    return Setting(fl.Classification(model="softmax"), data, 3 if quick else 30)


WORK = fl.SGD(steps=50, batch_size=16)
SEEDS = fl.FedKSeed(cohort=10, candidates=256, solver=WORK)

claim = Claim(
    method="fedkseed",
    statement="after as many rounds and steps it ends less than 5 points below FedAvg on the same weights",
    setting=setting,
    arms={
        "fedkseed": SEEDS,
        "fedavg": fl.FedAvg(cohort=10, solver=WORK),
        "fedkseed-pro": fl.FedKSeed(cohort=10, candidates=256, solver=WORK, pro=True),
    },
    grid={"solver.lr": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
    measure=Final(),
    rule=NotWorse("fedkseed", "fedavg", by=0.05),
    notes="The paper tunes billion-sized language models; the direction that fits a small budget is how far forward "
    "passes along 256 seeds lag behind gradients. Pro is shown for the reader. Bytes are in the curves.",
)
