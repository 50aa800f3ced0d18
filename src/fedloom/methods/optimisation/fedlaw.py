"""FedLAW (Li et al., ICML 2023): the server learns how much of each model to take, and how much to shrink the whole.

    x(q, z) = exp(q) sum_i softmax(z)_i y_i                      gamma = exp(q), lambda = softmax(z)
    q, z    = argmin loss(x(q, z)) on the server's own data      Adam, from q = 0 and z = ln(n_i)
    x      <- x(q, z)

The models y_i are fixed; only 1 + |S| numbers are learned, anew in every round. gamma < 1 acts as weight decay on the
global model. Statistics (BatchNorm) are averaged by lambda and not shrunk. No epochs is FedAvg.
Sent: x down, y_i - x up. Kept at clients: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.data.fields import Data
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver


@dataclass(frozen=True)
class FedLawState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class FedLaw(Method):
    """Learned aggregation weights.

    Args:
        epochs: of the server over its own data, >= 0 (paper: about 100); 0 is FedAvg.
        lr: of the server's Adam (0.9 replaced by 0.5 as in the paper), halved every `halve` epochs, all > 0.
        batch: samples a step.
    """

    card = Card(
        id="fedlaw",
        title="FedLAW",
        paper="Revisiting Weighted Aggregation in Federated Learning with Neural Networks",
        authors="Z. Li, T. Lin, X. Shang, C. Wu",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2302.10911",
        family="optimisation",
        summary="weights, and a factor that shrinks the model, are learned on the server's own data",
        needs=frozenset({"replies", "server data"}),
        reduces=(("epochs = 0", "fedavg"),),
        deviations=(
            "gamma and lambda are learned together; the variant with weight averaging (half the epochs each) and the "
            "one with squares for exp and softmax are left out",
        ),
        claim="where labels are very skewed it ends at a higher accuracy than FedAvg",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    epochs: int = 30
    lr: float = 0.01
    halve: int = 20
    batch: int = 64

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.lr <= 0 or self.halve < 1 or self.batch < 1:
            raise ConfigError(
                f"FedLaw(epochs={self.epochs}, lr={self.lr}, halve={self.halve}, batch={self.batch}) cannot be: "
                f"epochs >= 0, lr > 0, halve and batch >= 1"
            )

    def start(self, clients: Clients, before: FedLawState | None = None) -> FedLawState:
        return FedLawState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedLawState, clients: Clients) -> FedLawState:
        got = clients.map(self.local, clients.sample(self.cohort), params=state.params)
        if not got:
            return state
        models = state.params + got.delta
        exact = torch.promote_types(models.dtype, torch.float32)
        q, z = models.new_zeros((), dtype=exact), models.new_tensor([float(r.n) for r in got], dtype=exact).log()
        q, z = self.learned(clients, models, q, z)
        clients.note(gamma=float(q.exp()))
        return replace(state, params=mixture(q, z, models, clients.model.layout.trainable))

    def learned(self, clients: Clients, models: Tensor, q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """q and z after the server's epochs."""
        model, data = clients.model.eval(), clients.server.data
        q, z = q.clone().requires_grad_(), z.clone().requires_grad_()
        adam = torch.optim.Adam([q, z], lr=self.lr, betas=(0.5, 0.999))
        halved = torch.optim.lr_scheduler.StepLR(adam, self.halve, gamma=0.5)
        for _ in range(self.epochs):
            for batch in shuffled(data, self.batch, clients.rng("server batches")):
                loss = model.loss(mixture(q, z, models, model.layout.trainable), batch)
                q.grad, z.grad = torch.autograd.grad(loss, (q, z))
                adam.step()
            halved.step()
        return q.detach(), z.detach()


def mixture(q: Tensor, z: Tensor, models: Tensor, trainable: int) -> Tensor:
    """exp(q) softmax(z) @ models `(n, d)`: the first `trainable` numbers; statistics without the factor.

    It is added up in the type of q and z, which small steps do not get lost in, and comes back in that of the models.
    """
    mean = z.softmax(0) @ models.to(z.dtype)
    return torch.cat([q.exp() * mean[:trainable], mean[trainable:]]).to(models.dtype)


def shuffled(data: Data, size: int, rng: torch.Generator) -> Iterator[Data]:
    """One epoch of batches."""
    order = torch.randperm(len(data), generator=rng)
    for rows in order.split(size):
        yield data.rows(rows)
