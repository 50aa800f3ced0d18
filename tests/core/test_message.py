"""Messages: exact bytes, a serialisation that runs no code, and what it refuses."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import pickle
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fedloom as fl
from fedloom.errors import MessageError
from fedloom.message import At, Covered, Message, check_finite, leaves, mapped, nbytes, once, opened
from fedloom.testing import difference
from fedloom.written import dumps, load, loads, pieces

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = draw(st.lists(st.integers(0, 5), min_size=math.prod(shape), max_size=math.prod(shape)))
    out = torch.tensor(values).reshape(shape).to(dtype)
    if draw(st.booleans()) and out.dim() > 1:
        out = out.transpose(0, 1)  # not contiguous
    return out


keys = st.one_of(st.text(max_size=5), st.integers(-9, 9))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), tensors())
trees = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3).map(Message),
        st.frozensets(st.integers(), max_size=3),
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=150, deadline=None)
@example({"$": "tensor", "name": "t0"})
@example({1: "a", "1": "b"})
@example([float("nan"), float("inf"), -0.0])
def test_round_trip(value):
    assert difference(loads(dumps(value)), value) == ""


@given(trees)
@settings(max_examples=50, deadline=None)
def test_round_trip_through_a_file(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message"
        path.write_bytes(dumps(value))
        back = load(path)
    assert difference(back, value) == ""  # also when the file is gone


def test_pieces_are_the_tensors_themselves_and_others_can_read_them():
    a, b, view = torch.arange(5), torch.ones(3, 2, dtype=torch.bfloat16), torch.randn(9)[2:4]
    given = pieces(Message(b=b, a=a, view=view))
    addresses = {np.frombuffer(part, np.uint8).ctypes.data for part in given[1:]}
    assert addresses == {t.data_ptr() for t in (a, b, view)}
    there = safetensors.torch.load(b"".join(given))
    assert sorted(map(str, there.values())) == sorted(map(str, (a, b, view)))
    with pytest.raises(MessageError, match="complex64"):
        dumps(torch.zeros(2, dtype=torch.complex64))


def test_a_file_is_mapped_not_read(tmp_path):
    path = tmp_path / "message"
    path.write_bytes(dumps(Message(a=torch.zeros(1 << 20), b=torch.ones(2))))
    a = load(path).a
    path.unlink()
    a += 1  # this process's own
    assert float(a.sum()) == 1 << 20
    for bad in (b"", b"\x05", b"\xff" * 100, dumps(torch.ones(3))[:-1], safetensors.torch.save({})):
        path.write_bytes(bad)
        with pytest.raises(MessageError, match="not a Fedloom message"):
            load(path)


@given(trees, st.data())
@settings(max_examples=150, deadline=None)
def test_truncated_bytes_are_refused(value, data):
    raw = dumps(value)
    with pytest.raises(MessageError):
        loads(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(trees, st.data())
@settings(max_examples=300, deadline=None)
def test_garbled_bytes_are_refused_or_read_as_data(value, data):
    """A flipped byte inside a number is only another number (checksums are the carrier's); nothing else gets out."""
    raw = bytearray(dumps(value))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        loads(bytes(raw))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes(raw):
    with pytest.raises(MessageError):
        loads(raw)


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "os:system", "of": [["command", "true"]]},
        {"$": "tensor", "name": "missing"},
        {"$": "tensor"},
        {"$": "dict", "of": [[1]]},
        {"$": "dict", "of": [[{"$": "list", "of": []}, 1]]},
        {"$": "list", "of": 3},
        {"$": "set", "of": [{"$": "list", "of": []}]},
        {"$": "float", "is": "one"},
        {"$": "message", "of": [[1, 2, 3]]},
        {"no": "kind"},
        {"$": "fedloom.message:At", "of": [["index", 1], ["values", 2]]},
        {"$": "fedloom.message:At", "of": [["__class__", 1]]},
    ],
)
def test_malicious_trees_are_refused(tree):
    raw = safetensors.torch.save({}, metadata={"fedloom": json.dumps(tree)})
    with pytest.raises(MessageError):
        loads(raw)


