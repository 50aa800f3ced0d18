"""Ditto against its two ends (Li et al. 2021, section 5): as good at the clients as the better of FedAvg and alone."""

from __future__ import annotations

from _clients import AtClients, NotWorse, own_test

import fedloom as fl
from fedloom.claims import Claim, Setting


def setting(seed: int, quick: bool) -> Setting:
    """150 images a client, labels skewed but shared, so that neither end is best for everybody."""
    return own_test(seed, "dirichlet:0.3", 20, 4 if quick else 25, "mlp:64", 1000 if quick else 3000)


WORK = fl.SGD(epochs=2, batch_size=10)

claim = Claim(
    method="ditto",
    statement="at the clients it is less than a point below the better of FedAvg and local training",
    setting=setting,
    arms={
        "ditto": fl.Ditto(cohort=20, solver=WORK),
        "fedavg": fl.FedAvg(cohort=20, solver=WORK),
        "local training": fl.FedPer(cohort=20, solver=WORK, personal=("*",)),
    },
    grid={"solver.lr": (0.03, 0.1), "lam": (0.1, 0.5, 2.0)},
    measure=AtClients(),
    rule=(NotWorse("ditto", "fedavg", by=0.01), NotWorse("ditto", "local training", by=0.01)),
    notes="All clients take part in every round, so that local training has as much work as the others.",
)
