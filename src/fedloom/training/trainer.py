"""How like requests are trained: one by one, or as one computation; told, or measured at first use."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedloom.errors import FedloomWarning

from .plain import train_plain
from .request import Trained, Training

if TYPE_CHECKING:
    from fedloom.model import Model

_TINY = 20_000  # numbers in a vector; below, a step is all dispatch and the whole cohort is one computation


class Trainer:
    """Chooses a path for each kind of request and says which it took.

    Args:
        path: "plain" (one by one), "stacked" (as one computation; what cannot be stacked runs alone, aloud), or
            "auto" (measured at first use).
        chosen: decisions of an earlier run to be repeated, as `choices()` gives them. They spare the timing; whether
            requests can be stacked at all is found out in each process (a forked one knows what its parent found).
    """

    def __init__(self, path: str = "auto", chosen: Mapping[str, str] | None = None) -> None:
        self.name = path
        self._told = dict(chosen or {})
        self._paths: dict[object, str] = {}
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def together(self, request: Training, n: int) -> int:
        """How many of `n` like clients to hand to `train` at once."""
        if self.name == "plain":
            return one_by_one(n)
        from .stacked import choose_chunk

        return choose_chunk(request, n)

    def chunks(self, request: Training, n: int) -> int:
        """Into how many chunks a cohort of `n` is cut, see `chunk_count`."""
        return chunk_count(n, self.together(request, n), request.model)

    def train(self, requests: Sequence[Training]) -> list[Trained]:
        """Like requests, in order."""
        if self.name == "plain" or (self.name == "auto" and len(requests) == 1):  # a single one decides nothing
            return train_plain(requests)
        if self._path(requests) == "stacked":
            from .stacked import NotStackable, train_stacked

            try:
                return train_stacked(requests)
            except NotStackable as e:
                self._decide(requests[0], "plain", str(e))
        return train_plain(requests)

    def choices(self) -> dict[str, str]:
        """Kind of request -> "path: reason"."""
        return dict(sorted(self._reasons.items()))

    def stays_here(self, what: str, why: str, aloud: bool = True) -> None:
        """Work that workers have no part in, said once."""
        if aloud and what not in self._reasons:
            warnings.warn(f"{what}: computed in the main process, {why}", FedloomWarning, stacklevel=2)
        self._reasons[what] = f"in the main process: {why}"

    def adopt(self, choices: Mapping[str, str]) -> None:
        """What another worker chose for kinds that are new here."""
        for label, choice in choices.items():
            self._told.setdefault(label, choice)
            self._reasons.setdefault(label, choice)

    # ------------------------------------------------------------
    def _path(self, requests: Sequence[Training]) -> str:
        from .stacked import probe

        kind = requests[0].alike()
        if kind not in self._paths:
            with self._lock:
                if kind not in self._paths:
                    self._measure(requests)
        elif self._paths[kind] == "stacked" and (fault := probe(requests)) is not None:
            self._decide(requests[0], "plain", fault)
        return self._paths[kind]

    def _measure(self, requests: Sequence[Training]) -> None:
        from .stacked import best_path, probe

        first = requests[0]
        told, _, reason = self._told.get(describe(first), "").partition(": ")
        if told and told != "stacked":
            self._decide(first, told, reason, aloud=False)
        elif (fault := probe(requests)) is not None:  # also where told: kinds that differ may share a label
            self._decide(first, "plain", fault)
        elif told:
            self._decide(first, told, reason, aloud=False)
        elif self.name == "stacked":
            self._decide(first, "stacked", "as asked")
        else:
            path, reason = best_path(requests)
            self._decide(first, path, reason, aloud=False)

    def _decide(self, request: Training, path: str, reason: str, aloud: bool = True) -> None:
        label = describe(request)
        self._paths[request.alike()] = path
        self._reasons[label] = f"{path}: {reason}"
        if aloud and path == "plain":
            warnings.warn(f"{label} runs one client at a time: {reason}", FedloomWarning, stacklevel=2)


def one_by_one(n: int) -> int:
    """Clients of a chunk that are trained one after the other."""
    return max(1, min(8, -(-n // 4)))


def chunk_count(n: int, together: int, model: Model) -> int:
    """Into how many chunks a cohort of `n` is cut: known from model and cohort, whoever computes them.

    1 says that a step is all dispatch: whatever one worker is given is one computation.
    """
    count = -(-n // together)
    if count == 1 and (model.layout.size <= _TINY or n == 1):
        return 1
    return min(n, count + count % 2)  # an even number keeps two workers equally busy


def describe(request: Training) -> str:
    """A readable name for a kind of request, the same in every process."""
    hooks = [f"{n} {h.__qualname__}" for n, h in (("loss", request.loss), ("step", request.step)) if h is not None]
    batch = max(s.index.shape[1] for s in request.schedules.values()) if request.schedules else 0
    extra = "".join(f", {h}" for h in hooks) + (", only" if request.only is not None else "")
    return (
        f"{request.model.name} ({request.model.layout.size:,}), {type(request.solver).__name__}, batch {batch}{extra}"
    )
