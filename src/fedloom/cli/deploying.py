"""`fedloom serve`, `join`, `certs`, `status`, `replay`: a federation of real sites."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedloom.errors import ConfigError, FedloomError

from .options import Json

if TYPE_CHECKING:
    from fedloom.deploy import Approval
    from fedloom.deploy.logs import Event

certs = typer.Typer(
    help="Make, hand out and withdraw the certificates of a federation.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The authority's folder.")]
_HERE = ("localhost", "127.0.0.1")  # the coordinator can always be tried where it is


class LogFormat(StrEnum):
    """How events are written, one a line."""

    text = "text"
    json = "json"


Log = Annotated[
    LogFormat | None, typer.Option("--log-format", help="One line an event on stderr, in place of live progress.")
]


def serve(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a table [sites].", show_default=False)],
    listen: Annotated[str, typer.Option("--listen", "-l", help="HOST:PORT.")] = "127.0.0.1:8750",
    certs: Annotated[
        Path | None, typer.Option("--certs", help="Folder of `fedloom certs init`. (none: plain HTTP, loopback alone)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run and its journal. (runs/<recipe>)")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test samples that lie here, .npz.")] = None,
    public: Annotated[Path | None, typer.Option("--public", help="Samples everybody is given, .npz.")] = None,
    validation: Annotated[Path | None, typer.Option("--validation", help="Samples of the server's own, .npz.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    log_format: Log = None,
) -> None:
    """Coordinate a run over real sites. The same line again continues one that was stopped or killed.

    [bold]Examples[/]

      fedloom serve hospitals.toml --listen 0.0.0.0:8750 --certs certs

      fedloom serve hospitals.toml --listen 127.0.0.1:0 --out /tmp/try
    """
    from fedloom.deploy import Serving

    from .progress import watching
    from .running import _print_run  # pyright: ignore[reportPrivateUsage]

    place = out or Path("runs") / recipe.stem
    with _told(log_format) as console:
        serving = Serving(recipe, place, listen, certs, test=test, public=public, validation=validation)
        if certs is None:
            console.print("[bold yellow]note[/]   plain HTTP: nothing is encrypted, nobody is verified; loopback alone")
        names = serving.offer.terms.names
        console.print(f"listening at [bold]{serving.url}[/]; waiting for {', '.join(names)}", highlight=False)
        with watching(console) as watch:
            serving.observers = [watch.next(serving.offer.made.method, serving.offer.made.rounds)]
            done = serving.run()
    if report:
        done.report(place / "report.html")
    _print_run(done, place, report)


def join(
    url: Annotated[str, typer.Argument(help="The coordinator, https://HOST:PORT.", show_default=False)],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Samples, .npz or .csv; one file for each client of this site.")
    ],
    site: Annotated[str, typer.Option("--site", "-s", help="This site's name. (that of its certificate)")] = "",
    certs: Annotated[Path | None, typer.Option("--certs", help="Folder `fedloom certs issue` made.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="TOML: what this site takes part in.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="What this site keeps. (sites/NAME)")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Agree to the offer and to the use of this data.")] = False,
    patience: Annotated[float, typer.Option("--patience", help="Seconds without an answer before giving up.")] = 3600.0,
    log_format: Log = None,
) -> None:
    """Take part in a run with this site's data. Connects outward only; the same line again goes on after a kill.

    [bold]Example[/]

      fedloom join https://coordinator:8750 --data cleveland.npz --certs cleveland --policy policy.toml
    """
    from fedloom.deploy import join as joined

    if not site and certs is None:
        raise ConfigError("which site is this? Name it by --site NAME, or by --certs FOLDER, the certificate of a site")
    if certs is not None and not (certs / "site.pem").exists():
        raise ConfigError(f"{certs} holds no site's certificate; it is a folder that `fedloom certs issue NAME` made")

    def ask(approval: Approval) -> bool:
        if not (approve and log_format):  # the log has said what is offered
            _print_approval(Console(stderr=True, soft_wrap=True), approval)
        if approve:
            return True
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to agree; look at the offer above, and say --approve")
        return typer.confirm("Take part with this data?")

    files: Any = list(data) if len(data) > 1 else data[0]
    with _told(log_format, _line):
        summary = joined(url, files, site, certs=certs, out=out, policy=policy, approve=ask, patience=patience)
    print(json.dumps(dict(summary)))


def replay(
    folder: Annotated[Path, typer.Argument(help="Folder of a coordinator.", show_default=False)],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Every client's samples, in the order of the recipe's sites.")
    ],
    test: Annotated[Path | None, typer.Option("--test", help="As `serve` was given it.")] = None,
    public: Annotated[Path | None, typer.Option("--public", help="As `serve` was given it.")] = None,
    validation: Annotated[Path | None, typer.Option("--validation", help="As `serve` was given it.")] = None,
) -> None:
    """Compute a run over sites again on this machine, from its journal. Exit code 1 if the model is another.

    [bold]Example[/]

      fedloom replay runs/hospitals --data cleveland.npz --data budapest.npz
    """
    from fedloom.deploy.replay import replay as replayed

    done, same = replayed(folder, data, test, public=public, validation=validation)
    Console(soft_wrap=True).print(
        f"{done.host.version} rounds: {'the same model, bit for bit' if same else 'another model'}", highlight=False
    )
    if not same:
        raise typer.Exit(1)


def status(
    where: Annotated[str, typer.Argument(help="URL of a coordinator, or folder of a site.", show_default=False)],
    certs: Annotated[Path | None, typer.Option("--certs", help="Folder of a certificate, for a URL.")] = None,
    as_json: Json = False,
) -> None:
    """Show how a run over sites stands; or check a site's audit log, and show what left it.

    [bold]Examples[/]

      fedloom status https://coordinator:8750 --certs cleveland

      fedloom status sites/cleveland
    """
    if "://" not in where:
        _print_audit(Path(where), as_json)
        return
    from fedloom.deploy.link import Link

    link = Link(where, "", certs, patience=10)
    try:
        standing = link.standing()
    finally:
        link.close()
    if as_json:
        print(json.dumps(standing, indent=2))
        return
    console = Console(soft_wrap=True)
    console.print(
        f"[bold]{standing['method']}[/]  {standing['state']}, round {standing['round']} of {standing['rounds']}",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("site", "joined", "heard", "queue", "replies", "late", "refused", "excluded"):
        table.add_column(title)
    for name, s in standing["sites"].items():
        heard = "" if s["heard"] is None else f"{s['heard']:.0f} s ago"
        said = ["yes" if s["joined"] else "no", heard]
        counts = (str(s[k]) for k in ("queue", "replies", "late", "refused", "excluded"))
        table.add_row(f"[bold]{name}[/]", *said, *counts)
    console.print(table)
    for what in ("replies", "requests"):
        if refused := standing[f"refused_{what}"]:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(refused.items()))
            console.print(f"{what} refused: {reasons}", highlight=False)


@certs.command("init")
def init(
    folder: Folder = Path("certs"),
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Name or address of the coordinator; may be repeated.")
    ] = None,
) -> None:
    """Make an authority, and the coordinator's certificate.

    [bold]Example[/]

      fedloom certs init --host coordinator.example.org
    """
    from fedloom.deploy import Authority

    made = Authority.init(folder, [*(host or []), *_HERE])
    Console(soft_wrap=True).print(f"{made.folder}: keep ca.key here and nowhere else", highlight=False)


@certs.command()
def renew(
    folder: Folder = Path("certs"),
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address of the coordinator; may be repeated. (those it has)"),
    ] = None,
    days: Annotated[int, typer.Option("--days", help="How long it counts.", min=1, max=36500)] = 730,
) -> None:
    """Make a new certificate for the coordinator, before the old one ends or for other hosts. Sites keep theirs.

    [bold]Example[/]

      fedloom certs renew --host coordinator.example.org
    """
    from fedloom.deploy import Authority

    hosts = Authority(folder).renew([*host, *_HERE] if host else None, days)
    Console(soft_wrap=True).print(
        f"the coordinator's certificate is new, for {', '.join(hosts)}; start `fedloom serve` again, and it goes on "
        f"with it",
        highlight=False,
    )


@certs.command()
def issue(
    name: Annotated[str, typer.Argument(help="The site.", show_default=False)],
    folder: Folder = Path("certs"),
    days: Annotated[int, typer.Option("--days", help="How long it counts.", min=1, max=36500)] = 365,
) -> None:
    """Make a site's certificate; one it had before is revoked.

    [bold]Example[/]

      fedloom certs issue cleveland
    """
    from fedloom.deploy import Authority

    made = Authority(folder).issue(name, days)
    Console(soft_wrap=True).print(
        f"give {name} the folder {made}, in a way you trust: it holds its key", highlight=False
    )


@certs.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The site.", show_default=False)],
    folder: Folder = Path("certs"),
) -> None:
    """Withdraw a site's certificate, at once.

    [bold]Example[/]

      fedloom certs revoke cleveland
    """
    from fedloom.deploy import Authority

    serials = Authority(folder).revoke(name)
    Console(soft_wrap=True).print(f"{name} counts no more ({', '.join(serials)})", highlight=False)


# --------------------------------------------------------------------------------------------------- printing


def _print_approval(console: Console, approval: Approval) -> None:
    said, recipe = approval.declaration, approval.offer.made
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, value in (
        ("site", approval.site),
        ("method", f"{recipe.method}, {recipe.rounds} rounds"),
        ("with", ", ".join(approval.offer.terms.names)),
        ("channel", " | ".join(recipe.channel) or "as computed: no compression, no privacy stage"),
        ("settings", ", ".join(f"{k}={v}" for k, v in recipe.set.items())),
        ("said of the data", f"sizes {said['sizes']}, fields {said['fields']}, {said['classes']} classes"),
        ("its hash", said["sha256"]),
    ):
        table.add_row(f"[dim]{key}[/]", escape(str(value)))
    console.print(table)


@contextmanager
def _told(format: LogFormat | None, line: Callable[[Event], str | None] = lambda event: None) -> Iterator[Console]:
    """A console for people, who are also told what `line` makes of events; with a format it is silent, and events are
    written instead: how the block failed, too.
    """
    from fedloom.deploy.logs import say, write_to

    console = Console(stderr=True, soft_wrap=True, quiet=format is not None)
    handler = _Lines(console, line) if format is None else write_to(sys.stderr, format.value)
    events = logging.getLogger("fedloom.deploy")
    if format is None:
        events.addHandler(handler)
        events.setLevel(logging.INFO)
    try:
        yield console
    except KeyboardInterrupt:
        say("stopped")
        console.print("stopped. The same command goes on from here", highlight=False)
        raise typer.Exit(130) from None
    except FedloomError as e:
        if format is None:
            raise
        say("failed", logging.ERROR, why=str(e))
        raise typer.Exit(2) from None
    finally:
        for logger in (events, logging.getLogger()):
            logger.removeHandler(handler)


class _Lines(logging.Handler):
    """Events as lines for people; what is still so is not said again."""

    def __init__(self, console: Console, line: Callable[[Event], str | None]) -> None:
        super().__init__()
        self._console, self._line, self._said = console, line, ""

    def emit(self, record: logging.LogRecord) -> None:
        from fedloom.deploy.logs import event_of

        text = self._line(event_of(record))
        if text is not None and text != self._said:
            self._said = text
            self._console.print(text, highlight=False, markup=False)


def _line(event: Event) -> str | None:
    """What a site's operator reads."""
    said = event.fields
    if event.name == "joined":
        return f"joined as {said['site']}; {said['sites']} of {said['of']} sites are there"
    if event.name == "job":
        judged = f"{said.get('program', 'the model')}, on {said['judge']} data" if "judge" in said else None
        return f"round {said['round']}: {judged or said['program']}"
    if event.name == "again":
        return f"asking again: {said['why']}"
    if event.name == "sent":
        why = f" ({said['why']})" if "why" in said else ""
        return {"yes": "  sent", "late": "  too late", "closed": "  not waited for"}.get(
            said["verdict"], "  refused"
        ) + why
    return {"ended": "the run is over", "waiting": "waiting for other sites"}.get(event.name)


def _print_audit(folder: Path, as_json: bool) -> None:
    from fedloom.deploy import Store

    if not (folder / "site.db").exists():
        raise ConfigError(f"{folder} is not the folder of a site: it has no site.db")
    store = Store(folder)
    try:
        entries = store.audit()
    finally:
        store.close()
    if as_json:
        print(json.dumps([{**e.what, "hash": e.hash} for e in entries], indent=2))
        return
    console = Console(soft_wrap=True)
    total = sum(int(e.what.get("bytes", 0)) for e in entries)
    console.print(f"{len(entries)} entries, unbroken; {total:,} bytes left this site", highlight=False)
    for e in entries:
        about = ", ".join(f"{k} {v}" for k, v in e.what.items() if k in ("job", "program", "round", "bytes", "plan"))
        console.print(f"{e.what['at']:.0f}  {e.what['left']}  {about}", markup=False, highlight=False)
