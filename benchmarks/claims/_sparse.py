"""What the FedOpt claims share: classes of documents from their words, a linear model, and one grid for every arm."""

from __future__ import annotations

import numpy as np
import torch
from _settings import have

import fedloom as fl
from fedloom.claims import Beats, Claim, Final, Setting
from fedloom.data import load

GRID = {"solver.lr": (0.1, 1.0, 10.0), "server_lr": (0.01, 0.1, 1.0)}


def documents(seed: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Words present `(n, words)` and topics: the papers of Cora, or generated ones where they are not there."""
    if have("cora"):
        cora = load("cora").train
        return (cora.x > 0).float(), cora.y, "cora words"
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 7, 2700)
    chance = 1 / np.arange(1, 1434) ** 0.9
    chance = chance / chance.sum() * rng.gamma(0.3, 1 / 0.3, (7, 1433))  # every topic has its own words
    words = rng.random((2700, 1433)) < np.minimum(18 * chance, 0.9)[topics]
    return torch.from_numpy(words).float(), torch.from_numpy(topics), "generated words"


def setting(seed: int, quick: bool) -> Setting:
    """50 clients of about 37 papers each, of few topics; five a round, one local epoch."""
    torch.set_num_threads(1)
    x, y, name = documents(seed)
    federation = fl.Federation.from_arrays(
        x, y, 50, "dirichlet:0.2", test=0.2, val=0.15, client_test=0.0, seed=seed, name=name
    )
    options = {"evaluate_every": 4}
    return Setting(fl.Classification(model="softmax"), federation, 4 if quick else 80, options)


def claim_of(member: type[fl.Method]) -> Claim:
    """An adaptive server against FedAvg."""
    name, local = member.card.id, fl.SGD(epochs=1, batch_size=10)
    return Claim(
        method=name,
        statement=f"on sparse features {member.card.title} ends at least one point above FedAvg, on one grid for both",
        setting=setting,
        arms={name: member(cohort=5, solver=local), "fedavg": fl.FedAvg(cohort=5, solver=local)},
        grid=GRID,
        measure=Final("global.accuracy", last=5),
        rule=Beats(name, "fedavg", by=0.01),
        notes="The paper's sparse tasks are Stack Overflow's tags and words; here the words of the papers of Cora "
        "(2,708 papers, 1,433 words, about 18 in each), 80 rounds. FedAvg's server step size is tuned too.",
    )
