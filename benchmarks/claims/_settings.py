"""Settings that several claims share."""

from __future__ import annotations

import torch

import fedloom as fl
from fedloom.claims import Setting
from fedloom.data import Federation, federate, sources


def have(name: str) -> bool:
    """Whether a source's files are there (FEDLOOM_DATA)."""
    return any(s.name == name and s.available for s in sources())


def images(
    seed: int, partition: str, clients: int = 50, rounds: int = 60, model: str = "mlp:64", limit: int = 6000, **options
) -> Setting:
    """Fashion-MNIST, or the digits of scikit-learn where it is not there, with a small network.

    The result's `data` says which it was. `options` go to the experiment.
    """
    torch.set_num_threads(1)
    federation: Federation
    if have("fashion-mnist"):
        federation = federate("fashion-mnist", clients, partition, seed, limit=limit, val=0.15, client_test=0.15)
    else:
        federation = federate("digits", min(clients, 30), partition, seed, val=0.15, client_test=0.15)
    return Setting(fl.Classification(model=model), federation, rounds, options)
