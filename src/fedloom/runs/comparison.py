"""Several methods on the same data, task and seeds: the runs, their table, their report."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data import Federation, federate
from fedloom.errors import ConfigError
from fedloom.method import Method, method_named
from fedloom.named import split
from fedloom.task import Task, task_for
from fedloom.trees import is_mapping, is_row

from . import checkpoint, files
from .config import configuration
from .experiment import Experiment, check_options
from .options import configure, written
from .recipe import Recipe, changed, network_for, pairs
from .record import Group, Record

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

Data = Federation | str | Callable[[int], Federation]
Plan = Callable[[int], Experiment]
"""What a method's run with a seed is."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` gives.

    Attributes:
        groups: one of each method, its runs by seed.
        out: the folder they lie in, or None.
    """

    groups: Sequence[Group]
    out: Path | None = None

    def __repr__(self) -> str:
        return self.table.to_string()

    @property
    def table(self) -> pd.DataFrame:
        """Final figures of each method as they are read: with several seeds mean ± standard deviation."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        from .report import shown, table_columns

        columns = table_columns(self.groups)
        rows = [[shown(c, final) for c in columns] for final in (group.final() for group in self.groups)]
        labels = pd.Index([group.label for group in self.groups], name="method")
        return pd.DataFrame(rows, index=labels, columns=[c.title for c in columns])

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures by method as numbers: mean, standard deviation, and the value of every seed."""
        found: dict[str, Any] = {}
        for group in self.groups:
            each = [record.final() for record in group.records]
            found[group.label] = {
                "final": {
                    name: {"mean": mean, "std": std, "seeds": [one[name] for one in each]}
                    for name, (mean, std) in group.final().items()
                },
                "runs": [str(record.place) for record in group.records if record.place],
            }
        return {"methods": found, "seeds": [record.summary["seed"] for record in self.groups[0].records]}

    def report(self, path: str | Path | None = None, title: str = "") -> Path:
        """Write the self-contained HTML report; by default into the folder of the comparison."""
        from .report import write_report

        return write_report(self.groups, Path(path or (self.out or Path()) / "report.html"), title)


def compare(
    methods: Sequence[Method | str] | Mapping[str, Method | str],
    task: Task | None = None,
    data: Data = "digits",
    rounds: int = 50,
    seeds: int | Sequence[int] = 1,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Run several methods on the same data with the same seeds: `compare([FedAvg(), FedProx(mu=1)], task, federation)`.

    Args:
        methods: instances, or names with settings ("fedprox:mu=0.1"); a dict gives them labels of one's own.
        task: network and loss; None: what the data name, with a small network for it.
        data: a federation, the same for every seed; a function of the seed that gives one; or the name of a source.
        rounds: of every run.
        seeds: how many, from `seed` on; or which.
        out: folder of all runs; what is finished there is kept, what was stopped goes on. None: all is in memory.
        **options: those of `Experiment`, for every run.

    Raises:
        ConfigError, DataError, NotSupported: what cannot be of any of the runs, before the first of them.
    """
    check_options(options, "a comparison", {"federation": "data"})
    federation_of = lru_cache(1)(partial(_federation, data))

    def plan(method: Method, seed: int) -> Experiment:
        federation = federation_of(seed)
        return Experiment(method, task or _task_of(federation), federation, rounds, seed, **options)

    plans = {label: partial(plan, method) for label, method in _named(methods).items()}
    return compared(plans, _seeds(seeds, seed), None if out is None else Path(out))


def compared(
    plans: Mapping[str, Plan],
    seeds: Sequence[int],
    out: Path | None = None,
    begin: Callable[[str, Experiment], None] | None = None,
) -> Comparison:
    """Run every plan with every seed, a seed at a time.

    Args:
        plans: what is run, by label.
        out: as in `compare`.
        begin: called with label and experiment before each run that is not there already.
    """
    for plan in plans.values():  # refuse what cannot be before the first run, not after the third
        plan(seeds[0]).plan()
    records: dict[str, list[Record]] = {label: [] for label in plans}
    for seed in seeds:
        for label, plan in plans.items():
            experiment = plan(seed)
            if out is not None:
                experiment.out = out / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', label)}-seed{seed}"
            records[label].append(_recorded(label, experiment, begin))
    done = Comparison([Group(label, held) for label, held in records.items()], out)
    if out is not None:
        text = json.dumps(done.summary, indent=2) + "\n"
        files.replace(out / "summary.json", text, "Make room, and give the same line again")
    return done


