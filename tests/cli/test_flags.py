"""The command line is an interface: a flag that comes, goes or is renamed shows here."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer.main

import fedloom as fl
from fedloom.cli.app import app

TRAINING = {
    "--availability", "--buffers", "--channel", "--clients -n", "--cohort -k", "--data -d", "--deadline", "--device",
    "--devices", "--dtype", "--engine -e", "--network", "--over",
    "--evaluate-every", "--json", "--limit", "--model -m", "--on-failure", "--out -o", "--partition -p", "--per-client",
    "--public", "--recipe", "--report --no-report", "--rounds -r", "--seed -s", "--set", "--val", "--validation",
    "--address", "--worker-cpus", "--worker-gpus", "--workers", "--world",
}  # fmt: skip

FLAGS = {
    "run": TRAINING | {"method"},
    "compare": TRAINING | {"methods", "--seeds"},
    "resume": {"folder", "--json", "--report --no-report"},
    "report": {"folders", "--out -o", "--title"},
    "methods": {"--family -f", "--json"},
    "show": {"name", "--cite", "--json"},
    "data": {"name", "--clients -n", "--json", "--limit", "--partition -p", "--report", "--seed -s"},
    "serve": {
        "recipe",
        "--certs",
        "--listen -l",
        "--log-format",
        "--out -o",
        "--public",
        "--report --no-report",
        "--test",
        "--validation",
    },
    "join": {
        "url",
        "--approve",
        "--certs",
        "--data -d",
        "--log-format",
        "--out -o",
        "--patience",
        "--policy",
        "--site -s",
    },
    "status": {"where", "--certs", "--json"},
    "replay": {"folder", "--data -d", "--public", "--test", "--validation"},
    "certs": set(),
    "check": {"name"},
    "claims": {"--family", "--run"},
    "claim": {"name", "--afresh", "--all", "--family", "--json", "--quick", "--seeds"},
    "bench": {"--device"},
    "doctor": set(),
}


def test_commands_and_flags_are_these():
    group = typer.main.get_command(app)
    found = {
        name: {" ".join([*p.opts, *p.secondary_opts]) for p in command.params if p.name != "help"}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == FLAGS


def test_every_flag_of_a_run_is_a_key_of_its_recipe():
    from fedloom.runs import Recipe

    flags = {flag.split()[0].removeprefix("--").replace("-", "_") for flag in TRAINING}
    assert flags - {"json", "out", "recipe", "report"} | {"method"} == set(Recipe.model_fields)


@pytest.mark.parametrize("line", ["--help", "--version", *(f"{name} --help" for name in FLAGS)])
def test_help_does_not_wait_for_torch(line: str):
    code = f"""
import atexit, sys
from fedloom.cli import main
atexit.register(lambda: print("torch" if "torch" in sys.modules else "light"))
main({line.split()!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "light"
    assert line == "--version" or "Usage" in done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [("fedavg", "the method is FedAvg"), ("FedAvgg", "Did you mean FedAvg"), ("Federations", "Federation")],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(name: str, said: str):
    with pytest.raises(AttributeError, match=said):
        getattr(fl, name)


def test_names_are_imported_when_they_are_asked_for():
    code = """
import fedloom as fl, sys
assert "torch" not in sys.modules
from fedloom import *
assert (Message, run) == (fl.Message, fl.run)
assert fl.selection.Oort and fl.Scaffold.card.id == "scaffold"
assert {"run", "Message", "Scaffold"} <= set(dir(fl))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
