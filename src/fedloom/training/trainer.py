"""How like requests are trained: one by one, or as one computation; told, or measured at first use."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence

from fedloom.errors import FedloomWarning

from .plain import train_plain
from .request import Trained, Training

_TINY = 20_000  # numbers in a vector; below, a step is all dispatch and the whole cohort is one computation


class Trainer:
    """Chooses a path for each kind of request and says which it took.

    Args:
        path: "plain" (one by one), "stacked" (as one computation; what cannot be stacked runs alone, aloud), or
            "auto" (measured at first use).
        chosen: decisions of an earlier run to be repeated, as `choices()` gives them.
        workers: threads that train at the same time; short operators hold each other up, stacked ones hardly do.
    """

    def __init__(self, path: str = "auto", chosen: Mapping[str, str] | None = None, workers: int = 1) -> None:
        self.name, self.workers = path, workers
        self._told = dict(chosen or {})
        self._paths: dict[object, str] = {}
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def chunk(self, request: Training, n: int) -> int:
        """How many clients of a cohort of `n` are computed, added and sent around together."""
        if self.name == "plain":
            return max(1, min(8, -(-n // 4)))
        from .stacked import choose_chunk

        k = choose_chunk(request, n)
        if k == n and request.model.layout.size > _TINY:
            k = -(-n // 2)  # something to do for a second worker, whether or not there is one
        return max(1, k)

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

    # ------------------------------------------------------------
    def _path(self, requests: Sequence[Training]) -> str:
        kind = requests[0].alike()
        if kind not in self._paths:
            with self._lock:
                if kind not in self._paths:
                    self._measure(requests)
        return self._paths[kind]

    def _measure(self, requests: Sequence[Training]) -> None:
        from .stacked import best_path, probe

        first, label = requests[0], describe(requests[0])
        told = self._told.get(label)
        if told is not None:
            path, _, reason = told.partition(": ")
            self._decide(first, path, reason, aloud=False)
            return
        reason = probe(requests)
        if reason is not None:
            self._decide(first, "plain", reason)
        elif self.name == "stacked":
            self._decide(first, "stacked", "as asked")
        else:
            path, reason = best_path(requests, self.workers)
            self._decide(first, path, reason, aloud=False)

    def _decide(self, request: Training, path: str, reason: str, aloud: bool = True) -> None:
        label = describe(request)
        self._paths[request.alike()] = path
        self._reasons[label] = f"{path}: {reason}"
        if aloud and path == "plain":
            warnings.warn(f"{label} runs one client at a time: {reason}", FedloomWarning, stacklevel=2)


def describe(request: Training) -> str:
    """A readable name for a kind of request, the same in every process."""
    hooks = [f"{n} {h.__qualname__}" for n, h in (("loss", request.loss), ("step", request.step)) if h is not None]
    batch = max(s.index.shape[1] for s in request.schedules.values()) if request.schedules else 0
    extra = "".join(f", {h}" for h in hooks) + (", only" if request.only is not None else "")
    return (
        f"{request.model.name} ({request.model.layout.size:,}), {type(request.solver).__name__}, batch {batch}{extra}"
    )
