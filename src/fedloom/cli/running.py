"""`fedloom run`, `compare`, `resume`, `report`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedloom.errors import ConfigError, FedloomWarning
from fedloom.named import split

from .options import Json, Report, Training, with_training

if TYPE_CHECKING:
    from fedloom.data import Federation
    from fedloom.runs import Comparison, Recipe, Run

T = TypeVar("T")


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
    recipes = _recipes(methods, options.recipe, given)
    first = next(iter(recipes.values()))
    place = options.out or _place("compare", first.data)
    done = _until_stopped(
        lambda: _compare(recipes, range(first.seed, first.seed + seeds), place),
        f"the same line{'' if options.out else f', and --out {place}'}",
    )
    if options.report:
        done.report()
    if options.as_json:
        print(json.dumps(done.summary, indent=2))
    else:
        _print_table(done)
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
        done = _until_stopped(
            lambda: resumed(folder, observers=[watch.next(folder.name, 0)]), f"fedloom resume {folder}"
        )
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


def _recipes(methods: list[str], file: Path | None, given: dict[str, Any]) -> dict[str, Recipe]:
    """The recipe of every `fedprox:mu=0.1,solver.lr=1`; a file gives all but the method, and its settings to its own
    method alone.

    Raises:
        ConfigError: a method is given twice.
    """
    from fedloom.runs import Recipe
    from fedloom.runs.recipe import pairs

    if len(set(methods)) < len(methods):
        raise ConfigError(f"a method is given twice: {' '.join(methods)}. Tell them apart: fedprox:mu=0.1 fedprox:mu=1")
    found: dict[str, Recipe] = {}
    for text in methods:
        name, options = split(text)
        own = pairs(options, f"the method {name}:")
        base = Recipe.from_toml(file) if file else Recipe(method=name)
        if base.set and base.method != name:
            told = f"{name}: the settings in {file} are those of {base.method}; --set gives one to every method"
            warnings.warn(told, FedloomWarning, stacklevel=2)
        settings = base.set if base.method == name else {}
        found[text] = base.replace(**{**given, "method": name, "set": {**settings, **given.get("set", {}), **own}})
    return found


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
        done = _until_stopped(experiment.run, f"fedloom resume {place}")
    if report:
        done.report(place / "report.html")
    return done


def _compare(recipes: Mapping[str, Recipe], seeds: range, place: Path) -> Comparison:
    from fedloom.runs import Experiment
    from fedloom.runs.comparison import compared

    from .progress import watching

    for recipe in recipes.values():  # names first: they cost nothing
        recipe.method_object()

    @lru_cache(1)  # methods differ in no option of the data
    def data(seed: int) -> Federation:
        recipe = next(iter(recipes.values())).replace(seed=seed)
        return recipe.federation().to("cpu", recipe.numbers())

    def plan(recipe: Recipe, seed: int) -> Experiment:
        return recipe.replace(seed=seed).experiment(federation=data(seed))

    with watching(Console(stderr=True)) as watch:

        def begin(label: str, e: Experiment) -> None:
            e.observers = [watch.next(label if len(seeds) == 1 else f"{label}, seed {e.seed}", e.rounds)]

        return compared({label: partial(plan, recipe) for label, recipe in recipes.items()}, seeds, place, begin)


def _until_stopped(work: Callable[[], T], again: str) -> T:
    try:
        return work()
    except KeyboardInterrupt:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"stopped. Continue with: {again}", highlight=False)
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


def _print_table(done: Comparison) -> None:
    figures = done.table
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method")
    for title in figures.columns:
        table.add_column(title, justify="right")
    for label, *cells in figures.itertuples():
        table.add_row(f"[bold]{escape(label)}[/]", *cells)
    console = Console()
    if not console.is_terminal:  # a table that is cut to 80 columns helps nobody
        console = Console(width=200)
    console.print(table)


def _say_where(place: Path, report: bool) -> None:
    Console(soft_wrap=True).print(
        f"[dim]{'report' if report else 'run'}[/]  {place / 'report.html' if report else place}"
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
