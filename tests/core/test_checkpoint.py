"""Checkpoints: written whole or not at all; a killed run ends as if it had never been interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedloom as fl
from fedloom.errors import CheckpointError
from fedloom.runs import checkpoint
from fedloom.selection import Uniform
from fedloom.testing import Trial, difference, outcome

PROGRAM = """
    import sys, torch, fedloom as fl
    from fedloom.testing import Trial
    method = fl.catalogue()[sys.argv[2]]
    trial = Trial(method)
    experiment = trial.experiment(out=sys.argv[1], rounds=int(sys.argv[3]), checkpoint_seconds=float(sys.argv[4]))
    print("ready", flush=True)
    from pathlib import Path
    experiment.run(resume=Path(sys.argv[1], "config.toml").exists())
    print("done", flush=True)
"""


def start(folder, method, rounds, every):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), method, str(rounds), str(every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize(
    ("method", "every", "delays"), [("scaffold", 0.0, (0.01, 0.23)), ("fedbuff", 0.05, (0.05, 0.15))]
)
def test_kill_dash_nine_at_odd_moments(tmp_path, method, every, delays):
    rounds, killed = 40, 0
    for delay in delays:
        process = start(tmp_path / "killed", method, rounds, every)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 1
    process = start(tmp_path / "killed", method, rounds, every)
    out, err = process.communicate(timeout=120)
    assert out.endswith("done\n"), err
    whole = Trial(fl.catalogue()[method]).experiment(out=tmp_path / "whole", rounds=rounds).run()
    mine, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("killed", "whole"))
    assert difference(mine, theirs) == ""
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "wall"} for line in text.splitlines()]
        for text in ((tmp_path / n / "metrics.jsonl").read_text() for n in ("killed", "whole"))
    ]
    assert difference(*logs) == ""
    assert len(logs[0]) == rounds == whole.host.version
    assert not list((tmp_path / "killed").rglob("*.partial"))


# ---------------------------------------------------------------- files


def content(k):
    return {"round": k, "params": torch.full((2000,), float(k))}


def test_the_last_two_are_kept(tmp_path):
    for k in range(5):
        checkpoint.save(tmp_path, k, content(k))
    assert [p.name for p in checkpoint.found(tmp_path)] == ["round-000003.ckpt", "round-000004.ckpt"]
    round, saved, troubles = checkpoint.load(tmp_path)
    assert (round, troubles) == (4, [])
    assert difference(saved, content(4)) == ""


def test_the_last_are_those_of_the_last_rounds_however_many_digits(tmp_path):
    for k in (999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, k, content(k))
    assert [p.name for p in checkpoint.found(tmp_path)] == ["round-1000000.ckpt", "round-1000001.ckpt"]
    assert checkpoint.load(tmp_path)[0] == 1_000_001


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other"])
def test_a_damaged_newest_is_passed_over_and_named(tmp_path, damage):
    checkpoint.save(tmp_path, 1, content(1))
    newest = checkpoint.save(tmp_path, 2, content(2))
    raw = bytearray(newest.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
    newest.write_bytes({"truncated": raw[:-100], "empty": b"", "flipped": raw, "other": b"something else"}[damage])
    round, saved, (trouble,) = checkpoint.load(tmp_path)
    assert round == saved["round"] == 1
    assert "round-000002.ckpt" in trouble
    assert "the one before is used" in trouble


def test_nothing_whole(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no \*\.ckpt"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 1, content(1)).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"nothing to resume from: round-000001\.ckpt: not a Fedloom checkpoint"):
        checkpoint.load(tmp_path)


def test_a_full_disk_leaves_the_one_before(tmp_path):
    """A limit on file size makes the kernel refuse the rest of the write, as a full disk does."""
    checkpoint.save(tmp_path, 1, content(1))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*round-000002.*round-000001\.ckpt.*Make room"):
            checkpoint.save(tmp_path, 2, content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001.ckpt"]
    assert checkpoint.load(tmp_path)[0] == 1


# ---------------------------------------------------------------- runs


def make(folder, **options):
    return Trial(fl.FedAvg).experiment(out=folder, checkpoint_seconds=0.0, evaluate_every=1, **options)


def stopped(experiment, after):
    """Ended by force after a round, whose checkpoint comes after its event."""

    def stop(event):
        if event["event"] == "round" and event["round"] == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(experiment, observers=(stop,)).run()


def test_a_truncated_newest_checkpoint_costs_one_round(tmp_path):
    reference = make(None, rounds=4).run()
    make(tmp_path, rounds=3).run()
    newest = checkpoint.found(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-50])
    said = []
    run = make(tmp_path, rounds=4, observers=(said.append,)).run(resume=True)
    assert run.resumed_from == 2
    assert any("round-000003.ckpt" in e.get("text", "") for e in said)
    assert difference(outcome(run), outcome(reference)) == ""


def test_resuming_an_ended_run_changes_nothing(tmp_path):
    ended = make(tmp_path).run()
    files = {p.name: p.read_bytes() for p in Path(tmp_path).rglob("*.jsonl")}
    again = make(tmp_path).run(resume=True)
    assert difference(outcome(ended), outcome(again)) == ""
    assert {p.name: p.read_bytes() for p in Path(tmp_path).rglob("*.jsonl")} == files


def test_more_rounds_go_on_where_the_last_ended(tmp_path):
    make(tmp_path, rounds=2).run()
    longer = make(tmp_path, rounds=5).run(resume=True)
    assert difference(outcome(longer)["state"], outcome(make(None, rounds=5).run())["state"]) == ""


def test_a_folder_holds_one_run_though_its_log_is_gone(tmp_path):
    """Checkpoints of two runs would push each other out."""
    make(tmp_path).run()
    for log in (tmp_path / "metrics.jsonl", None):
        with pytest.raises(fl.FedloomError, match="already holds a run"):
            make(tmp_path).run()
        if log is not None:
            log.unlink()


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 5}, "seed: then 0, now 5"), ({"dtype": torch.float32}, "dtype"), ({"sizes": (5, 6)}, "data")],
)
def test_another_experiment_is_refused(tmp_path, changed, told):
    make(tmp_path).run()
    with pytest.raises(CheckpointError, match=f"belongs to another experiment.*{told}"):
        make(tmp_path, **changed).run(resume=True)


@pytest.mark.parametrize("then", ["networks", "identity"])
def test_a_checkpoint_of_another_version_is_named_as_one(tmp_path, then):
    make(tmp_path, rounds=1).run()
    round, saved, _ = checkpoint.load(tmp_path / "checkpoints")
    if then == "networks":
        del saved["networks"]
    else:
        del saved["identity"]["task"]
    checkpoint.save(tmp_path / "checkpoints", round, saved)
    with pytest.raises(CheckpointError, match="another version of Fedloom; run it anew"):
        make(tmp_path, rounds=2).run(resume=True)


def test_other_hyperparameters_are_refused(tmp_path):
    make(tmp_path).run()
    with pytest.raises(CheckpointError, match="hyperparameters"):
        make(tmp_path, method=fl.FedAvg(cohort=2)).run(resume=True)


async def flipped(client, honest, **payload):
    return await honest(client, **payload)


@dataclass(frozen=True)
class Squared(fl.Classification):
    def losses(self, scores, batch):
        return super().losses(scores, batch).square()


class Alike(Uniform):
    """Another policy with the same settings."""


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"behave": {0: flipped}}, {}, r"behave: then \{0: <function flipped>\}, now \{\}"),
        ({}, {"task": Squared(model="mlp:8,dim=6")}, "task: then Classification with .*, now Squared"),
        (
            {"method": fl.Selected(inner=fl.FedAvg(cohort=2), policy=Uniform())},
            {"method": fl.Selected(inner=fl.FedAvg(cohort=2), policy=Alike())},
            r"hyperparameters: .*policy=Uniform\(.*now .*policy=Alike\(",
        ),
    ],
    ids=["an adversary", "a loss", "a policy"],
)
def test_what_the_rounds_so_far_were_run_with_is_not_changed_by_a_resume(tmp_path, then, now, told):
    make(tmp_path, rounds=1, **then).run()
    with pytest.raises(CheckpointError, match=f"belongs to another experiment.*{told}"):
        replace(make(tmp_path, rounds=2), **now).run(resume=True)


def test_an_earlier_run_is_asked_for_until_the_method_has_started_from_it(tmp_path):
    first, other = make(None, rounds=1).run(), make(None, rounds=2).run()
    whole = make(None, rounds=2, before=first).run()
    stopped(make(tmp_path, rounds=2, before=first), after=0)
    for before, told in ((None, "none"), (other, "FedAvgState")):
        with pytest.raises(CheckpointError, match=f"before: then FedAvgState .*, now {told}"):
            make(tmp_path, rounds=2, before=before).run(resume=True)
    assert difference(outcome(make(tmp_path, rounds=2, before=first.state).run(resume=True)), outcome(whole)) == ""
    assert difference(outcome(make(tmp_path, rounds=2).run(resume=True)), outcome(whole)) == ""


@dataclass(frozen=True)
class Ruled(fl.FedAvg):
    rule: Callable[[float], float] = float


def test_functions_of_ones_own_do_not_keep_a_run_from_being_resumed(tmp_path):
    ruled = [Ruled(rule=lambda x: 2 * x) for _ in range(2)]
    assert repr(ruled[0]) != repr(ruled[1]), "as in another process"
    make(tmp_path, rounds=1, method=ruled[0]).run()
    assert make(tmp_path, rounds=2, method=ruled[1]).run(resume=True).resumed_from == 1


def test_killed_before_the_first_checkpoint_starts_again(tmp_path):
    make(tmp_path).run()
    for path in checkpoint.found(tmp_path / "checkpoints"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"there is no \*\.ckpt"):
        make(tmp_path).run(resume=True)
    (tmp_path / "metrics.jsonl").unlink()  # it is written after the first checkpoint
    again = make(tmp_path).run(resume=True)
    assert difference(outcome(again), outcome(make(None).run())) == ""


HOLD = """
    import fcntl, sys
    lock = open(sys.argv[1], "a")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_runs_in_a_folder(tmp_path):
    make(tmp_path, rounds=2).run()
    log = (tmp_path / "metrics.jsonl").read_bytes()
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(fl.FedloomError, match=r"in use: another process runs in it.*run\(resume=True\)"):
            make(tmp_path, rounds=3).run(resume=True)
        assert (tmp_path / "metrics.jsonl").read_bytes() == log
        other.kill()
    assert make(tmp_path, rounds=3).run(resume=True).resumed_from == 2


