"""FedBN against FedAvg (Li et al. 2021, section 5): local normalisation where clients see the world differently."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _clients import AtClients

import fedloom as fl
from fedloom.claims import Beats, Claim, Setting
from fedloom.data import Federation
from fedloom.data.sources import load
from fedloom.keyed import generator


def domains(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Images as they are, inverted, blurred, and with a quarter of the contrast."""
    blur = torch.ones(1, 1, 3, 3) / 9
    return x, 1 - x, F.conv2d(x, blur, padding=1), 0.375 + 0.25 * x


def setting(seed: int, quick: bool) -> Setting:
    """The digits of scikit-learn, a quarter for each of four clients, each with a domain of its own."""
    torch.set_num_threads(1)
    read = load("digits", seed)
    whole = fl.Data.cat([d for d in (read.train, read.test) if d is not None])
    order = torch.randperm(len(whole), generator=generator(seed, "domains"))
    parts = []
    for k, rows in enumerate(order.chunk(4)):
        part = whole.rows(rows)
        parts.append(part.replace(x=domains(part.x)[k]))
    data = Federation.from_clients(parts, val=0.15, client_test=0.4, seed=seed, classes=10, name="digits, 4 domains")
    task = fl.Classification(model="cnn-bn", buffers="vector")
    return Setting(task, data, 3 if quick else 25, {"evaluate_every": 5})


WORK = fl.SGD(epochs=1, batch_size=16)
ARMS: dict[str, fl.Method] = {"fedbn": fl.FedBN(cohort=4, solver=WORK), "fedavg": fl.FedAvg(cohort=4, solver=WORK)}
GRID = {"solver.lr": (0.01, 0.03, 0.1)}
NOTES = (
    "The paper uses five sets of digits and a larger network; here one set in four domains. FedAvg averages scales, "
)
NOTES += "shifts and running statistics as it does weights."

claim = Claim(
    method="fedbn",
    statement="the mean accuracy over four domains is at least a point higher than FedAvg's",
    setting=setting,
    arms=ARMS,
    grid=GRID,
    measure=AtClients(last=1),
    rule=Beats("fedbn", "fedavg", by=0.01),
    notes=NOTES,
)
