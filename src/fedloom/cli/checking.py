"""`fedloom check`, `claim`, `bench`, `doctor`: is it right, is it true, is it fast, is it installed."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedloom.errors import ConfigError

from .options import Json


def check(
    name: Annotated[str, typer.Argument(help="Id of a method, or file.py:Class, module:Class.", show_default=False)],
) -> None:
    """Put a method through the contract every method of Fedloom passes. Exit code 1 if one check fails.

    [bold]Examples[/]

      fedloom check scaffold

      fedloom check mypackage.mymethod:MyMethod
    """
    from fedloom.method import method_named
    from fedloom.testing import checks

    console, failed = Console(), 0
    for one in checks(method_named(name)):
        try:
            one()
        except Exception as error:
            failed += 1
            console.print(f"[red]failed[/]  {one.name}")
            console.print(f"        {type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"[green]passed[/]  {one.name}")
    if failed:
        raise typer.Exit(1)


def claim(
    name: Annotated[
        str | None, typer.Argument(help="Name of a claim, mostly a method's id.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All claims.")] = False,
    family: Annotated[str | None, typer.Option("--family", help="All claims of a family of methods.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds. (the claim's own)", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small: to see that it runs. Writes no verdict.")] = False,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Choose the fastest way to compute anew, not as for the result on file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the experiment behind a method's central claim, and say whether it held.

    [bold]Examples[/]

      fedloom claim scaffold --seeds 3

      fedloom claim --family personalisation
    """
    from fedloom.claims import available

    if [name is not None, every, family is not None].count(True) != 1:
        raise ConfigError(f"name one claim, or give --all or --family; there are {', '.join(available())}")
    for one in [name] if name is not None else available(family):
        _measure(one, seeds, quick, afresh, as_json)


def _measure(
    name: str, seeds: int | None = None, quick: bool = False, afresh: bool = False, as_json: bool = False
) -> None:
    """Run one claim, write its result unless it was quick, and say what it came to."""
    import json

    from fedloom import claims

    console, told = Console(), Console(stderr=True)
    result = claims.run(name, seeds, quick, afresh, lambda text: told.print(f"[dim]{text}[/]", highlight=False))
    if not quick:
        told.print(f"[dim]written to {claims.save(result)}[/]", highlight=False)
    if as_json:
        print(json.dumps(result.content, indent=2, default=str))
        return
    console.print(f"[bold]{result.verdict}[/]  {result.content['claim']}")
    for line in result.lines:
        console.print(f"  {line}", markup=False, highlight=False)


def claims(
    family: Annotated[str | None, typer.Option("--family", help="Only those of a family of methods.")] = None,
    run: Annotated[bool, typer.Option("--run", help="First run those without a result, or with older code.")] = False,
) -> None:
    """Show every claim's verdict, and make the pages and curves of benchmarks/claims anew from the results on file.

    [bold]Examples[/]

      fedloom claims --family optimisation

      fedloom claims --family optimisation --run
    """
    from fedloom import claims as known

    names = list(known.available(family))
    for name in names if run else ():
        if reason := known.outdated(name):
            Console(stderr=True).print(f"[dim]{name}: {reason}[/]", highlight=False)
            _measure(name)
    known.write()
    done = known.results()
    table = Table("claim", "verdict", "comparison (95 % interval)", "", box=None, padding=(0, 2, 0, 0))
    for name in names:
        result, reason = done.get(name), known.outdated(name)
        compared = "\n".join(c["text"] for c in result["comparisons"]) if result else ""
        table.add_row(name, f"[bold]{result['verdict']}[/]" if result else "", compared, f"[dim]{reason}[/]")
    console = Console()
    console.print(table)
    console.print(f"[dim]pages and curves: {known.folder()}[/]", highlight=False)


def bench(
    context: typer.Context,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure the engines against plain loops, side by side. Works in a checkout of the repository.

    [bold]Example[/]

      fedloom bench
    """
    import subprocess

    root = Path(__file__).resolve().parents[3]
    if not (root / "benchmarks" / "speed.py").exists():
        raise ConfigError(
            "the benchmarks are part of the repository, not of the installed package: clone it, and run make bench"
        )
    code = subprocess.call([sys.executable, "-m", "benchmarks.speed", "--device", device, *context.args], cwd=root)
    raise typer.Exit(code)


def doctor() -> None:
    """Say what is installed, what is missing, and what that means. Exit code 1 if something needed is missing.

    [bold]Example[/]

      fedloom doctor
    """
    console, table, fine = Console(), Table(box=None, padding=(0, 2, 0, 0), show_header=False), True
    for name, good, text in findings():
        fine &= good is not False
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[dim]–[/]"}[good]
        table.add_row(mark, f"[bold]{name}[/]", text)
    console.print(table)
    if not fine:
        raise typer.Exit(1)


def findings() -> Iterator[tuple[str, bool | None, str]]:
    """Name, whether it is fine (None: optional and absent), and a sentence."""
    import torch

    from fedloom.engines.threads import cores

    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer)"
    yield "fedloom", True, metadata.version("fedloom")
    yield "torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads on {len(cores())} cores"
    if torch.cuda.is_available():
        yield "cuda", True, f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} device(s)"
    else:
        yield "cuda", None, "no device that torch can use; runs use the CPU"
    for extra, packages in extras().items():
        versions = {p: _version(p) for p in packages}
        missing = [p for p, version in versions.items() if version is None]
        if missing:
            yield extra, None, f"without {', '.join(missing)}: pip install 'fedloom\\[{extra}]'"
        else:
            yield extra, True, ", ".join(f"{p} {version}" for p, version in versions.items())
    yield "FEDLOOM_DATA", *_data_folder()
    yield "runs/", *_writable(Path("runs") if Path("runs").exists() else Path())


def extras() -> dict[str, list[str]]:
    """The optional packages by extra, as the installed package declares them; tools of development left out."""
    import re

    found: dict[str, list[str]] = {}
    for line in metadata.requires("fedloom") or []:
        match = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if match and match[2] != "dev":
            found.setdefault(match[2], []).append(match[1])
    return found


def _version(package: str) -> str | None:
    """None where it is not installed. Asked of the package, not of a module: pycryptodome's is called Crypto."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _data_folder() -> tuple[bool | None, str]:
    from fedloom.data.sources import sources

    root = os.environ.get("FEDLOOM_DATA")
    outside = [e for e in sources() if not e.bundled]
    if not root:
        return None, f"not set: {len(outside)} data sets that are read from files are out of reach"
    if not Path(root).is_dir():
        return False, f"{root} is not a folder"
    here = [e.name for e in outside if e.available]
    return True, f"{root}: {len(here)} of {len(outside)} data sets"


def _writable(folder: Path) -> tuple[bool, str]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return True, f"{folder.resolve()} can be written"
    except OSError as e:
        return False, f"{folder.resolve()} cannot be written: {e.strerror}"
