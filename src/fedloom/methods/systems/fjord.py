"""FjORD (Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane, NeurIPS 2021): ordered dropout, widths in widths.

    client i of tier p_i, every batch:  p drawn from the widths <= p_i;  f_p keeps the first ceil(p K) units of a layer
        L = CE(f_p)                                       or, with distil = alpha > 0,
        L = CE(f_{p_i}) + alpha * KL(f_{p_i} || f_p)      the widest teaches, and gets no gradient of the second term
    server:    each entry becomes the mean over the clients whose tier holds it, by samples; others stay

So what matters most is in the first units, and every width up to the widest works as it is, without training again.
Sent: p_i and the slice down (about p_i^2 d), the slice up. The index set follows from p_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.data import Data
from fedloom.errors import ConfigError
from fedloom.message import At, Message
from fedloom.method import register
from fedloom.methods.optimisation.weights import Weight
from fedloom.model import Model, Part
from fedloom.training.distil import match_softened

from .nested import Nested
from .static_norm import statistics
from .width import first_units


def ordered(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss at the width drawn for this batch: what only wider ones have is zero."""
    return model.losses(w * (extras["first"] <= batch["draw"].width[0]), batch["data"])


def taught(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss of the widest, and `alpha` times how far the width drawn is from the widest's answers."""
    data, narrow = batch["data"], w * (extras["first"] <= batch["draw"].width[0])
    wide = model(w, *model.task.inputs(data))
    apart = match_softened(model, narrow, data.replace(teacher=wide.detach()), {"temperature": 1.0})
    return model.task.losses(wide, data) + extras["alpha"] * apart


@register
@dataclass(frozen=True)
class FjORD(Nested):
    """Ordered dropout.

    Args:
        rates: the widths p, each in (0, 1] (paper: 0.2 to 1 in steps of 0.2); the tier of client i is
            `rates[i % len(rates)]`, and it draws among those up to its tier.
        dynamic: tiers are drawn anew for every client and round.
        step_budget: seconds a training step may take: a client's tier is the largest that its device does in time
            and has the memory for, or else the smallest; inf: memory alone decides. None: by number.
        distil: alpha, weight of what the widest teaches, >= 0; 0: without.
        weight: of a client within its region, "samples" (the paper) or "uniform".
        scale, mask: False; HeteroFL has them.
    """

    card = Card(
        id="fjord",
        title="FjORD",
        paper="FjORD: Fair and Accurate Federated Learning under heterogeneous targets with Ordered Dropout",
        authors="S. Horvath, S. Laskaridis, M. Almeida, I. Leontiadis, S. I. Venieris, N. D. Lane",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2102.13451",
        family="systems",
        summary="ordered dropout at the clients: every width of one network works as it is",
        down=None,
        up=None,
        why_bytes="4 per entry of the slice of the client's tier, about p^2 d, and 8 for the tier down",
        reduces=(("rates = (1,)", "fedavg"),),
        deviations=(
            "one client is trained at a time: the width of a batch is its own, and a stack has one width",
            "widths share the layers of batch norm, the paper keeps one for every width",
            "with momentum or weight decay, units that a batch leaves out go on moving by these",
        ),
        claim="accuracy does not fall with width, and each width is as good as a network of that width trained alone",
    )

    rates: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    weight: Weight = "samples"
    distil: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distil < 0 or self.mask or self.scale:
            raise ConfigError(
                f"FjORD(distil={self.distil}, mask={self.mask}, scale={self.scale}) cannot be: distil >= 0; all widths "
                f"are judged as they are trained, so there is neither HeteroFL's scaler nor its masked scores"
            )

    async def local(self, client: Client, params: Tensor, rate: float, which: int = 0) -> Message:
        """params: the slice of the client's tier `(m,)`."""
        part = client.model.part(self.units(rate))
        widths = [r for r in sorted(set(self.rates)) if r <= rate]
        steps = self.solver.work(len(client.data))
        drawn = torch.randint(len(widths), (steps,), generator=client.rng("widths"))
        out = await client.train(
            params,
            solver=self.solver,
            model=part.model,
            data={"data": client.data, "draw": Data(width=drawn)},
            order={"draw": torch.arange(steps)[:, None]},
            loss=taught if self.distil else ordered,
            extras={"first": first_width(client.model, part, widths).to(params.device), "alpha": self.distil},
        )
        keep = ~statistics(part.model)
        return Message(params=At(part.index[keep], out.vector[keep], client.model.layout.size, known=True))


def first_width(model: Model, part: Part, widths: Sequence[float]) -> Tensor:
    """For every entry of a part, the number of the first of these widths that holds it `(m,)`."""
    first = torch.full((model.layout.size,), len(widths) - 1)
    for k in reversed(range(len(widths))):
        first[model.part(first_units(widths[k])).index] = k
    return first[part.index]
