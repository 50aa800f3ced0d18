"""FedAsync against synchronous averaging (Xie et al. 2020): time to a target when durations differ."""

from __future__ import annotations

from _uneven import LOCAL, SECONDS, TARGET, setting

import fedloom as fl
from fedloom.claims import Arm, Beats, Claim, FirstReach

claim = Claim(
    method="fedasync",
    statement="with ten clients at work at a time, FedAsync reaches 76 % in at most half the time of FedAvg",
    setting=setting,
    arms={
        "fedasync": Arm(fl.FedAsync(concurrency=10, solver=LOCAL), evaluate_every=20),
        "fedavg": Arm(fl.FedAvg(cohort=10, solver=LOCAL)),
    },
    grid={"solver.lr": (0.03, 0.1, 0.3)},
    measure=FirstReach(TARGET, unit="time"),
    rule=Beats("fedasync", "fedavg", ratio=0.5),
    budget=("time", SECONDS),
    notes="The paper compares per gradient, not per second; time is what asynchrony is for. alpha, rho and the "
    "discount are the defaults.",
)