def test_a_folder_that_was_never_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        make(tmp_path).run(resume=True)
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        fl.resume(tmp_path)


@dataclass(frozen=True)
class Ends(fl.FedAvg):
    """FedAvg whose last word asks everybody once more, and remembers that it did."""

    card = replace(fl.FedAvg.card, id="ends", needs=frozenset({"memory"}))

    async def last(self, client, params):
        client.memory["asked"] = client.memory.get("asked", 0) + 1
        noise = torch.randn(params.shape, generator=client.rng("noise"), dtype=params.dtype)
        return fl.Message(delta=noise)

    def finish(self, state, clients):
        drawn = torch.rand(1, generator=clients.rng("finish"), dtype=state.params.dtype)
        got = clients.mean(self.last, weight=1, params=state.params)
        return replace(state, params=state.params + got.delta + drawn)


def ending(folder, **options):
    return Trial(Ends).experiment(out=folder, checkpoint_seconds=0.0, evaluate_every=1, **options)


def test_more_rounds_after_a_last_word(tmp_path):
    short = ending(tmp_path, rounds=2).run()
    assert {m["asked"] for m in short.memories.values()} == {1}
    assert difference(outcome(ending(tmp_path, rounds=2).run(resume=True)), outcome(short)) == ""
    longer, whole = ending(tmp_path, rounds=4).run(resume=True), ending(None, rounds=4).run()
    assert difference(outcome(longer), outcome(whole)) == ""
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4]


