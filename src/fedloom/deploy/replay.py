"""A run over sites, computed again from its journal's closings on the local engine, where all the data may be together.

The wall clock decided who was late; what it decided is in the closings. Given them, everything else follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.channel.secure.protocol import Course
from fedloom.channel.stage import Channel
from fedloom.client import Ask
from fedloom.data import Data
from fedloom.engines.base import Job, Outcome, Plan
from fedloom.engines.fold import Fold, Total
from fedloom.engines.local import Local
from fedloom.engines.secured import Summed, plainly, settle
from fedloom.errors import CheckpointError, ConfigError
from fedloom.message import leaves
from fedloom.runs import Run, checkpoint
from fedloom.training import Trainer
from fedloom.training.request import Trained, Training
from fedloom.written import dumps

from .agreement import Agreement, Offer
from .arrivals import Arrivals, Recorded
from .blobs import name_of
from .coordinator import Look, folded, question_name
from .journal import Journal
from .serving import Secret, holdings, read_samples, samples_of
from .summing import decision_name
from .wire import VERSION, digest, header


class Replayed:
    """The local engine, told by closings whose replies there were.

    Args:
        look: the round and the method's state, now.
        closings: by exchange, of a `Journal`.
    """

    name = "replay"

    def __init__(self, plan: Plan, look: Look, closings: Mapping[str, Mapping[str, Any]]) -> None:
        self.closings, self.versions = closings, dict[int, str]()
        self.plan, self._local = plan, Local(plan, Trainer("plain"), 1, self._answer)
        self._look, self._states = look, dict[int, Any]()
        self._job, self._questions = "", 0

    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """As in every engine; jobs without a reply in the closing are not done.

        Raises:
            CheckpointError: the journal knows of no such exchange: other data, another version, or another run.
        """
        if not jobs:
            return [], Total() if fold else None
        self.look()
        ids = [self.id(job) for job in jobs]
        closing = self.closings.get(digest({"jobs": ids}))
        if closing is None:
            raise CheckpointError(
                f"the journal has no exchange of round {jobs[0].version} like this one, so it is not the run that "
                f"these data, this version and this seed make"
            )
        refused = closing["refused"]
        there = set(closing["replied"]) - set(refused)
        done, _ = self._local.run([job for job, id in zip(jobs, ids) if id in there])
        if self.plan.channel.secure is not None and fold is not None:
            return self._summed(jobs, ids, done, fold, refused)
        by_number = {o.job.number: o for o in done}
        outcomes = [by_number.get(j.number) or Outcome(j, excluded=refused.get(id, "late")) for j, id in zip(jobs, ids)]
        result = (outcomes, None) if fold is None else folded(outcomes, fold, self.plan)
        for outcome, id in zip(outcomes, ids):
            if outcome.excluded is None and outcome.memory is not None:
                self.counted(outcome.job.id, id)
        return result

    def _summed(
        self, jobs: Sequence[Job], ids: Sequence[str], done: Sequence[Outcome], fold: Fold, refused: Mapping[str, str]
    ) -> tuple[list[Outcome], Total]:
        """The same sum in the ring, of those that the phases left in it, without masks."""
        stage, decision = self.plan.channel.secure, self.closings.get(decision_name(digest({"jobs": list(ids)})))
        assert stage is not None
        if decision is None:
            raise CheckpointError("the journal ends in the middle of a secure sum: it is of an unfinished round")
        course = Course(**decision["course"])
        by_number = {o.job.number: o for o in done}
        outcomes = [by_number.get(j.number) or Outcome(j, excluded=refused.get(id, "late")) for j, id in zip(jobs, ids)]
        left_out = {j.number: why for j, id in zip(jobs, ids) if (why := decision["left_out"].get(id)) is not None}
        entries = [
            (o.job.number, o.message, o.job.samples)
            for o in outcomes
            if o.message is not None and o.excluded is None and o.job.number not in left_out
        ]
        result = plainly(stage, fold, entries, len(jobs))
        nbytes = {j.number: course.nbytes(j.number) for j in jobs}
        for outcome, id in zip(outcomes, ids):
            settle(outcome, Summed(result.total, result.left_out | left_out, nbytes))
            if outcome.excluded is None and outcome.memory is not None:
                self.counted(outcome.job.id, id)
        return outcomes, result.total

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        return self._local.compute(requests)

    def choices(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        return None

    def look(self) -> None:
        """Keep the state that stands now: questions of this round were answered from it."""
        version, state = self._look()
        self._states.setdefault(version, state)

    def one(self, job: Job) -> Outcome:
        """A single job."""
        self._job, self._questions = self.id(job), 0
        (outcome,), _ = self._local.run([job])
        return outcome

    def _answer(self, question: Ask, client: int) -> Any:
        """From the state the coordinator answered from; in an exchange that is the one that stands."""
        name = question_name(self._job, self._questions)
        self._questions += 1
        round = self.closings[name]["round"] if name in self.closings else max(self._states)
        return question.program(self._states[round], **question.message)

    def counted(self, client: int, id: str) -> None:
        """A client's memory has a new version."""
        self.versions[client] = id

    def id(self, job: Job) -> str:
        """As the coordinator named it, whose view of a memory is the name of its version."""
        named = replace(job, memory={VERSION: self.versions.get(job.id, "")})
        return header(named, name_of(dumps(job.payload)))["id"]


