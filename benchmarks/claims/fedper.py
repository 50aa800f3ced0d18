"""FedPer against FedAvg (Arivazhagan et al. 2019, section 4): heads of their own where clients hold few classes."""

from __future__ import annotations

from _clients import AtClients, own_test

import fedloom as fl
from fedloom.claims import Beats, Claim, Setting


def setting(seed: int, quick: bool) -> Setting:
    """120 images a client, of two classes each; a fifth of 50 clients a round."""
    return own_test(seed, "shards:2", 50, 4 if quick else 50, "mlp:64", 1500 if quick else 6000, evaluate_every=2)


WORK = fl.SGD(epochs=2, batch_size=10)

claim = Claim(
    method="fedper",
    statement="at the clients, a shared body under heads of their own is at least 5 points better than one global "
    "model when each client holds two classes",
    setting=setting,
    arms={
        "fedper": fl.FedPer(cohort=10, solver=WORK),
        "fedavg": fl.FedAvg(cohort=10, solver=WORK),
        "local training": fl.FedPer(cohort=10, solver=WORK, personal=("*",)),
    },
    grid={"solver.lr": (0.03, 0.1, 0.3)},
    measure=AtClients(),
    rule=Beats("fedper", "fedavg", by=0.05),
    notes="The paper uses CIFAR-10/100 and MobileNet or ResNet; here Fashion-MNIST and a dense network. Local training "
    "is shown for the reader and is no part of the rule: two classes are easy to learn alone.",
)
