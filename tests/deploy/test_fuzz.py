"""Whatever bytes there are, what reads them says that they are malformed, and fails in no other way."""

from __future__ import annotations

import contextlib
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from fedloom.channel.compression.packed import Quantized, Signs, Sparse
from fedloom.deploy import Policy, Store, Terms
from fedloom.deploy.agreement import Agreement, Offer
from fedloom.deploy.blobs import Blobs, name_of
from fedloom.deploy.journal import Journal, Written
from fedloom.deploy.serving import Serving
from fedloom.deploy.wire import Reply, job_of
from fedloom.errors import CheckpointError, FedloomError, MessageError
from fedloom.message import At, Message, opened
from fedloom.method import catalogue
from fedloom.runs import Recipe, checkpoint
from fedloom.written import loads, safetensors_of

catalogue()
QUICK = settings(max_examples=150, deadline=None)

# ---------------------------------------------------------------- messages

RICH = Reply(
    message=Message(
        delta=torch.ones(3),
        n=2.0,
        rows=At(torch.tensor([1]), torch.ones(1, 2), 4),
        quantised=Quantized(torch.zeros(4, dtype=torch.uint8), torch.ones(1), 8, (4,)),
        signs=Signs(torch.zeros(1, dtype=torch.uint8), torch.ones(()), (4,)),
        sparse=Sparse(torch.ones(1), torch.tensor([1], dtype=torch.int32), (4,)),
        parts=[{"a": (1, None, "x")}],
    ),
    work=[[1.0, 2.0, 3.0]],
    booked={"eps": 0.5},
).dumps()
LIMIT = 10**6


def read(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(Reply.loads(data, LIMIT), Reply)


@QUICK
@given(st.binary(max_size=200))
def test_random_bytes(data):
    read(data)


@QUICK
@given(
    st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "double", "drop"]), st.integers(0, 10**6), st.integers(1, 255)),
        min_size=1,
        max_size=6,
    )
)
def test_a_reply_that_was_changed(changes):
    data = bytearray(RICH)
    for how, where, what in changes:
        at = where % max(len(data), 1)
        if how == "flip" and data:
            data[at] ^= what
        elif how == "cut":
            del data[at:]
        elif how == "double":
            data[at:at] = data[at : at + what]
        else:
            del data[at : at + what]
    read(bytes(data))


