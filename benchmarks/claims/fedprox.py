"""FedProx with many stragglers (Li et al. 2020, section 5.2): keep partial work, and pull it to the global model."""

from __future__ import annotations

import torch

import fedloom as fl
from fedloom.claims import Beats, Claim, Final, Setting
from fedloom.data import federate


def setting(seed: int, quick: bool) -> Setting:
    """The paper's Synthetic(1,1): 30 devices of very unequal size, softmax regression; 20 epochs of batches of 10."""
    torch.set_num_threads(1)
    federation = federate("synthetic:1,1", seed=seed, val=0.1, client_test=0.1)
    return Setting(fl.Classification(model="softmax"), federation, rounds=2 if quick else 60)


def arm(mu: float, drop: bool = False) -> fl.FedProx:
    return fl.FedProx(cohort=10, mu=mu, stragglers=0.9, drop=drop, solver=fl.SGD(epochs=20, batch_size=10))


claim = Claim(
    method="fedprox",
    statement="with 90 % stragglers, keeping partial work ends at a lower loss than dropping it, and mu = 1 at a lower "
    "one than mu = 0",
    setting=setting,
    arms={"mu = 1": arm(1.0), "mu = 0": arm(0.0), "drop": arm(0.0, drop=True)},
    grid={"solver.lr": (0.003, 0.01, 0.03)},
    measure=Final("global.loss", last=20, lower=True),
    rule=(Beats("mu = 0", "drop"), Beats("mu = 1", "mu = 0")),
    notes="mu = 1 is the paper's best for this data and is not tuned here. The paper shows the training loss over 200 "
    "rounds with one step size (0.01) for all arms; here it is the test loss, 60 rounds, and a step size for each arm.",
)
