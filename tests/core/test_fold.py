"""Sums need no single reply: the same for any workers and order, element by element, deaf to odd replies."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedloom as fl
from fedloom.engines.fold import Fold, Total, Tree, as_sent, divided, fold_chunk, structure, tree
from fedloom.errors import MessageError
from fedloom.message import At, Covered, Message
from fedloom.methods.optimisation.fedavg import FedAvgState
from fedloom.replies import Replies, Reply
from fedloom.testing import Trial, difference
from fedloom.training.stacked.rows import Chunk, Dense


def split(entries, size):
    return [fold_chunk(entries[k : k + size]) for k in range(0, len(entries), size)]


def entries(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        (k, Message(v=torch.randn(3, generator=rng, dtype=torch.float64), loss=float(k), t={"a": [k, 1.0]}), 1.0 + k)
        for k in range(n)
    ]


@given(st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_any_chunks_give_the_plain_sum(n, size):
    total, left_out = tree(split(entries(n), size))
    plain = sum(w * m.v for _, m, w in entries(n))
    assert left_out == {}
    assert sorted(total.jobs) == list(range(n))
    assert total.weight == sum(w for *_, w in entries(n))
    assert torch.allclose(total.values["v"], plain, rtol=1e-13)
    assert total.values["loss"] == pytest.approx(sum(w * m.loss for _, m, w in entries(n)))
    assert total.values["t"]["a"][1] == total.weight


def test_the_tree_is_fixed_by_chunks_alone():
    """((c0 + c1) + (c2 + c3)) + c4, bit for bit, whoever computed the chunks and whenever."""
    values = [torch.tensor([v]) for v in (1e8, 1.0, -1e8, 1.0, 0.5)]
    chunks = [[Total({"v": v.clone()}, 1.0, [k], "s")] for k, v in enumerate(values)]
    a, b, c, d, e = values
    assert tree(chunks)[0].values["v"].equal(((a + b) + (c + d)) + e)


@given(st.integers(1, 40), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_any_order_of_arrival_gives_the_same_bits(n, random):
    def chunk(k):
        value = torch.randn(5, generator=torch.Generator().manual_seed(k)) * 10.0 ** (k % 7)
        return [Total({"v": value}, 1.0, [k], "odd" if k % 9 == 4 else "common")]

    places = list(range(n))
    random.shuffle(places)
    sums = Tree(n)
    for k in places:
        sums.add(k, chunk(k))
    total, left_out = sums.whole()
    plain, left_plainly = tree([chunk(k) for k in range(n)])
    assert torch.equal(total.values["v"], plain.values["v"])
    assert (total.jobs, left_out) == (plain.jobs, left_plainly)
    assert sums.held == 0


def test_of_sums_in_order_only_a_few_are_held():
    """Eager: as many as there are ones in the binary count of those that came. Lazy would be all of them."""
    sums = Tree(1000)
    for k in range(999):
        sums.add(k, [Total({"v": torch.ones(1)}, 1.0, [k], "s")])
        assert sums.held == (k + 1).bit_count()
    sums.add(999, [Total({"v": torch.ones(1)}, 1.0, [999], "s")])
    assert sums.held == 0
    assert sums.whole()[0].values["v"].item() == 1000


def test_an_odd_reply_never_displaces_the_many():
    odd = (9, Message(v=torch.ones(4), loss=0.0, t={"a": [0, 1.0]}), 1.0)
    for at in range(5):
        for size in (1, 2, 3, 5):
            mixed = entries(4)
            mixed.insert(at, odd)
            total, left_out = tree(split(mixed, size))
            assert sorted(total.jobs) == [0, 1, 2, 3]
            assert list(left_out) == [9]
            assert "differ" in left_out[9]
            assert torch.allclose(total.values["v"], tree(split(entries(4), 2))[0].values["v"])


def test_nothing_at_all():
    assert tree([])[0].jobs == []
    assert tree([[], []])[0].jobs == []
    assert tree([[], fold_chunk(entries(2))])[0].jobs == [0, 1]


def test_at_adds_element_by_element():
    pieces = [
        (0, Message(w=At(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), 4)), 1.0),
        (1, Message(w=At(torch.tensor([2, 3]), torch.tensor([4.0, 8.0]), 4)), 3.0),
        (2, Message(w=At(torch.tensor([], dtype=torch.int64), torch.tensor([]), 4)), 5.0),
    ]
    for size in (1, 2, 3):
        total, left_out = tree(split(pieces, size))
        covered = divided(total.values["w"], total.weight)
        assert isinstance(covered, Covered)
        assert left_out == {}
        old = torch.tensor([9.0, 9.0, 9.0, 9.0])
        assert covered.over(old).tolist() == [1.0, 9.0, (1 * 2 + 3 * 4) / 4, 8.0]


def test_rows_of_a_table():
    table = At(torch.tensor([1]), torch.tensor([[2.0, 4.0]]), 3)
    total, _ = tree(split([(0, Message(p=table), 2.0), (1, Message(p=table), 2.0)], 1))
    assert divided(total.values["p"], 4.0).over(torch.zeros(3, 2)).tolist() == [[0, 0], [2, 4], [0, 0]]


def test_weights():
    m = Message(n=3, half=0.5, none=0, bad=-1.0, endless=math.inf, text="x")
    assert Fold().of(m, 7) == 7.0
    assert Fold(1).of(m, 7) == 1.0
    assert [Fold(name).of(m, 7) for name in ("n", "half", "none")] == [3.0, 0.5, 0.0]
    for name in ("bad", "endless", "text", "gone"):
        with pytest.raises(MessageError, match="finite number >= 0"):
            Fold(name).of(m, 7)


def test_structure_is_names_shapes_and_types():
    a = Message(x=torch.zeros(2), n=1)
    assert structure(a) == structure(Message(x=torch.ones(2), n=0.5))
    for other in (
        Message(x=torch.zeros(3), n=1),
        Message(x=torch.zeros(2).double(), n=1),
        Message(y=torch.zeros(2), n=1),
        Message(x=torch.zeros(2)),
        Message(x=[torch.zeros(2)], n=1),
        Message(x=At(torch.tensor([0]), torch.zeros(1), 2), n=1),
    ):
        assert structure(a) != structure(other)


def test_text_has_no_sum():
    with pytest.raises(MessageError, match=r"clients\.map"):
        tree([fold_chunk([(0, Message(name="a"), 1.0)])])


def test_what_is_refused_is_not_held():
    mine = torch.zeros(3)
    held = weakref.ref(mine)
    gc.disable()
    try:
        (total,) = fold_chunk([(0, Message(name="a", x=mine), 1.0)])
        del mine
        assert total.refused is not None
        assert held() is None
    finally:
        gc.enable()


def test_text_is_refused_only_where_most_send_it():
    texts = [fold_chunk([(k, Message(x="a"), 1.0)]) for k in range(3)]
    numbers = [fold_chunk([(k, Message(x=1.0), 1.0)]) for k in range(3, 7)]
    assert tree([*texts, *numbers])[0].values == {"x": 4.0}
    with pytest.raises(MessageError, match=r"clients\.map"):
        tree([*texts, *numbers[:2]])


def test_fan_in_says_how_many_leaves():
    assert [Fold(fan_in=3).leaves(n) for n in (1, 3, 4, 9, 10)] == [1, 1, 2, 3, 4]
    assert Fold().leaves(10) is None


def test_text_among_numbers_is_left_out_like_any_odd_reply():
    odd = (2, Message(x="a"), 1.0)
    total, left_out = tree([fold_chunk([(0, Message(x=1.0), 1.0), (1, Message(x=2.0), 1.0), odd])])
    assert total.values == {"x": 3.0}
    assert list(left_out) == [2]


def test_integers_mean_what_they_mean():
    """Counts are summed in float64: a mean of integers is not cut off."""
    total, _ = tree([fold_chunk([(0, Message(c=torch.tensor([1])), 1.0), (1, Message(c=torch.tensor([2])), 1.0)])])
    assert divided(total.values["c"], 2.0).tolist() == [1.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_are_added_up_in_32(dtype):
    """A bfloat16 holds no whole number between 256 and 258, and a float16 none beyond 65504."""
    sent = Message(v=torch.full((2,), 20.0, dtype=dtype), t={"a": [torch.ones(1, dtype=dtype), 1.0]})
    total, _ = tree([fold_chunk([(k, sent, 300.0) for k in range(400)])])
    means = as_sent(divided(total.values, total.weight), total.structure)
    assert (means["v"].dtype, means["v"].tolist()) == (dtype, [20.0, 20.0])
    assert (means["t"]["a"][0].dtype, means["t"]["a"]) == (dtype, [1.0, 1.0])
    replies = Replies(tuple(Reply(k, 300, k, 0, 0.0, 0.0, Message(), sent) for k in range(400)))
    assert (replies.mean().v.dtype, replies.mean().v.tolist()) == (dtype, [20.0, 20.0])
    assert replies.sum().v.tolist() == [8000.0, 8000.0]


@pytest.mark.parametrize("made", [[1.0, 2.0, torch.ones(3), 4.0], {"x": torch.ones(1)}, None])
def test_what_a_stage_makes_of_a_sum_is_left_as_it_is(made):
    for sent in (torch.ones(3).half(), {"y": torch.ones(3).half()}, [torch.ones(3).half()], 1.0):
        assert difference(as_sent({"v": made}, structure(Message(v=sent))), {"v": made}) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deferred_vectors_of_16_bits_are_added_up_in_32(dtype):
    start = torch.zeros(10, dtype=dtype)
    chunk = Chunk([Dense(torch.full((300, 10), 20.0, dtype=dtype), slice(0, 10))], start)
    vectors = [chunk.row(j, SimpleNamespace(start=start, given=())) for j in range(300)]
    total, _ = tree([fold_chunk([(j, Message(v=v - start), 1.0) for j, v in enumerate(vectors)])])
    assert total.values["v"].tolist() == [6000.0] * 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_elements_of_16_bits_are_added_up_in_32(dtype):
    sent = Message(w=At(torch.tensor([1]), torch.tensor([20.0], dtype=dtype), 2))
    total, _ = tree([fold_chunk([(k, sent, 300.0) for k in range(400)])])
    mean = total.values["w"].over(torch.ones(2, dtype=dtype))
    assert (mean.dtype, mean.tolist()) == (dtype, [1.0, 20.0])


def test_whole_numbers_of_some_elements_are_weighted_as_they_are():
    counts = At(torch.tensor([1]), torch.tensor([3]), 2)
    total, _ = tree([fold_chunk([(k, Message(c=counts), 1.5) for k in range(2)])])
    assert total.values["c"].total.tolist() == [0.0, 9.0]
    assert total.values["c"].held.tolist() == [0.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_mean_over_whole_numbers_is_not_cut_off(dtype):
    sent = [At(torch.tensor([1]), torch.tensor([v], dtype=dtype), 2) for v in (2, 3)]
    total, _ = tree([fold_chunk([(k, Message(c=at), 1.0) for k, at in enumerate(sent)])])
    assert total.values["c"].over(torch.tensor([7, 7], dtype=dtype)).tolist() == [7.0, 2.5]


def test_fields_in_another_order_are_the_same_fields():
    one, other = Message(a=1.0, t={3: 4.0, 5: 6.0}), Message(t={5: 8.0, 3: 2.0}, a=2.0)
    total, left_out = tree([fold_chunk([(0, one, 1.0)]), fold_chunk([(1, other, 1.0)])])
    assert (total.values, left_out) == ({"a": 3.0, "t": {3: 6.0, 5: 14.0}}, {})


def test_what_differs_is_named():
    mean, odd = Message(b=1.0, v=torch.zeros(3), t={"x": [1.0]}), Message(v=torch.zeros(3).double())
    _, left_out = tree([fold_chunk([(0, mean, 1.0), (1, mean, 1.0), (2, odd, 1.0)])])
    most = "{b: number, t: {x: list[number]}, v: (3,) float32}"
    assert left_out == {2: f"its fields {{v: (3,) float64}} differ from most others' {most}"}


# ---------------------------------------------------------------- through the public door


@dataclass(frozen=True)
class Sums(fl.Method):
    """Asks every client for its number, as a mean, a sum and one by one."""

    card = replace(fl.FedAvg.card, id="sums")
    cohort: int = 6
    weight: str = "samples"

    def start(self, clients, before=None):
        return FedAvgState(params=torch.zeros(3, dtype=torch.float64))

    async def local(self, client):
        return fl.Message(v=torch.full((3,), float(client.id), dtype=torch.float64), own=float(client.id), one=1)

    def round(self, state, clients):
        weight = {"samples": None, "own": "own"}.get(self.weight, 1.0)
        mean = clients.mean(self.local, weight=weight)
        total = clients.sum(self.local)
        replies = clients.map(self.local)
        by_hand = replies.mean({"samples": None, "own": lambda r: r.own}.get(self.weight, lambda r: 1.0))
        assert difference(mean.v, by_hand.v, 1e-14) == ""
        assert difference(total.v, replies.sum().v, 1e-14) == ""
        assert (total.one, total.count, mean.one) == (6, 6, 1)
        return replace(state, params=mean.v)


@pytest.mark.parametrize(("engine", "workers"), [("sequential", None), ("pool", 2), ("pool", 3), ("debug", None)])
@pytest.mark.parametrize("weight", ["samples", "equal", "own"])
def test_mean_sum_and_map_agree(engine, workers, weight):
    run = Trial(Sums).run(method=Sums(weight=weight), engine=engine, workers=workers, rounds=1)
    f = run.plan.federation
    w = {"samples": [float(f.size(i)) for i in range(6)], "equal": [1.0] * 6, "own": [float(i) for i in range(6)]}[
        weight
    ]
    expected = math.fsum(w[i] * i for i in range(6)) / math.fsum(w)
    assert run.params.tolist() == pytest.approx([expected] * 3, rel=1e-14)


@dataclass(frozen=True)
class Halves(Sums):
    """Every client sends the same number in 16 bits."""

    async def local(self, client):
        return fl.Message(v=torch.full((3,), 20.0, dtype=torch.bfloat16))

    def round(self, state, clients):
        return replace(state, params=clients.mean(self.local, weight=1000.0).v)


@pytest.mark.parametrize("world", [fl.World(), fl.World(deadline=1000.0)])
def test_a_mean_is_of_the_type_that_was_sent(world):
    got = Trial(Halves).run(method=Halves(), rounds=1, world=world).params
    assert (got.dtype, got.tolist()) == (torch.bfloat16, [20.0] * 3)
