"""FedBN against FedAvg, judged on the domain that does worst."""

from __future__ import annotations

from _clients import AtClients
from fedbn import ARMS, GRID, NOTES, setting

from fedloom.claims import Beats, Claim

claim = Claim(
    method="fedbn",
    statement="the accuracy in the worst of four domains is at least two points higher than FedAvg's",
    setting=setting,
    arms=ARMS,
    grid=GRID,
    measure=AtClients("worst10", last=1),
    rule=Beats("fedbn", "fedavg", by=0.02),
    notes=NOTES,
)