NUMBERS = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.floats(), st.booleans(), st.sampled_from([0, 1, -1, 2**31, 2**63, 10**15])
)
LEAVES = st.one_of(
    NUMBERS, st.none(), st.text(max_size=4), st.sampled_from([{"$": "tensor", "name": f"t{k}"} for k in range(9)])
)
KINDS = ("list", "tuple", "set", "frozenset", "message", "dict", "float", "tensor", "unknown")
RECORDS = {
    "fedloom.message:At": ("index", "values", "size", "known"),
    "fedloom.message:Once": ("value",),
    "fedloom.message:Covered": ("total", "held"),
    "fedloom.channel.compression.packed:Quantized": ("codes", "scales", "bits", "shape"),
    "fedloom.channel.compression.packed:Signs": ("signs", "scale", "shape"),
    "fedloom.channel.compression.packed:Sparse": ("values", "place", "shape"),
    "fedloom.channel.compression.packed:PackedAt": ("index", "values", "size", "known"),
    "fedloom.channel.compression.packed:Plain": ("values",),
    "fedloom.methods.systems.sparse:Mask": ("place", "size"),
}
TENSORS = {
    f"t{k}": t
    for k, t in enumerate(
        (
            torch.ones(3),
            torch.zeros(4, dtype=torch.uint8),
            torch.tensor([0, 2]),
            torch.tensor(1.0),
            torch.zeros(0),
            torch.tensor([True, False]),
            torch.ones(2, 2),
            torch.tensor([math.nan]),
            torch.ones(2, dtype=torch.bfloat16),
        )
    )
}


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Trees as `dumps` writes them, of which anything may be wrong."""
    rows = st.lists(inner, max_size=3).map(lambda of: {"$": "tuple", "of": of})
    plain = st.builds(lambda kind, of: {"$": kind, "of": of}, st.sampled_from(KINDS), st.lists(inner, max_size=3))
    records = st.sampled_from(sorted(RECORDS)).flatmap(
        lambda kind: st.tuples(*[st.one_of(LEAVES, rows, inner) for _ in RECORDS[kind]]).map(
            lambda values: {"$": kind, "of": [list(pair) for pair in zip(RECORDS[kind], values)]}
        )
    )
    fields = st.lists(st.tuples(st.text(max_size=3), inner).map(list), max_size=3)
    return st.one_of(rows, plain, records, fields.map(lambda of: {"$": "message", "of": of}))


TRUE, BYTES = {"$": "tensor", "name": "true"}, {"$": "tensor", "name": "bytes"}
ONE = {"$": "tuple", "of": [1]}


def bytes_of(tree: Any) -> bytes:
    return safetensors.torch.save(TENSORS, metadata={"fedloom": json.dumps(tree)})


@settings(max_examples=200, deadline=None)
@given(st.recursive(LEAVES, grown, max_leaves=8), st.sampled_from(sorted(Reply.__dataclass_fields__)))
def test_a_reply_with_anything_in_a_field(value, field):
    """Well-formed on the outside, anything within: packed tensors whose parts do not go together, most of all."""
    fields: dict[str, Any] = {
        "message": None,
        "work": {"$": "list", "of": []},
        "booked": {"$": "dict", "of": []},
        "changed": False,
        "excluded": None,
        "asked": {"$": "list", "of": [0, 0]},
    }
    fields["message"] = {"$": "message", "of": [["x", value]]}
    read(bytes_of({"$": "dict", "of": [[k, v] for k, v in fields.items()]}))
    fields["message"], fields[field] = None, value
    read(bytes_of({"$": "dict", "of": [[k, v] for k, v in fields.items()]}))


def test_a_reply_as_deep_as_one_likes():
    for depth in (100, 400, 900, 20_000):
        inner: Any = "1"
        text = '{"$": "list", "of": [' * depth + inner + "]}" * depth
        body = f'{{"$": "dict", "of": [["message", {text}]]}}'
        read(safetensors.torch.save(TENSORS, metadata={"fedloom": body}))


@pytest.mark.parametrize(
    "small",
    [
        {"$": "fedloom.message:At", "of": [["index", TRUE], ["values", BYTES], ["size", 4]]},
        {"$": "fedloom.channel.compression.packed:Signs", "of": [["signs", BYTES], ["scale", BYTES], ["shape", ONE]]},
        {
            "$": "fedloom.channel.compression.packed:Quantized",
            "of": [["codes", BYTES], ["scales", BYTES], ["bits", 8], ["shape", ONE]],
        },
        {
            "$": "fedloom.channel.compression.packed:Quantized",
            "of": [["codes", BYTES], ["scales", BYTES], ["bits", 10**7], ["shape", ONE]],
        },
    ],
    ids=["a mask", "more signs than entries", "more codes than entries", "more bits than a code has"],
)
def test_what_takes_many_times_its_bytes_to_read_is_malformed(small):
    tensors = {"true": torch.ones(4, dtype=torch.bool), "bytes": torch.ones(4, dtype=torch.uint8)}
    body = b"".join(safetensors_of(tensors, {"fedloom": json.dumps({"$": "message", "of": [["x", small]]})}))
    with pytest.raises(MessageError):
        opened(loads(body))


# ---------------------------------------------------------------- plans, offers, jobs


def _offer() -> dict[str, Any]:
    return Offer.of(Recipe(method="fedavg", rounds=5), Terms(names=["a", "b"], deadline=5.0)).content()


def _agreement() -> dict[str, Any]:
    held = {"sizes": [9], "fields": {"x": [[8], "float32"], "y": [[], "int64"]}, "classes": 4, "sha256": "0"}
    return {"offer": _offer(), "held": {"a": held, "b": held}}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in inner for p in _places(v, (*path, k))]


JSON = st.recursive(NUMBERS | st.none() | st.text(max_size=6), lambda x: st.lists(x, max_size=3), max_leaves=4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_plan_in_which_anything_is_wrong(data):
    """A site that is sent it refuses it in words, or makes of it what it says."""
    content = deepcopy(_agreement())
    for _ in range(data.draw(st.integers(1, 3))):
        places = _places(content)
        if not places:
            break
        *path, last = data.draw(st.sampled_from(places))
        inside: Any = content
        for step in path:
            inside = inside[step]
        how = data.draw(st.sampled_from(["gone", "other", "text"]))
        if how == "gone":
            del inside[last]
        elif how == "text" and isinstance(inside[last], str):
            text, at = inside[last], data.draw(st.integers(0, len(inside[last])))
            inside[last] = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :]
        else:
            inside[last] = data.draw(JSON)
    with contextlib.suppress(FedloomError):
        agreement = Agreement.read(content)
        Policy().check(agreement.offer)
        assert agreement.hash
        agreement.federation()


@QUICK
@given(st.dictionaries(st.sampled_from(["id", "number", "client", "program", "payload", "key", "memory"]), JSON))
def test_a_job_in_which_anything_is_wrong(content):
    with pytest.raises(MessageError):
        job_of(content, Message(), {})


# ---------------------------------------------------------------- pieces, and files that were cut


@QUICK
@given(
    st.binary(min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45), st.booleans(), st.sampled_from("ab")), max_size=12),
)
def test_pieces_in_any_order(tmp_path_factory, body, pieces):
    """What is whole is what was announced, whoever sent what when; what is not is not here."""
    blobs, name = Blobs(tmp_path_factory.mktemp("blobs")), name_of(body)
    for offset, length, good, owner in pieces:
        piece = body[offset : offset + length] if good else bytes(length)
        with contextlib.suppress(MessageError):
            assert 0 <= blobs.append(name, offset, piece, len(body), owner) <= len(body) + length
        if name in blobs:
            assert blobs.get(name) == body


@pytest.fixture(scope="module")
def whole_journal(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "journal.db"
    journal = Journal(path)
    journal.decide("offer", _offer())
    for k in range(200):
        journal.open([Written(f"{k:032x}", f"e{k}", "a", k, "0" * 64, {"number": k})])
        journal.close_exchange(f"e{k}", k, {"replied": [], "refused": {}})
    journal.close()
    return path


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1.0))
def test_a_journal_that_was_cut(tmp_path_factory, whole_journal, part):
    """It is said to be damaged, or all of it is there, or nothing: nothing is read out of half of it."""
    whole = whole_journal.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "journal.db"
    path.write_bytes(whole[: int(part * len(whole))])
    found: list[Any] = []
    with contextlib.suppress(FedloomError):
        journal = Journal(path)
        try:
            found = [journal.fact("offer"), len(journal.closings()), journal.job(f"{199:032x}")]
        finally:
            journal.close()
    if found and found != [None, 0, None]:
        assert found[:2] == [_offer(), 200]
        assert found[2] is not None


def test_a_journal_that_is_gone_is_missed(tmp_path):
    """A folder that holds rounds of a run, and no journal of it, is nothing to go on from."""
    made = Recipe(method="fedavg", rounds=1), Terms(names=["a"])
    Serving(made, tmp_path).close()
    checkpoint.save(tmp_path / "checkpoints", 1, {"version": 1})
    Serving(made, tmp_path).close()
    (tmp_path / "journal.db").write_bytes(b"")
    with pytest.raises(CheckpointError, match="its journal"):
        Serving(made, tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 0.999))
def test_a_site_s_folder_that_was_cut(tmp_path_factory, part):
    folder = tmp_path_factory.mktemp("site")
    store = Store(folder)
    store.decide("joined", 1)
    body = store.done("j1", 0, b"reply" * 50, {"n": 1}, {"eps": 0.5}, {})
    store.close()
    for path in (folder / "site.db", folder / "blobs" / body):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole))])
        with contextlib.suppress(FedloomError):
            cut = Store(folder)
            try:
                cut.tidy()
                assert cut.memory(0, "j1") == {"n": 1}
                assert cut.blobs.get(body) == b"reply" * 50
            finally:
                cut.close()
        path.write_bytes(whole)
