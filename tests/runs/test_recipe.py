"""Recipes: complete, typed, and the same after a trip through TOML or a command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from fedloom.errors import ConfigError
from fedloom.methods.optimisation.fedprox import FedProx
from fedloom.runs import Recipe
from fedloom.runs.recipe import pairs
from fedloom.training import Adam

FULL = Recipe(
    method="fedprox",
    data="synthetic:1,1",
    clients=12,
    partition="rotation:45,groups=4/dirichlet:0.1",
    rounds=7,
    cohort=3,
    seed=4,
    val=0.1,
    public=0.05,
    limit=500,
    engine="sequential",
    dtype="float64",
    evaluate_every=2,
    per_client=True,
    buffers="batch",
    on_failure="exclude",
    channel=("topk:0.05", "quantize:8"),
    set={"mu": 0.5, "solver": "adam", "solver.lr": "0.01"},
    world={"spread": 0.5},
)


@pytest.mark.parametrize("recipe", [Recipe(method="fedavg"), FULL, FULL.complete()], ids=["short", "full", "complete"])
def test_toml_reads_back_to_the_same_recipe(recipe: Recipe, tmp_path: Path):
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    file = tmp_path / "config.toml"
    file.write_text(recipe.to_toml() + "\n[run]\nclients = 3\n")
    assert Recipe.from_toml(file) == recipe


def test_settings_become_the_methods_fields():
    made = FULL.method_object()
    assert isinstance(made, FedProx)
    assert (made.mu, made.cohort, made.solver) == (0.5, 3, Adam(lr=0.01))


def test_nested_tables_are_dotted_names():
    recipe = Recipe.from_toml('method = "fedavg"\n[set.solver]\nlr = 0.5\n')
    assert recipe.set == {"solver.lr": 0.5}


def test_a_complete_recipe_names_every_hyperparameter():
    complete = Recipe(method="fedprox", cohort=3).complete()
    assert complete.method_object() == FedProx(cohort=3)
    assert {"mu", "cohort", "solver", "solver.lr", "solver.momentum"} <= set(complete.set)


@pytest.mark.parametrize("recipe", [Recipe(method="fedavg"), FULL, FULL.complete()], ids=["short", "full", "complete"])
def test_the_command_line_repeats_the_recipe(recipe: Recipe):
    from fedloom.cli.app import app
    from fedloom.cli.options import Training
    from fedloom.cli.running import _one, _recipe

    words = shlex.split(recipe.command())
    assert words[:2] == ["fedloom", "run"]
    import typer.main

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    parsed = command.make_context("run", words[2:]).params
    methods, given = parsed.pop("method"), Training(**parsed).given()
    read = _recipe(None, {**given, **_one(methods, given.get("set", {}))})
    assert read.complete().to_toml() == recipe.complete().to_toml()


def test_the_command_leaves_defaults_out():
    assert Recipe(method="fedavg", seed=3).complete().command() == "fedloom run fedavg --seed 3"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs 'method'"),
        ({"method": "fedavg", "round": 3}, "Did you mean 'rounds'"),
        ({"method": "fedavg", "rounds": 0}, "rounds=0"),
        ({"method": "fedavg", "rounds": "many"}, "rounds='many'"),
        ({"method": "fedavg", "val": 1.5}, "share of a client's samples"),
        ({"method": "fedavg", "set": 3}, "set=3"),
        ({"method": "feddip", "set": {"strength": None}}, "set.strength=None"),
        ({"method": "fedavg", "set": {"solver": {"lr": None}}}, "set.solver.lr=None"),
        ({"method": "fedavg", "set": {1: None}}, "set.1=None"),
        ({"method": "fedavg", "set": {"solver.lr": 0.1, "solver": {"lr": 0.5}}}, "solver.lr is given twice"),
        ({"method": "fedavg", "world": {"a": {"b.c": 1, "b": {"c": 1}}}}, "a.b.c is given twice"),
    ],
)
def test_impossible_recipes_are_refused(given: dict, said: str):
    with pytest.raises(ConfigError) as raised:
        Recipe(**given)
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["method = ", "method = 3", "[[[", "\x00"])
def test_corrupt_files_are_refused_with_their_name(text: str, tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        Recipe.from_toml(file)


def test_files_that_are_no_text_are_refused(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        Recipe.from_toml(file)
    with pytest.raises(ConfigError, match="cannot read"):
        Recipe.from_toml(tmp_path / "missing.toml")


def test_a_cohort_is_given_once():
    with pytest.raises(ConfigError, match="both --cohort 3 and --set cohort=4"):
        Recipe(method="fedavg", cohort=3, set={"cohort": 4}).method_object()


def test_what_the_data_decides_is_written_down():
    experiment = Recipe(method="fedavg", data="digits", limit=200, dtype="float64").experiment()
    assert experiment.recipe is not None
    assert (experiment.recipe.clients, experiment.recipe.partition) == (len(experiment.federation), "dirichlet:0.3")
    assert experiment.recipe.model == "mlp"
    assert experiment.dtype == torch.float64


def test_clients_may_take_turns_with_networks():
    experiment = Recipe(method="fedproto", data="digits", limit=200, model="mlp:16,dim=8+mlp:32,dim=8").experiment()
    assert list(experiment.plan().models) == ["mlp:16,dim=8", "mlp:32,dim=8"]


def test_pairs():
    assert pairs(["a=1", "b.c = x=y"]) == {"a": "1", "b.c": "x=y"}
