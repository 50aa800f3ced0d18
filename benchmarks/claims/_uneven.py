"""What the claims about time share: devices whose speeds differ, and one budget of virtual seconds."""

from __future__ import annotations

from _settings import images

import fedloom as fl
from fedloom.claims import Setting

SECONDS = 200.0
TARGET = 0.76  # the highest whole percent a pilot of FedAvg alone reached in half the time, on validation data
WORLD = fl.World(step_seconds=0.02, spread=1.0, jitter=0.2, latency=0.05)
LOCAL = fl.SGD(epochs=5, batch_size=10)


def setting(seed: int, quick: bool) -> Setting:
    """50 clients of about 85 images each, ten at work at a time; the slowest device is some 50 times slower than the
    fastest. Rounds are so many that the budget of seconds ends every run."""
    rounds, limit = (6, 1200) if quick else (4000, 6000)
    return images(seed, "dirichlet:0.3", clients=50, rounds=rounds, limit=limit, world=WORLD)