def replay(out: Path | str, data: Sequence[Any], test: Any = None, **shared: Any) -> tuple[Run, bool]:
    """Compute a run over sites again, from the folder of its coordinator.

    Args:
        data: every client's samples, in the order of the sites in the recipe.
        test, public, validation: as `serve` was given them.

    Returns:
        the run, and whether its state is, bit for bit, the one the coordinator last saved.

    Raises:
        CheckpointError: no such folder, or the journal is of another run, or of none yet. ConfigError: samples of more
            clients, or of fewer, than the run has.
    """
    folder = Path(out)
    if not (folder / "journal.db").exists():
        raise CheckpointError(f"{folder} is not the folder of a coordinator: it has no journal.db")
    journal = Journal(folder / "journal.db")
    try:
        offer = Offer.read(journal.fact("offer"))
        held, due = journal.declarations(), offer.terms.names
        if not set(due) <= set(held):
            raise CheckpointError(f"{folder} holds no run yet: not all of {', '.join(due)} have joined")
        if len(data) != sum(due.values()):
            raise ConfigError(
                f"the run in {folder} has {sum(due.values())} clients, and was given the samples of {len(data)}. Name "
                f"one file for each client of {', '.join(due)}, in this order"
            )
        agreement = Agreement(offer, {name: held[name] for name in offer.terms.names})
        closings, secret = journal.closings(), str(journal.fact("secret"))
    finally:
        journal.close()
    given = {name: read_samples(part, offer.terms.table) for name, part in {"test": test, **shared}.items()}
    federation = agreement.federation(_here(data, offer), **given)
    experiment = offer.made.experiment(federation=federation)
    experiment.rounds, saved, _ = checkpoint.load(folder / checkpoint.FOLDER)
    experiment.channel = Secret(Channel.of(experiment.channel).stages, secret)
    run = Run(experiment)
    run.host.engine = engine = Replayed(run.plan, lambda: (run.host.version, run.host.state), closings)
    run.host.dispatch = Arrivals(run.host, Recorded(closings, engine))
    run.go()
    return run, same(run.state, saved["state"])


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same numbers, bit for bit."""
    a, b = list(leaves(one)), list(leaves(other))
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in zip(a, b)
    )


def _here(data: Sequence[Any], offer: Offer) -> dict[int, Data]:
    """Everybody's samples, as each site arranged its own."""
    found: dict[int, Data] = {}
    for site, ids in offer.terms.clients.items():
        found.update(samples_of(holdings([data[i] for i in ids], offer, site), ids[0]))
    return found
