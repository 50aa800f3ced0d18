"""HeteroFL against leaving small devices out (Diao et al. 2021, section 4): half a fleet at a quarter of the width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from _settings import images

import fedloom as fl
from fedloom.claims import Beats, Claim, Final, Setting


@dataclass(frozen=True)
class FullSizeOnly(fl.HeteroFL):
    """The same work at the clients that carry the whole network; the others cannot take part."""

    def round(self, state, clients):
        able: Sequence[int] = [i for i in clients.ids if self.rates[i % len(self.rates)] == 1.0]
        return super().round(state, clients.only(able))


def setting(seed: int, quick: bool) -> Setting:
    """Ten clients, labels skewed (Dirichlet 0.3): even ones carry the whole network, odd ones a quarter of it."""
    return images(seed, "dirichlet:0.3", 10, 3 if quick else 30, "mlp:128", limit=600 if quick else 1500)


HFL = fl.HeteroFL(cohort=10, rates=(1.0, 0.25), solver=fl.SGD(epochs=2, batch_size=10))

claim = Claim(
    method="heterofl",
    statement="with half of the devices at a quarter of the width, the whole network ends at least a point above "
    "training at the full-size half alone",
    setting=setting,
    arms={
        "heterofl": HFL,
        "full size only": FullSizeOnly(**{f: getattr(HFL, f) for f in HFL.__dataclass_fields__}),
        "everybody full size": replace(HFL, rates=(1.0,)),
    },
    grid={"solver.lr": (0.03, 0.1, 0.3)},
    measure=Final(),
    rule=Beats("heterofl", "full size only", by=0.01),
    notes="Everybody at full size is shown for the reader. The curves hold the narrow slice as it is (rate0.25).",
)