def test_a_run_that_ends_where_it_was_stopped_has_its_last_word_and_its_last_figures(tmp_path):
    few = {"evaluate_every": 5, "checkpoint_seconds": 0.0}
    stopped(Trial(Ends).experiment(out=tmp_path, rounds=6, **few), after=3)
    ended, whole = (Trial(Ends).experiment(out=out, rounds=3, **few) for out in (tmp_path, None))
    run = ended.run(resume=True)
    assert difference(outcome(run), outcome(whole.run())) == ""
    assert [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert difference(outcome(ended.run(resume=True)), outcome(run)) == ""


def test_a_run_of_no_rounds_can_be_given_some(tmp_path):
    ending(tmp_path, rounds=0).run()
    longer = ending(tmp_path, rounds=2).run(resume=True)
    assert difference(outcome(longer), outcome(ending(None, rounds=2).run())) == ""


def test_a_last_word_is_not_lost_with_the_checkpoint_that_had_it(tmp_path):
    ending(tmp_path, rounds=2).run()
    whole = ending(tmp_path, rounds=3).run(resume=True)
    (tmp_path / "checkpoints" / "round-000003.ckpt").write_bytes(b"damaged")
    assert difference(outcome(ending(tmp_path, rounds=3).run(resume=True)), outcome(whole)) == ""


def test_fewer_rounds_than_were_run_are_refused(tmp_path):
    make(tmp_path, rounds=3).run()
    with pytest.raises(CheckpointError, match=r"has 3 rounds already, and rounds=2 is fewer; give rounds=3 or more"):
        make(tmp_path, rounds=2).run(resume=True)


def test_another_model_is_refused(tmp_path):
    make(tmp_path).run()
    other = replace(make(tmp_path), task=fl.Classification(model="mlp:9,dim=6"))
    with pytest.raises(CheckpointError, match=r"belongs to another model .*then mlp:8,dim=6: .*, now mlp:9,dim=6"):
        other.run(resume=True)


def chain(*widths, names="abc"):
    """Linear layers one after the other, under these names."""
    layers = [nn.Linear(n, m, bias=False) for n, m in pairwise(widths)]
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), **dict(zip(names, layers, strict=True))))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (chain(64, 1, 14, 4), r"then net: a.weight \(2, 64\), now net: a.weight \(1, 64\)"),
        (chain(64, 2, 1, 4, names="acb"), r"then net: b.weight \(1, 2\), now net: c.weight \(1, 2\)"),
        (chain(64, 2, 1, 4, 4, names="abcd"), r"then nothing more, now net: d.weight \(4, 4\)"),
    ],
    ids=["other widths", "other names", "other depth"],
)
def test_a_network_edited_since_is_noticed_piece_by_piece(tmp_path, now, told):
    task = fl.Classification(model={"net": chain(64, 2, 1, 4)})
    make(tmp_path, task=task).run()
    with pytest.raises(CheckpointError, match=f"belongs to another model .*{told}"):
        make(tmp_path, task=replace(task, model={"net": now})).run(resume=True)