def test_deep_nesting_is_refused_not_fatal():
    text = '{"$": "list", "of": [' * 5000 + "]}" * 5000
    raw = safetensors.torch.save({}, metadata={"fedloom": text})
    with pytest.raises(MessageError):
        loads(raw)


def test_shared_tensors_are_written_once():
    t = torch.randn(1000)
    assert len(dumps([t] * 10)) < len(dumps(t)) + 500
    a, b = loads(dumps([t, t]))
    assert torch.equal(a, b)


@dataclass(frozen=True)
class Kept(fl.State):
    params: torch.Tensor
    by_client: dict[int, float]


def test_records_come_back_as_their_class():
    state = Kept(torch.randn(3), {2: 0.5, 10: math.inf})
    back = loads(dumps({"state": state, "at": At(torch.tensor([1]), torch.ones(1, 2), 4)}))
    assert isinstance(back["state"], Kept)
    assert difference(back["state"], state) == ""
    assert back["at"].size == 4


def test_what_is_no_data_cannot_be_sent():
    with pytest.raises(MessageError, match="cannot be saved or sent: function"):
        dumps({"f": dumps})
    with pytest.raises(MessageError, match="a message holds"):
        nbytes(object())


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (torch.zeros(10), 40),
        (torch.zeros(10, dtype=torch.float64), 80),
        (torch.zeros(10, dtype=torch.bool), 10),
        (3, 8),
        (0.5, 8),
        (True, 1),
        (None, 1),
        ("naïve", 6),
        ([torch.zeros(2), 1.0], 16),
        ({"a": torch.zeros(2), "b": 1}, 16),
        (Message(x=torch.zeros(3), y=2), 20),
        (At(torch.tensor([1, 5]), torch.zeros(2, 3), 1000), 24 + 8),
        (At(torch.tensor([1, 5]), torch.zeros(2, 3), 10), 24 + 2),
        (At(torch.arange(900), torch.zeros(900), 1000), 3600 + 125),
        (At(torch.tensor([1, 5]), torch.zeros(2, 3), 1000, known=True), 24),
        (once(torch.zeros(5)), 20),
    ],
)
def test_bytes(value, size):
    assert nbytes(value) == size


def test_at_takes_masks_and_refuses_nonsense():
    at = At(torch.tensor([False, True, True]), torch.tensor([1.0, 2.0]), 3)
    assert at.dense().tolist() == [0.0, 1.0, 2.0]
    for mask in (torch.tensor([True]), torch.tensor([True, False, False, False])):
        with pytest.raises(MessageError, match=r"a mask \(.,\) of a tensor with 3 rows"):
            At(mask, torch.zeros(1), 3)
    with pytest.raises(MessageError, match="2 positions but 1 values"):
        At(torch.tensor([0, 1]), torch.zeros(1), 3)
    with pytest.raises(MessageError, match=r"outside 0\.\.2"):
        At(torch.tensor([3]), torch.zeros(1), 3)
    with pytest.raises(MessageError, match="outside"):
        At(torch.tensor([-1]), torch.zeros(1), 3)
    for index in (torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor(1)):
        with pytest.raises(MessageError, match=r"positions are int64 \(m,\)"):
            At(index, torch.zeros(1), 3)
    with pytest.raises(MessageError, match="a row for every position"):
        At(torch.tensor([1]), torch.tensor(0.0), 3)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_positions_are_positions_whatever_whole_numbers_they_are(kind):
    at = At(torch.tensor([1, 2], dtype=kind), torch.tensor([5.0, 6.0]), 3)
    assert at.index.dtype == torch.int64
    assert at.dense().tolist() == [0.0, 5.0, 6.0]


def test_covered_keeps_the_old_value_bit_for_bit():
    old = torch.tensor([0.1, 0.2, 0.3])
    new = Covered(torch.tensor([4.0, 0.0, 9.0]), torch.tensor([2.0, 0.0, 3.0])).over(old)
    assert new[1] == old[1]
    assert new.tolist() == pytest.approx([2.0, 0.2, 3.0])


