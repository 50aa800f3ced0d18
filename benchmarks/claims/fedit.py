"""FedIT against LoRA alone (Zhang et al. 2024): tuning one frozen base together, on plays by speaker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from _clients import AtClients
from torch import nn

import fedloom as fl
from fedloom.claims import Beats, Claim, Setting
from fedloom.data import Data, Federation
from fedloom.data.sources import load
from fedloom.keyed import generator
from fedloom.models import build

ROLES = 10


@dataclass(frozen=True)
class Alone(fl.FedPer):
    """The same adapters, trained at each client by itself."""

    personal: tuple[str, ...] = ("*",)
    rank: int = 4

    def module(self, net: nn.Module) -> nn.Module:
        return fl.FedIT(rank=self.rank).module(net)


@lru_cache(1)
def base() -> nn.Module:
    """A next-character model that has read articles, not plays: 400 steps of Adam."""
    text = load("text-lm", 0, length=64).train
    net = build("char-transformer:width=48,depth=2,heads=4", (64,), 256, seed=0)
    rng, adam = generator(0, "base"), torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(400):
        rows = torch.randint(len(text), (32,), generator=rng)
        loss = F.cross_entropy(net(text.x[rows]).flatten(0, 1), text.y[rows].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net


def setting(seed: int, quick: bool) -> Setting:
    """The ten speakers with most lines, 60 windows of 64 characters of each."""
    torch.set_num_threads(1)
    read = load("shakespeare", seed, length=64)
    roles = read.groups.bincount().argsort(descending=True)[:ROLES]
    parts: list[Data] = []
    for role in roles.tolist():
        rows = (read.groups == role).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "windows", role))[:60]]
        parts.append(read.train.rows(rows))
    data = Federation.from_clients(
        parts, val=0.15, client_test=0.3, seed=seed, classes=256, name="shakespeare, 10 roles"
    )
    return Setting(fl.NextToken(model=base()), data, 2 if quick else 10, {"evaluate_every": 5})


WORK = fl.Adam(steps=10, batch_size=16)

claim = Claim(
    method="fedit",
    statement="held-out loss of adapters tuned together is at most 0.98 times that of adapters tuned alone",
    setting=setting,
    arms={"fedit": fl.FedIT(cohort=ROLES, solver=WORK, rank=4), "alone": Alone(cohort=ROLES, solver=WORK)},
    grid={"solver.lr": (1e-3, 3e-3, 1e-2)},
    measure=AtClients("loss", last=1, lower=True),
    rule=Beats("fedit", "alone", ratio=0.98),
    notes="The paper tunes LLaMA-7B on categories of instructions and asks GPT-4; here a small character model that "
    "read articles is tuned on speakers of plays, and judged by held-out loss. Both arms train the same "
    "adapters as long.",
)
