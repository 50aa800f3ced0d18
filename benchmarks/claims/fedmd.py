"""FedMD against the same work without talking (Li and Wang 2019, section 3): agreement on public data helps."""

from __future__ import annotations

from dataclasses import replace

from _clients import AtClients, common_test
from fedproto import FOUR

import fedloom as fl
from fedloom.claims import Beats, Claim, Setting


def setting(seed: int, quick: bool) -> Setting:
    """12 clients with 60 images of four classes each, four architectures, 200 public images; judged on all classes."""
    return common_test(seed, 12, 2 if quick else 20, FOUR, classes=4, public=200)


MD = fl.FedMD(
    cohort=12,
    subset=100,
    prepare=fl.SGD(lr=0.05, epochs=10, batch_size=10),
    digest=fl.SGD(lr=0.05, epochs=2, batch_size=10),
    revisit=fl.SGD(lr=0.05, epochs=1, batch_size=10),
)

claim = Claim(
    method="fedmd",
    statement="on all classes, clients of four architectures are at least 2 points better than without the consensus",
    setting=setting,
    arms={"fedmd": MD, "alone": replace(MD, digest=fl.SGD(steps=0))},
    grid={"revisit.lr": (0.01, 0.03, 0.1)},
    measure=AtClients(),
    rule=Beats("fedmd", "alone", by=0.02),
    notes="Both arms prepare on the public labels and then on their own data; alone, they only go on with their own.",
)
