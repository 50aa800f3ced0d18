"""FedProto against local training (Tan et al. 2022, section 5): agreed prototypes help clients with few classes."""

from __future__ import annotations

from _clients import AtClients, own_test

import fedloom as fl
from fedloom.claims import Beats, Claim, Setting
from fedloom.models import family

FOUR = dict(zip("abcd", family("different", dim=32)))


def setting(seed: int, quick: bool) -> Setting:
    """20 clients with 75 images of three classes each, and four architectures."""
    return own_test(seed, "shards:3", 20, 3 if quick else 25, FOUR, 600 if quick else 1500)


WORK = fl.SGD(epochs=1, batch_size=8)

claim = Claim(
    method="fedproto",
    statement="at the clients it is better than local training, over four architectures",
    setting=setting,
    arms={
        "fedproto": fl.FedProto(cohort=20, lam=1.0, solver=WORK),
        "local training": fl.FedProto(cohort=20, lam=0.0, by="head", solver=WORK),
    },
    grid={"solver.lr": (0.03, 0.1)},
    measure=AtClients(),
    rule=Beats("fedproto", "local training"),
    notes="lam is the paper's for MNIST; answers are the nearest prototype, and the own head after local training.",
)