def test_a_message_is_immutable_and_pickles():
    m = Message(delta=torch.ones(2), loss=0.5)
    with pytest.raises(AttributeError, match="replace"):
        m.loss = 1.0
    with pytest.raises(AttributeError, match="it has delta, loss"):
        _ = m.gone
    assert m.replace(loss=1.0).loss == 1.0
    assert m.loss == 0.5
    assert difference(pickle.loads(pickle.dumps(m)), m) == ""


def test_opened_is_what_the_receiver_reads():
    class Half:
        nbytes = 4

        def dense(self):
            return torch.tensor([1.0, 0.0])

    at = At(torch.tensor([0]), torch.ones(1), 2)
    m = opened(Message(a=Half(), b=once(torch.zeros(1)), c=at, d=[Half()]))
    assert m.a.tolist() == [1.0, 0.0]
    assert m.b.tolist() == [0.0]
    assert m.c is at
    assert m.d[0].tolist() == [1.0, 0.0]


def test_once_is_known_by_content():
    a, b = once({"x": torch.ones(2)}), once({"x": torch.ones(2)})
    assert a.key() == b.key()
    assert a.key() != once({"x": torch.zeros(2)}).key()
    assert a.key() != once({"x": torch.ones(1, 2)}).key()


def test_once_is_known_by_where_everything_is():
    index, ones = torch.tensor([1]), torch.ones(1)
    values = [[1, 2], [12], (1, 2), {"a": 1, "b": 2}, {"b": 1, "a": 2}, [[1], 2], "12"]
    values += [At(index, ones, 2), At(index, ones, 3), [index, ones], {"index": index, "values": ones}]
    assert len({once(v).key() for v in values}) == len(values)


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, torch.tensor([1.0, math.nan]), torch.tensor([math.nan, 1.0]), [0.0, -math.inf]],
)
def test_check_finite(bad):
    with pytest.raises(MessageError, match=r"client 3: field 'b'"):
        check_finite(Message(a=1.0, b=bad), "client 3")


def test_mapped_and_leaves_see_everything():
    m = Message(a=[1, {"b": 2}], c=(3,))
    assert list(leaves(m)) == [1, 2, 3]
    assert mapped(m, lambda v: v + 1).a == [2, {"b": 3}]


def test_no_file_is_touched_by_reading(tmp_path):
    os.chdir(tmp_path)
    loads(dumps({"x": torch.ones(2)}))
    assert list(tmp_path.iterdir()) == []


def test_once_is_known_by_type_and_of_any_shape():
    values = [torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(2, 1), torch.tensor(0.0), torch.zeros(0)]
    assert len({fl.once(v).key() for v in values}) == len(values)


def test_what_would_come_back_as_something_else_is_refused():
    from collections import namedtuple

    point = namedtuple("point", "x y")(1, 2)
    with pytest.raises(MessageError, match="is a named tuple"):
        dumps({"a": point})
    with pytest.raises(MessageError, match="cannot be saved or sent: Data"):
        dumps(fl.Data(x=torch.ones(2)))


def test_views_are_written_alone():
    whole = torch.arange(1000.0)
    assert len(dumps({"v": whole[3:5]})) < 400
    back = loads(dumps([whole, whole[:10], whole.view(10, 100), whole.expand(2, 1000)]))
    assert all(torch.equal(a, b) for a, b in zip(back, [whole, whole[:10], whole.view(10, 100), whole.expand(2, 1000)]))


def test_what_was_written_or_read_is_let_go_of_at_once():
    """Not when garbage is collected next: a server that reads a thousand updates would hold hundreds of them."""
    gc.disable()
    try:
        message = Message(params=torch.ones(10), rows=[torch.ones(2)])
        data = dumps(message)
        read = loads(data)
        gone = [weakref.ref(message.params), weakref.ref(read.params)]
        del message, read
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
