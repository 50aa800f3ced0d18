"""A job counts or leaves no trace: memory follows the reply, the book and the bytes do not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

import fedloom as fl
from fedloom.client import Book, Memory, handed
from fedloom.methods.optimisation.fedavg import FedAvgState
from fedloom.testing import Trial, difference

# ---------------------------------------------------------------- the mapping itself


def test_writes_are_held_back():
    committed = {"a": 1}
    memory = Memory(committed)
    memory["b"] = 2
    memory["a"] = 3
    assert committed == {"a": 1}
    assert dict(memory) == memory.version() == {"a": 3, "b": 2}
    assert memory.changed
    assert not Memory(committed).changed


def test_to_change_what_was_read_is_a_write():
    t = torch.ones(2)
    committed = {"list": [0, {"of": t}], "set": {1}, "alone": t}
    for change in (
        lambda m: m["list"].append(2),
        lambda m: m["list"][1].update(of=torch.zeros(2)),
        lambda m: m["list"][1].update(more=1),
        lambda m: m["set"].add(2),
    ):
        memory = Memory(committed)
        assert memory["alone"] is memory["list"][1]["of"] is t
        assert memory["set"] == {1}
        assert not memory.changed
        change(memory)
        assert memory.changed
        assert committed == {"list": [0, {"of": t}], "set": {1}, "alone": t}
        assert memory.version().keys() == committed.keys()
    assert memory.version()["set"] == {1, 2}


def test_deleting():
    memory = Memory({"a": 1, "b": 2})
    del memory["a"]
    assert list(memory) == ["b"]
    assert len(memory) == 1
    assert "a" not in memory
    assert memory.get("a", 7) == 7
    for key in ("a", "never"):
        with pytest.raises(KeyError):
            del memory[key]
    memory["a"] = 5
    assert memory.version() == {"a": 5, "b": 2}


def test_a_stored_tensor_carries_no_graph():
    memory = Memory({})
    memory["t"] = [torch.ones(2, requires_grad=True) * 2]
    assert not memory["t"][0].requires_grad


def test_a_book_only_grows():
    book = Book({"bytes": 3.0})
    book.add("bytes", 2)
    assert (book["bytes"], book["epsilon"]) == (5.0, 0.0)
    assert book.entries == {"bytes": 3.0}
    with pytest.raises(fl.FedloomError, match="only grows"):
        book.add("bytes", -1)


# ---------------------------------------------------------------- in a run


@dataclass(frozen=True)
class Remembers(fl.Method):
    """Every client counts its jobs and spends one unit; client 2 ends each job in its own way.

    Args:
        end: how client 2 ends.
        ask: mean (in time: with a deadline), map or send.
    """

    card = replace(fl.FedAvg.card, id="remembers")
    end: str = "well"
    ask: str = "mean"

    def start(self, clients, before=None):
        return FedAvgState(params=torch.zeros(2, dtype=torch.float64))

    async def local(self, client, params):
        client.memory["jobs"] = client.memory.get("jobs", 0) + 1
        client.book.add("spent", 1.0)
        v, share = torch.ones(2, dtype=torch.float64), 1.0
        if client.id == 2:
            if self.end == "declines":
                raise fl.Declined("no")
            if self.end == "raises":
                raise ZeroDivisionError("oh")
            if self.end == "nan":
                v = v * math.nan
            if self.end == "inf":
                v = v * math.inf
            if self.end == "shape":
                v = torch.ones(3, dtype=torch.float64)
            if self.end == "field":
                return fl.Message(w=v, share=1.0)
            if self.end == "weight":
                share = -1.0
            if self.end == "nothing":
                return None
        return fl.Message(v=v, share=share)

    def round(self, state, clients):
        ids = [0, 2, 4, 5]
        if self.ask.startswith("mean"):
            got = clients.mean(self.local, ids, weight="share", params=state.params)
        elif self.ask == "map":
            got = clients.map(self.local, ids, params=state.params).mean(lambda r: 1.0)
        else:
            clients.send(ids, self.local, params=state.params)
            got = clients.receive(until=clients.now + 100).mean(lambda r: 1.0)
        clients.note(count=got.count)
        return replace(state, params=state.params + got.v)


def run(end, ask, **options):
    trial = Trial(Remembers)
    if ask == "mean in time":
        options["world"] = fl.World(deadline=1000.0)
    return trial.run(method=Remembers(end=end, ask=ask), on_failure="exclude", rounds=3, **options)


class Lists(Remembers):
    """Clients note their rounds in a list."""

    async def local(self, client, params):
        client.memory.setdefault("rounds", []).append(client.round)
        if client.id == 2 and client.round == 1:
            raise fl.Declined("no")
        return fl.Message(v=params, share=1.0)


@pytest.mark.parametrize("engine", ["sequential", "stacked", "pool"])
def test_a_list_in_memory_follows_the_reply(engine):
    got = Trial(Lists).run(method=Lists(), rounds=3, engine=engine, workers=2).memories
    assert got == {i: {"rounds": [0, 2] if i == 2 else [0, 1, 2]} for i in (0, 2, 4, 5)}


@pytest.mark.parametrize("ask", ["mean", "mean in time", "map", "send"])
@pytest.mark.parametrize("end", ["declines", "raises", "nan", "inf", "shape", "field", "weight", "nothing", "well"])
def test_memory_follows_the_reply(end, ask):
    if (end, ask) in {("shape", "map"), ("field", "map"), ("shape", "send"), ("field", "send")}:
        with pytest.raises(fl.FedloomError, match=r"not alike.*clients \[2\]"):
            run(end, ask)
        return
    got = run(end, ask)
    counted = end in ("well", "nothing") or (end == "weight" and not ask.startswith("mean"))  # nobody reads that weight
    assert got.memories.get(2) == ({"jobs": 3} if counted else None)
    assert {i: got.memories[i] for i in (0, 4, 5)} == {i: {"jobs": 3} for i in (0, 4, 5)}
    assert got.host.excluded == {} if counted else sum(got.host.excluded.values()) == 1
    assert got.rows[-1]["notes"]["count"] == (4 if counted and end != "nothing" else 3)
    assert got.params.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("end", ["nan", "shape", "field", "weight"])
def test_bytes_and_book_stand_whatever_the_verdict(end):
    got = run(end, "mean")
    sent = {"nan": 16 + 8, "shape": 24 + 8, "field": 16 + 8, "weight": 16 + 8}[end]
    assert got.host.ledger.up == 3 * (3 * 24 + sent)
    assert got.host.ledger.down == 3 * 4 * 16
    assert got.host.books[2] == {"spent": 3.0}


@pytest.mark.parametrize("engine", ["stacked", "pool", "debug"])
@pytest.mark.parametrize("end", ["declines", "nan", "shape", "well"])
def test_every_engine_agrees(engine, end):
    a, b = run(end, "mean"), run(end, "mean", engine=engine, workers=2)
    assert difference(a.memories, b.memories) == ""
    assert difference(a.params, b.params) == ""
    assert [r["excluded"] for r in a.rows] == [r["excluded"] for r in b.rows]


@dataclass(frozen=True)
class Counting(Remembers):
    """Clients change the lists, dicts and sets they are sent, and ask their peers to."""

    card = replace(Remembers.card, needs=frozenset({"peers", "replies", "memory"}))

    async def local(self, client, params, plan):
        heard = await client.ask(self.grows, of=[0, 1], plan=plan)
        return fl.Message(own=(await self.grows(client, plan)).own, theirs=heard.own)

    async def grows(self, client, plan):
        plan["steps"].append(client.id)
        plan["of"]["seen"].add(client.id)
        plan["last"] = client.id
        return fl.Message(own=[len(plan["steps"]), len(plan["of"]["seen"]), len(plan)])

    def round(self, state, clients):
        plan = {"steps": [1], "of": {"seen": {7}}, "params": state.params}
        got = clients.map(self.local, [0, 2, 4], params=state.params, plan=plan)
        assert got.own == [[2, 2, 4]] * 3
        assert got.theirs == [[[2, 2, 4]] * 2] * 3
        assert plan == {"steps": [1], "of": {"seen": {7}}, "params": state.params}
        return state


@pytest.mark.parametrize("engine", ["sequential", "pool", "debug"])
@pytest.mark.parametrize("world", [fl.World(), fl.World(deadline=1000.0)])
def test_lists_and_dicts_that_many_are_sent_are_each_one_s_own(engine, world):
    Trial(Counting).run(method=Counting(), rounds=1, engine=engine, workers=2, world=world)


def test_tensors_that_many_are_sent_are_one():
    t = torch.ones(2)
    sent = fl.Message(v=t, row=(t, 1), inner=[t])
    one, other = handed(sent), handed(sent)
    assert one["v"] is other["v"] is one["inner"][0] is other["inner"][0] is t
    assert one["row"] is sent.row
    assert one["inner"] is not other["inner"]


@dataclass(frozen=True)
class Voids(Remembers):
    """Client 2 is asked twice, for a sum that takes more replies, or some weight."""

    least: int = 1

    async def local(self, client, params):
        client.memory["jobs"] = client.memory.get("jobs", 0) + 1
        return fl.Message(v=params, share=0.0)

    def round(self, state, clients):
        weight = "share" if self.least == 1 else 1
        got = clients.mean(self.local, [0, 2, 2, 4], weight=weight, least=self.least, params=state.params)
        assert dict(got) == {"count": 0, "weight": 0.0}
        return state


@pytest.mark.parametrize(("least", "why"), [(5, "fewer replies than the 5"), (1, "weigh nothing")])
@pytest.mark.parametrize("world", [fl.World(), fl.World(deadline=1000.0)])
def test_what_is_void_leaves_no_trace_at_clients(least, why, world):
    run = Trial(Voids).run(method=Voids(least=least), rounds=2, world=world)
    assert run.memories == {}
    assert [row["excluded"] for row in run.rows] == [4, 4]
    assert why in str(run.host.excluded)


@pytest.mark.parametrize("odd", [1, 2])
def test_an_odd_reply_beside_a_void_sum_leaves_no_trace_either(odd):
    class Odd(Voids):
        async def local(self, client, params):
            reply = await super().local(client, params)
            return reply.replace(more=1.0) if client.id == 2 and client.memory["jobs"] == odd else reply

    run = Trial(Odd).run(method=Odd(least=5), rounds=1, world=fl.World(deadline=1000.0))
    assert run.memories == {}
    assert sorted(run.host.excluded.values()) == [1, 3]


@pytest.mark.parametrize("world", [fl.World(), fl.World(deadline=1000.0)])
def test_a_void_sum_of_clients_asked_once(world):
    class Once(Voids):
        def round(self, state, clients):
            clients.mean(self.local, [0, 2], weight=1, least=1 + 2 * clients._host.version, params=state.params)
            return state

    assert Trial(Once).run(method=Once(), rounds=2, world=world).memories == {0: {"jobs": 1}, 2: {"jobs": 1}}


def test_failures_stop_a_run_unless_told_otherwise():
    with pytest.raises(fl.FedloomError, match=r"Remembers\.local raised ZeroDivisionError: oh \(client 2, round 0"):
        Trial(Remembers).run(method=Remembers(end="raises"))


def test_scaffold_s_sum_survives_lost_replies():
    """The server's control is the mean of the clients' controls; a reply that was refused must change neither."""

    async def spoils(client, honest, **payload):
        reply = await honest(client, **payload)
        return reply.replace(delta=reply.delta * math.nan) if client.key[1] % 2 else reply

    trial = Trial(fl.catalogue()["scaffold"], cohort=4)
    got = trial.run(behave={0: spoils, 4: spoils}, rounds=6)
    assert sum(r["excluded"] for r in got.rows) > 0
    controls = [m["control"] for m in got.memories.values()]
    assert torch.allclose(torch.stack(controls).sum(0) / 6, got.state.control, atol=1e-12)


def test_nobody_writes_during_evaluation():
    @dataclass(frozen=True)
    class Writes(fl.FedAvg):
        """Writes to memory when asked for its own answer."""

        card = replace(fl.FedAvg.card, id="writes")

        async def personalise(self, client, params):
            client.memory["seen"] = params
            client.book.add("spent", 1.0)
            return params

    got = Trial(Writes).run(evaluate_every=1)
    assert "personal.accuracy" in got.history
    assert got.memories == {}
    assert got.host.books == {}


# ---------------------------------------------------------------- what a client holds


@dataclass(frozen=True)
class Holding(Remembers):
    """Sends a large value once, inside a tree, whatever becomes of the replies."""

    card = replace(Remembers.card, id="holding")

    async def local(self, client, base, params):
        assert torch.equal(base["frozen"], torch.ones(10))
        return await super().local(client, params)

    def round(self, state, clients):
        base = {"frozen": fl.once(torch.ones(10))}
        ids = [0, 2] if clients._host.version == 0 else [0, 2, 4]
        clients.mean(self.local, ids, weight=1, params=state.params, base=base)
        return state


@pytest.mark.parametrize("end", ["well", "nan", "raises"])
def test_once_is_once_also_where_the_reply_was_lost(end):
    run = Trial(Holding).run(method=Holding(end=end), on_failure="exclude", rounds=2)
    assert run.host.ledger.down == (2 + 3) * 16 + 3 * 40
    assert {i: len(h) for i, h in run.host.holds.items()} == {0: 1, 2: 1, 4: 1}


# ---------------------------------------------------------------- judging


def test_judging_writes_nothing_and_takes_any_function():
    class Votes:
        """A function with a self that is no method of the run's."""

        def predict(self, x):
            return torch.eye(4, dtype=torch.float64)[torch.zeros(len(x), dtype=torch.int64)]

    @dataclass(frozen=True)
    class Personal(fl.FedAvg):
        """Personal answers write into memory and book."""

        card = replace(fl.FedAvg.card, id="personal", needs=frozenset({"memory"}))

        async def personalise(self, client, params):
            client.memory["judged"] = True
            client.book.add("spent", 1.0)
            return params + client.memory.get("own", 0.0)

        def evaluate(self, state, clients):
            return {**super().evaluate(state, clients), "votes": clients.evaluate(Votes().predict)}

    with_judging = Trial(Personal).run(evaluate_every=1, rounds=2)
    without = Trial(Personal).run(evaluate_every=0, rounds=2)
    assert {"global", "personal", "votes"} <= set(with_judging.rows[-1])
    for part in ("state", "memories"):
        assert difference(getattr(with_judging, part), getattr(without, part)) == ""
    host, other = with_judging.host, without.host
    assert (host.ledger, host.books, host.now) == (other.ledger, other.books, other.now)
