"""A method of your own in one screen: FedAvg whose server keeps an average of its last models.

Run it, and hold it to the contract every method keeps:

    python examples/own_method.py
    fedloom check examples.own_method:Averaged
"""

from dataclasses import dataclass, replace

from torch import Tensor

import fedloom as fl


@dataclass(frozen=True)
class AveragedState(fl.State):
    """params: what is judged, the running average `(d,)`; last: what clients start from `(d,)`."""

    params: Tensor
    last: Tensor


@fl.register
@dataclass(frozen=True)
class Averaged(fl.Method):
    """FedAvg, judged by an exponential average of its models.

    Args:
        keep: share of the old average, in [0, 1); 0 is FedAvg.
    """

    card = fl.Card(
        id="averaged",
        title="Averaged",
        paper="none: an example",
        authors="you",
        venue="examples",
        year=2026,
        family="optimisation",
        summary="an exponential average of FedAvg's models",
        reduces=(("keep = 0", "fedavg"),),
        claim="the average moves less from round to round",
    )

    cohort: int = 10
    keep: float = 0.8
    solver: fl.Solver = fl.SGD(lr=0.1, epochs=5, batch_size=32)

    def start(self, clients: fl.Clients, before: AveragedState | None = None) -> AveragedState:
        params = before.params if before else clients.model.initial()
        return AveragedState(params=params, last=params)

    async def local(self, client: fl.Client, last: Tensor) -> fl.Message:
        out = await client.train(last, solver=self.solver)
        return fl.Message(delta=out.vector - last)

    def round(self, state: AveragedState, clients: fl.Clients) -> AveragedState:
        got = clients.mean(self.local, clients.sample(self.cohort), last=state.last)
        if got.count == 0:
            return state
        last = state.last + got.delta
        return replace(state, params=self.keep * state.params + (1 - self.keep) * last, last=last)


if __name__ == "__main__":
    federation = fl.federate("digits", clients=20, partition=fl.Dirichlet(0.3))
    run = fl.run(Averaged(), fl.Classification(model="mlp"), federation, rounds=20)
    print(run.history[["round", "global.accuracy"]].tail())
