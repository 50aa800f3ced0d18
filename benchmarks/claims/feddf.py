"""FedDF against FedAvg (Lin et al. 2020, section 4): fusing an ensemble on unlabelled data where labels are skewed."""

from __future__ import annotations

import torch
from _settings import have

import fedloom as fl
from fedloom.claims import Beats, Claim, Final, Setting
from fedloom.data import federate


def setting(seed: int, quick: bool) -> Setting:
    """20 clients, labels skewed (Dirichlet 0.1), 300 more images without labels at the server."""
    torch.set_num_threads(1)
    if have("fashion-mnist"):
        data = federate("fashion-mnist", 20, "dirichlet:0.1", seed, limit=3000, public=0.1, val=0.15, client_test=0.05)
    else:
        data = federate("digits", 20, "dirichlet:0.1", seed, public=0.2, val=0.15, client_test=0.05)
    return Setting(fl.Classification(model="mlp:64"), data, 3 if quick else 30)


WORK = fl.SGD(epochs=5, batch_size=10)

claim = Claim(
    method="feddf",
    statement="ends at least a point above FedAvg after as many rounds",
    setting=setting,
    arms={
        "feddf": fl.FedDF(cohort=8, solver=WORK, distil=fl.Adam(steps=100, batch_size=64)),
        "fedavg": fl.FedAvg(cohort=8, solver=WORK),
    },
    grid={"solver.lr": (0.01, 0.03, 0.1), "distil.lr": (3e-4, 3e-3)},
    measure=Final(),
    rule=Beats("feddf", "fedavg", by=0.01),
    notes="The paper uses CIFAR and ResNets, thousands of server steps with early stopping; here 100 steps a round "
    "and a dense network. FedAvg has no use for unlabelled data.",
)