def _recorded(label: str, e: Experiment, begin: Callable[[str, Experiment], None] | None) -> Record:
    """A run's record, after the run where it is not there, whole."""
    place = None if e.out is None else Path(e.out)
    if place is not None and _finished(place, e):
        return Record.read(place)
    if begin is not None:
        begin(label, e)
    run = e.run(resume=place is not None and (place / checkpoint.FOLDER).exists())
    return Record.of(run) if place is None else Record.read(place)


def _finished(folder: Path, e: Experiment) -> bool:
    """Whether this very run is there, whole.

    Raises:
        ConfigError: another run is there.
    """
    config = folder / "config.toml"
    if not config.exists():
        return False
    text = config.read_text()
    told = tomllib.loads(text).get("run", {}).get("data_sha256", e.federation.sha256)
    if _decided(text) != _decided(configuration(e)) or told != e.federation.sha256:
        raise ConfigError(f"{folder} holds a run with other options or data; choose another out")
    return (folder / "summary.json").exists()


def _decided(config: str) -> Any:
    """What was decided for a run, in a form in which equal decisions are equal."""
    try:
        return Recipe.from_toml(config).command()
    except ConfigError:  # made of objects
        return {name: value for name, value in tomllib.loads(config).items() if name != "run"}


# --------------------------------------------------------------------------------------------------- what was given


def _named(methods: Any) -> dict[str, Method]:
    """Methods by label: their own, or the id, with the settings that tell two of one id apart."""
    if is_mapping(methods):
        return {str(label): _method(method) for label, method in methods.items()}
    if not is_row(methods):
        raise ConfigError(f"methods is a list, as in compare([fl.FedAvg(), fl.FedProx(mu=1)], ...); given {methods!r}")
    if not methods:
        raise ConfigError("which methods? compare([fl.FedAvg(), fl.FedProx(mu=1)], ...)")
    made = [_method(m) for m in methods]
    labels = [m if isinstance(m, str) else _label(one, made) for m, one in zip(methods, made)]
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"a method is given twice: {' '.join(labels)}. Tell them apart: fedprox:mu=0.1 fedprox:mu=1, or by labels "
            f"of your own, compare({{'first': ..., 'second': ...}}, ...)"
        )
    return dict(zip(labels, made))


def _method(given: Any) -> Method:
    if isinstance(given, str):
        name, settings = split(given)
        return configure(method_named(name), pairs(settings, f"the method {name}:"), name)
    if isinstance(given, type) and issubclass(given, Method):
        raise ConfigError(f"a method is an instance, as in fl.{given.__name__}(); given the class {given.__name__}")
    if not isinstance(given, Method):
        raise ConfigError(f"a method is one of Fedloom's or its name, as in fl.FedAvg() or 'fedavg'; given {given!r}")
    return given


def _label(method: Method, others: Sequence[Method]) -> str:
    """Its id; where others have it too, with the settings that not all of them share."""
    rivals = [_changed(other) for other in others if other.card.id == method.card.id]
    own = {k: v for k, v in _changed(method).items() if any(rival.get(k) != v for rival in rivals)}
    return method.card.id + (":" if own else "") + ",".join(f"{k}={v}" for k, v in own.items())


def _changed(method: Method) -> Mapping[str, Any]:
    try:
        return changed(written(method), type(method))
    except ConfigError:  # a value that has no text, such as a lambda
        return {}


def _federation(data: Any, seed: int) -> Federation:
    given = data(seed) if callable(data) and not isinstance(data, type) else data
    found = federate(given, seed=seed) if isinstance(given, str) else given
    if not isinstance(found, Federation):
        raise ConfigError(
            f"data is a federation, the name of a source, or a function of the seed that gives one, as in "
            f"compare(methods, task, fl.Federation.from_arrays(x, y)); given {found!r:.200}"
        )
    return found


def _seeds(given: Any, first: int) -> Sequence[int]:
    """Which seeds: so many from the first on, or those that are given."""
    found = [*range(first, first + given)] if isinstance(given, int) else given
    if is_row(found) and found and all(isinstance(one, int) for one in found) and len(set(found)) == len(found):
        return found
    raise ConfigError(f"seeds={given!r} cannot be: how many, 1 or more, or a list of different ones: seeds=[0, 7]")


def _task_of(federation: Federation) -> Task:
    if "task" not in federation.info:
        raise ConfigError("which task? These data do not say: compare(methods, fl.Classification(model=MyNet), data)")
    return task_for(federation.info["task"], model=network_for(federation))
