"""FedNova against FedAvg (Wang et al. 2020, section 6): clients that do very different numbers of steps."""

from __future__ import annotations

import torch

import fedloom as fl
from fedloom.claims import Beats, Claim, Final, Setting
from fedloom.data import federate


def setting(seed: int, quick: bool) -> Setting:
    """The paper's Synthetic(1,1): 30 clients, all in every round, whose sizes, and so steps, differ up to 100 fold."""
    torch.set_num_threads(1)
    federation = federate("synthetic:1,1", seed=seed, val=0.1, client_test=0.1)
    return Setting(fl.Classification(model="softmax"), federation, 2 if quick else 60, {"evaluate_every": 2})


LOCAL = fl.SGD(epochs=2, batch_size=10)

claim = Claim(
    method="fednova",
    statement="where clients' numbers of local steps differ, FedNova ends at a lower loss than FedAvg",
    setting=setting,
    arms={"fednova": fl.FedNova(cohort=30, solver=LOCAL), "fedavg": fl.FedAvg(cohort=30, solver=LOCAL)},
    grid={"solver.lr": (0.003, 0.01, 0.03, 0.1)},
    measure=Final("global.loss", last=5, lower=True),
    rule=Beats("fednova", "fedavg"),
    notes="The paper shows the training loss with one step size for both and up to 5 epochs; here it is the test loss, "
    "2 epochs, and a step size for each.",
)
