"""FedDyn against FedAvg (Acar et al. 2021, section 4): rounds to a target with Dirichlet(0.3) labels."""

from __future__ import annotations

from _settings import images

import fedloom as fl
from fedloom.claims import Beats, Claim, FirstReach, Setting


def setting(seed: int, quick: bool) -> Setting:
    """100 clients of about 70 images each, a tenth of them a round, five local epochs."""
    rounds, limit = (4, 2000) if quick else (100, 10000)
    return images(seed, "dirichlet:0.3", clients=100, rounds=rounds, limit=limit, evaluate_every=1)


TARGET = 0.82  # the highest whole percent a pilot of FedAvg alone reached in half the rounds, on validation data
LOCAL = fl.SGD(epochs=5, batch_size=10, weight_decay=1e-3, clip=10.0)

claim = Claim(
    method="feddyn",
    statement="with Dirichlet(0.3) labels, FedDyn reaches 82 % in at most 0.8 times FedAvg's rounds",
    setting=setting,
    arms={"feddyn": fl.FedDyn(cohort=10, alpha=0.01, solver=LOCAL), "fedavg": fl.FedAvg(cohort=10, solver=LOCAL)},
    grid={"solver.lr": (0.03, 0.1, 0.3)},
    measure=FirstReach(TARGET),
    rule=Beats("feddyn", "fedavg", ratio=0.8),
    notes="alpha is the paper's for CIFAR-10, weight decay and clipping are its too; its networks are "
    "convolutional. Here Fashion-MNIST (10,000 of its images) and a dense network.",
)