def test_networks_that_clients_take_in_another_turn_are_other_networks(tmp_path):
    task = fl.Classification(model={"narrow": "mlp:8,dim=6", "wide": "mlp:9,dim=6"})
    turned = replace(task, model=dict(reversed(task.model.items())))
    trial = Trial(fl.FedProto)
    trial.experiment(task=task, out=tmp_path).run()
    with pytest.raises(CheckpointError, match=r"belongs to another model .*then narrow.*, now wide"):
        trial.experiment(task=turned, out=tmp_path).run(resume=True)


def test_writing_large_memories_takes_a_tenth_of_the_time(tmp_path, monkeypatch):
    saved, plain = [], checkpoint.save

    def slow(folder, round, content):
        time.sleep(0.2)
        saved.append(round)
        return plain(folder, round, content)

    monkeypatch.setattr(checkpoint, "save", slow)
    Trial(fl.FedAvg).experiment(out=tmp_path, checkpoint_seconds=1e-6, rounds=6).run()
    assert saved[:2] == [0, 1]
    assert saved[-1] == 6
    assert len(saved) < 6


def test_a_checkpoint_is_not_in_memory_four_times(tmp_path):
    import tracemalloc

    memories = {i: {"v": torch.zeros(250_000)} for i in range(16)}  # 16 MB
    tracemalloc.start()  # counts what Python holds: the bytes, not PyTorch's tensors
    checkpoint.save(tmp_path, 1, memories)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.2 * (16 << 20)


def test_only_numbered_rounds_are_checkpoints(tmp_path):
    checkpoint.save(tmp_path, 3, {"a": 1})
    (tmp_path / "round-x.ckpt").write_bytes(b"a note of the user's")
    assert checkpoint.load(tmp_path) == (3, {"a": 1}, [])
