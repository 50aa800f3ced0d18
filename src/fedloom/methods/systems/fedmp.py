"""FedMP (Jiang, Xu, Xu, Wang, Qiao, Zhao, ICDE 2022): how much each client's network is pruned is learned by a bandit.

    ratio rho_i:   E-UCB of client i (`bandit`) over [0, most)
    prune:         of every hidden layer the ceil((1 - rho_i) K) units of largest L1 norm stay: index set I_i
    client:        y_i = local work on that small dense network
    R2SP:          residual_i = w outside I_i;   w <- mean_i (y_i on I_i + residual_i), over ALL clients that replied
    reward:        (loss before - loss after at client i) / |T_i - mean T|,   T_i from sending to arrival

So entries that are pruned keep their global values, and clients come to take about equally long.
Sent: the small network both ways, 8 bytes for rho down, 16 for two losses up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Replies
from fedloom.training import SGD, Solver
from fedloom.training.inference import sample_losses

from .bandit import Arms
from .coverage import coverage
from .width import first_units, strongest_units


@dataclass(frozen=True)
class FedMPState(State):
    """params: the global model `(d,)`; arms: what was tried with each client, by id."""

    params: Tensor
    arms: dict[int, Arms] = field(default_factory=dict[int, Arms])


@register
@dataclass(frozen=True)
class FedMP(Method):
    """Adaptive structured pruning.

    Args:
        most: ratios are below this, in [0, 1); 0: nothing is pruned.
        discount: lambda, how fast old rewards lose weight, in (0, 1].
        theta: regions of ratios longer than this are cut, > 0.
        slack: times closer than this share of the mean count as equally close, > 0.
    """

    card = Card(
        id="fedmp",
        title="FedMP",
        paper="FedMP: Federated Learning through Adaptive Model Pruning in Heterogeneous Edge Computing",
        authors="Z. Jiang, Y. Xu, H. Xu, Z. Wang, C. Qiao, Y. Zhao",
        venue="ICDE",
        year=2022,
        url="https://doi.org/10.1109/ICDE53745.2022.00062",
        family="systems",
        summary="a bandit prunes each client's network so that all take about equally long",
        down=None,
        up=None,
        why_bytes="4 per entry of the small network, about (1 - rho)^2 d; 8 for rho down, 16 for two losses up",
        needs=frozenset({"replies"}),
        reduces=(("most = 0", "fedavg (weight = uniform)"),),
        deviations=(
            "times are taken relative to their mean, so that rewards mean the same for any clock, and no closer than "
            "`slack`, as the paper's reward has no bound",
            "of regions never tried the first is tried next, the one of smaller ratios",
        ),
        claim="with devices 1 to 5 times as fast, the longest time of a round over the mean shrinks by 30 %",
    )

    cohort: int = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    most: float = 0.9
    discount: float = 0.95
    theta: float = 0.05
    slack: float = 0.01

    def __post_init__(self) -> None:
        if not (0 <= self.most < 1 and 0 < self.discount <= 1 and self.theta > 0 and self.slack > 0):
            raise ConfigError(
                f"FedMP(most={self.most}, discount={self.discount}, theta={self.theta}, slack={self.slack}) cannot be: "
                f"0 <= most < 1, 0 < discount <= 1, theta > 0, slack > 0"
            )

    def start(self, clients: Clients, before: FedMPState | None = None) -> FedMPState:
        return FedMPState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor, rho: float) -> Message:
        """params: the small network `(m,)`; which units it has does not matter here."""
        small = client.model.part(first_units(1 - rho)).model
        out = await client.train(params, solver=self.solver, model=small)
        before, after = [
            float((await client.predict(w, fn=sample_losses, model=small)).mean()) for w in (params, out.vector)
        ]
        return Message(params=out.vector, before=before, after=after)

    def ratios(self, state: FedMPState, clients: Clients, cohort: list[int]) -> dict[int, float]:
        """How much of each client's network is pruned this round."""
        where = torch.rand(len(cohort), generator=clients.rng("ratios")).tolist()
        return {i: self.arms(state, i).choose(self.discount, u) for i, u in zip(cohort, where)}

    def arms(self, state: FedMPState, id: int) -> Arms:
        return state.arms.get(id, Arms(cuts=(0.0, self.most)))

    def round(self, state: FedMPState, clients: Clients) -> FedMPState:
        cohort = clients.sample(self.cohort)
        rho = self.ratios(state, clients, cohort)
        kept = {i: clients.model.part(strongest_units(clients.model, state.params, 1 - rho[i])).index for i in cohort}
        each = {i: {"params": state.params[kept[i]], "rho": rho[i]} for i in cohort}
        got = clients.map(self.local, cohort, each=each)
        if not got:
            return state
        change = torch.zeros_like(state.params)
        for r in got:
            change += self.recovered(state.params, kept[r.id], r.params) - state.params
        clients.note(**coverage(state.params, [kept[r.id] for r in got]).notes)
        return FedMPState(params=state.params + change / len(got), arms=self.learnt(state, clients, rho, got))

    def recovered(self, params: Tensor, kept: Tensor, trained: Tensor) -> Tensor:
        """R2SP: a client's whole model `(d,)`, its units as trained around the residual of the global one."""
        return params.index_copy(0, kept.to(params.device), trained)

    def learnt(self, state: FedMPState, clients: Clients, rho: dict[int, float], got: Replies) -> dict[int, Arms]:
        """The bandits after this round's rewards."""
        seconds = {r.id: r.time - r.began for r in got}
        mean = fmean(seconds.values()) or 1.0
        clients.note(spread=max(seconds.values()) / mean, pruned=fmean(rho[r.id] for r in got))
        arms = dict(state.arms)
        for r in got:
            reward = (r.before - r.after) / max(abs(seconds[r.id] / mean - 1), self.slack)
            arms[r.id] = self.arms(state, r.id).learnt(rho[r.id], reward, self.theta)
        return arms
