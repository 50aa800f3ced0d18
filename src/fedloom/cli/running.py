"""`fedloom run`, `compare`, `resume`, `report`."""

from __future__ import annotations

import json
import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedloom.errors import ConfigError, FedloomWarning
from fedloom.named import split

from .options import Json, Report, Training, with_training

if TYPE_CHECKING:
    from fedloom.runs import Recipe, Run
    from fedloom.runs.record import Group


@with_training
def run(
    options: Training,
    method: Annotated[
        list[str] | None,
        typer.Argument(
            help="Id of a method, or file.py:Class, module:Class; its settings, e.g. fedprox:mu=0.1.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train with one method.

    [bold]Examples[/]

      fedloom run fedavg

      fedloom run scaffold --data fashion-mnist --clients 100 --partition dirichlet:0.1 --set solver.lr=0.05

      fedloom run fedavg --channel topk:0.05 --channel quantize:8

      fedloom run --recipe runs/20260102-090000-fedavg-digits/config.toml --seed 1

    Ctrl-C stops it; fedloom resume continues it to the same end.
    """
    given = {**options.given(), **_one(method or [], options.given().get("set", {}))}
    made = _recipe(options.recipe, given)
    place = options.out or _place(made.method, made.data)
    console = Console(stderr=True)
    done = _run(made, _choices(options.recipe, given), place, console, options.report)
    if options.as_json:
        print(json.dumps(_plain(done.summary), indent=2))
    else:
        _print_run(done, place, options.report)


@with_training
def compare(
    options: Training,
    methods: Annotated[list[str], typer.Argument(help="Methods, e.g. fedavg fedprox:mu=0.1.", show_default=False)],
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each method, with seeds S, S+1, ...", min=1)] = 1,
) -> None:
    """Train with several methods on the same data, model and seeds: one table, one report.

    [bold]Examples[/]

      fedloom compare fedavg fedprox scaffold --data digits --seeds 3

      fedloom compare fedprox:mu=0.01 fedprox:mu=1 --set solver.lr=0.05

    --set goes to every method; NAME:key=value,key=value sets one. With several seeds, figures are mean ± standard
    deviation. Of an --out that was stopped, finished runs are kept and the others resumed.
    """
    given = options.given()
    plans = [_planned(text, options.recipe, given) for text in methods]
    if len({label for label, _ in plans}) < len(plans):
        raise ConfigError(f"a method is given twice: {' '.join(methods)}. Tell them apart: fedprox:mu=0.1 fedprox:mu=1")
    place = options.out or _place("compare", plans[0][1].data)
    console = Console(stderr=True)
    groups = _compare(plans, seeds, place, console)
    from fedloom.runs import files
    from fedloom.runs.report import write_report

    if options.report:
        write_report(groups, place / "report.html")
    summary = _summary(groups)
    text = json.dumps(summary, indent=2)
    files.replace(place / "summary.json", text + "\n", "Make room, and give the same line again")
    if options.as_json:
        print(text)
    else:
        _print_table(groups)
        _say_where(place, options.report)


def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    as_json: Json = False,
    report: Report = True,
) -> None:
    """Continue a run that was stopped or killed, to the same end.

    [bold]Example[/]

      fedloom resume runs/20260102-090000-fedavg-digits
    """
    from fedloom.runs import resume as resumed

    from .progress import watching

    with watching(Console(stderr=True)) as watch:
        done = _until_stopped(lambda: resumed(folder, observers=[watch.next(folder.name, 0)]), folder)
    if report:
        done.report(folder / "report.html")
    if as_json:
        print(json.dumps(_plain(done.summary), indent=2))
    else:
        _print_run(done, folder, report)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, or of comparisons.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", help="Its title. (made of the runs)")] = "",
) -> None:
    """Write one page about runs that are there; runs that differ in their seed alone become one line.

    [bold]Example[/]

      fedloom report runs/a runs/b --out both.html
    """
    from fedloom.runs.report import write_report

    Console().print(f"{write_report(folders, out, title)}", highlight=False)


# --------------------------------------------------------------------------------------------------- pieces


def _recipe(file: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe of the file with what the line changes; settings are merged by name."""
    from fedloom.runs import Recipe

    if file is None:
        if "method" not in given:
            raise ConfigError("which method? fedloom run fedavg, or --recipe FILE; `fedloom methods` lists them")
        return Recipe(**given)
    base = Recipe.from_toml(file)
    merged = {k: {**getattr(base, k), **given[k]} for k in ("set", "world") if k in given}
    if given.get("method", base.method) != base.method:
        raise ConfigError(
            f"the recipe {file} is of {base.method} and the line says {given['method']}; "
            f"leave the method out, or compare them: fedloom compare {base.method} {given['method']}"
        )
    return base.replace(**{**given, **merged})


def _one(methods: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Method and settings of a line that names one method, or none.

    Raises:
        ConfigError: it names several, or a setting without `--set`.
    """
    from fedloom.runs.recipe import pairs

    if len(methods) > 1:
        bare = [word for word in methods[1:] if re.match(r"[\w.]+=", word)]
        other = f"compare {' '.join(methods)}" if not bare else f"run {methods[0]} --set {' --set '.join(bare)}"
        raise ConfigError(f"run takes one method; given {' '.join(methods)}. Say: fedloom {other}")
    if not methods:
        return {}
    name, options = split(methods[0])
    own = pairs(options, f"the method {name}:")
    return {"method": name, **({"set": {**settings, **own}} if settings or own else {})}


def _planned(text: str, file: Path | None, given: dict[str, Any]) -> tuple[str, Recipe]:
    """`fedprox:mu=0.1,solver.lr=1` as a label and a recipe; a recipe file gives all but the method, and its settings to
    its own method alone."""
    from fedloom.runs import Recipe
    from fedloom.runs.recipe import pairs

    name, options = split(text)
    own = pairs(options, f"the method {name}:")
    base = Recipe.from_toml(file) if file else Recipe(method=name)
    if base.set and base.method != name:
        told = f"{name}: the settings in {file} are those of {base.method}; --set gives one to every method"
        warnings.warn(told, FedloomWarning, stacklevel=2)
    settings = base.set if base.method == name else {}
    return text, base.replace(**{**given, "method": name, "set": {**settings, **given.get("set", {}), **own}})


def _place(*parts: str) -> Path:
    name = "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts)
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def _choices(file: Path | None, given: dict[str, Any]) -> dict[str, str]:
    """What the run of this recipe chose, to be chosen again; nothing where the line asks for another way to compute."""
    from fedloom.runs.config import choices_in

    return {} if file is None or {"engine", "device", "dtype"} & given.keys() else choices_in(file)


def _run(recipe: Recipe, choices: dict[str, str], place: Path, console: Console, report: bool) -> Run:
    from .progress import watching

    experiment = recipe.experiment(out=place, choices=choices)
    with watching(console) as watch:
        experiment.observers = [watch.next(recipe.method, recipe.rounds)]
        done = _until_stopped(experiment.run, place)
    if report:
        done.report(place / "report.html")
    return done


def _compare(plans: list[tuple[str, Recipe]], seeds: int, place: Path, console: Console) -> list[Group]:
    from fedloom.runs.record import Group, Record

    from .progress import watching

    for _, recipe in plans:  # names first: they cost nothing
        recipe.method_object()
    data = plans[0][1].federation()
    for _, recipe in plans:  # refuse what cannot be before the first run, not after the third
        recipe.experiment(federation=data.to("cpu", recipe.numbers())).plan()
    records: dict[str, list[Record]] = {label: [] for label, _ in plans}
    with watching(console) as watch:
        for k in range(seeds):
            for label, recipe in plans:
                seeded = recipe.replace(seed=recipe.seed + k)
                folder = place / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', label)}-seed{seeded.seed}"
                experiment = seeded.experiment(out=folder)
                if not _finished(folder, experiment.recipe):
                    name = label if seeds == 1 else f"{label}, seed {seeded.seed}"
                    experiment.observers = [watch.next(name, seeded.rounds)]
                    begun = (folder / "checkpoints").exists()
                    _until_stopped(lambda e=experiment, begun=begun: e.run(resume=begun), folder)
                records[label].append(Record.read(folder))
    return [Group(label, held) for label, held in records.items()]


def _finished(folder: Path, recipe: Recipe | None) -> bool:
    """Whether this very run is there, whole.

    Raises:
        ConfigError: another run is there.
    """
    from fedloom.runs import Recipe

    if recipe is None or not (folder / "config.toml").exists():
        return False
    if Recipe.from_toml(folder / "config.toml").command() != recipe.complete().command():
        raise ConfigError(f"{folder} holds a run with other options; choose another --out")
    return (folder / "summary.json").exists()


def _until_stopped(work: Any, place: Path) -> Any:
    try:
        return work()
    except KeyboardInterrupt:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"stopped. Continue with: fedloom resume {place}", highlight=False)
        raise typer.Exit(130) from None


# --------------------------------------------------------------------------------------------------- printing


def _print_run(done: Run, place: Path, report: bool) -> None:
    from fedloom.runs.report import as_groups, shown, table_columns

    (group,) = as_groups([done])
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    final = group.final()
    for column in table_columns([group]):
        table.add_row(f"[dim]{column.title}[/]", f"[bold]{shown(column, final)}[/]")
    console = Console(soft_wrap=True)
    console.print(table)
    for remark in group.records[0].remarks():
        console.print(f"[dim]note[/]  {escape(remark)}", highlight=False)
    _say_where(place, report)


def _print_table(groups: list[Group]) -> None:
    from fedloom.runs.report import shown, table_columns

    columns = table_columns(groups)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method")
    for column in columns:
        table.add_column(column.title, justify="right")
    for group in groups:
        final = group.final()
        table.add_row(f"[bold]{group.label}[/]", *(shown(c, final) for c in columns))
    console = Console()
    if not console.is_terminal:  # a table that is cut to 80 columns helps nobody
        console = Console(width=200)
    console.print(table)


def _say_where(place: Path, report: bool) -> None:
    Console(soft_wrap=True).print(
        f"[dim]{'report' if report else 'run'}[/]  {place / 'report.html' if report else place}"
    )


def _summary(groups: list[Group]) -> dict[str, Any]:
    """What `compare --json` prints: final figures by method, with mean, spread, and the value of every seed."""
    found: dict[str, Any] = {}
    for group in groups:
        each = [record.final() for record in group.records]
        found[group.label] = {
            "final": {
                name: {"mean": mean, "std": std, "seeds": [one[name] for one in each]}
                for name, (mean, std) in group.final().items()
            },
            "runs": [str(record.place) for record in group.records],
        }
    return {"methods": found, "seeds": [r.summary["seed"] for r in groups[0].records]}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
