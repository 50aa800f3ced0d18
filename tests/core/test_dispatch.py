"""Jobs that outlive a call: order of events, waiting, cutting, forgetting, stacking, and being run again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import fedloom as fl
from fedloom.engines.local import Local
from fedloom.testing import Trial, difference, outcome
from fedloom.testing.trial import Killed
from fedloom.topology import Complete

SIZES = (7, 1, 4, 10, 3, 5)  # training samples: 5, 1, 2, 6, 2, 3
STEP = fl.World(step_seconds=1.0)  # one second a step, messages take no time
ONE = fl.SGD(lr=0.05, batch_size=1)  # so that a client's job lasts as many seconds as it has samples


@dataclass(frozen=True)
class Log(fl.State):
    """params `(d,)`, and what was seen."""

    params: Tensor
    seen: tuple = ()


@dataclass(frozen=True)
class Script(fl.Method):
    """Programs to send, and a `round` for each test."""

    card = replace(fl.FedAvg.card, id="script", needs=frozenset({"clock", "replies", "memory", "peers"}))
    solver: fl.SGD = ONE

    def start(self, clients, before=None):
        return Log(clients.model.initial())

    async def work(self, client, params, steps=None):
        jobs = client.memory.get("jobs", 0) + 1
        client.memory["jobs"] = jobs
        out = await client.train(params, solver=self.solver, steps=steps)
        return fl.Message(delta=out.vector - params, steps=out.steps, jobs=jobs, began=client.time)

    async def bare(self, client, params):
        client.memory["began"] = client.time
        out = await client.train(params, solver=self.solver, steps=3)
        return fl.Message(vector=out.vector)

    async def twice(self, client, params):
        first = await client.train(params, solver=self.solver)
        second = await client.train(first.vector, solver=self.solver)
        return fl.Message(delta=second.vector - params, steps=first.steps + second.steps)

    async def asks_first(self, client, params):
        fresh = await client.ask(self.newest)
        out = await client.train(fresh.params, solver=self.solver)
        return fl.Message(delta=out.vector - params, steps=out.steps)

    def newest(self, state):
        return fl.Message(params=state.params)

    def round(self, state, clients):
        return type(self).script(self, state, clients)  # type: ignore[attr-defined]


def play(script, rounds=1, world=STEP, **options):
    """One round (or more) of a function `script(method, state, clients) -> state`."""
    kind = type("Playing", (Script,), {"script": script, "__module__": __name__})
    kind = dataclass(frozen=True)(kind)
    return Trial(kind).run(method=kind(), sizes=SIZES, world=world, rounds=rounds, **options)


def sizes():
    federation = Trial(Script).experiment(sizes=SIZES).federation
    return [federation.size(i) for i in range(len(SIZES))]


def test_the_sizes_this_file_counts_on():
    assert sizes() == [5, 1, 2, 6, 2, 3]


# ---------------------------------------------------------------- order


def test_replies_arrive_by_time_and_ties_by_number():
    def script(self, state, clients):
        clients.send([3, 4, 0, 2, 1], self.work, params=state.params)
        got = [clients.receive(count=1)[0] for _ in range(5)]
        return replace(state, seen=tuple((r.id, r.time) for r in got))

    assert play(script).state.seen == ((1, 1.0), (4, 2.0), (2, 2.0), (0, 5.0), (3, 6.0))


def test_receive_gives_all_of_one_instant():
    def script(self, state, clients):
        clients.send([0, 2, 4], self.work, params=state.params)
        first = clients.receive()
        second = clients.receive()
        third = clients.receive()
        return replace(state, seen=(first.ids, second.ids, list(third)))

    assert play(script).state.seen == ([2, 4], [0], [])


def test_receive_until():
    def script(self, state, clients):
        clients.send(range(6), self.work, params=state.params)
        early = clients.receive(until=2.5)
        at_most = clients.receive(count=1, until=5.5)
        now = clients.now
        nothing = clients.receive(until=4.0)
        rest = clients.receive(until=100.0)
        return replace(state, seen=(early.ids, at_most.ids, now, len(nothing), rest.ids, clients.now))

    early, at_most, now, nothing, rest, end = play(script).state.seen
    assert (early, at_most, now) == ([1, 2, 4], [5], 3.0)
    assert (nothing, rest, end) == (0, [0, 3], 100.0)


def test_receive_of_some():
    def script(self, state, clients):
        clients.send([0, 1, 2], self.work, params=state.params)
        slow = clients.receive(of=[0])
        others = clients.receive(count=2)
        return replace(state, seen=(slow.ids, others.ids, clients.now))

    assert play(script).state.seen == ([0], [1, 2], 5.0)


def test_nobody_is_waited_for_who_has_no_job():
    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        got = [clients.receive(of=[1]), clients.receive(count=2, of=[1])]
        return replace(state, seen=(*map(len, got), clients.now, len(clients.jobs)))

    assert play(script).state.seen == (0, 0, 0.0, 1)


def test_transfers_take_time():
    d = 602
    world = fl.World(step_seconds=1.0, latency=0.5, up=8 * d / 4.0, down=8 * d / 2.0)

    def sent(self, state, clients):
        clients.send(3, self.bare, params=state.params)
        (r,) = clients.receive()
        return replace(state, seen=(r.began, r.time))

    def asked(self, state, clients):
        (r,) = clients.map(self.bare, [3], params=state.params)
        return replace(state, seen=(r.began, r.time))

    for script in (sent, asked):
        for deadline in (math.inf, 1000.0):
            run = play(script, world=replace(world, deadline=deadline))
            assert run.memories[3]["began"] == pytest.approx(2.5)
            assert run.state.seen == pytest.approx((0.0, 2.5 + 3 + 4.5))


def test_staleness_counts_rounds():
    def script(self, state, clients):
        if not state.seen:
            clients.send([0, 1, 3], self.work, params=state.params)
        (r,) = clients.receive(count=1)
        return replace(state, seen=(*state.seen, (r.id, r.staleness)))

    assert play(script, rounds=3).state.seen == ((1, 0), (0, 1), (3, 2))


# ---------------------------------------------------------------- at one client


def test_a_client_runs_one_job_at_a_time():
    def script(self, state, clients):
        clients.send([2, 2, 2, 1], self.work, params=state.params)
        got = [clients.receive(count=1)[0] for _ in range(4)]
        return replace(state, seen=tuple((r.id, r.message.began, r.time, r.jobs) for r in got))

    run = play(script)
    assert run.state.seen == ((1, 0.0, 1.0, 1), (2, 0.0, 2.0, 1), (2, 2.0, 4.0, 2), (2, 4.0, 6.0, 3))
    assert run.memories[2] == {"jobs": 3}


def test_idle_clients_are_those_without_jobs():
    def script(self, state, clients):
        clients.send([0, 3], self.work, params=state.params)
        busy = list(clients.idle())
        clients.receive()
        return replace(state, seen=(busy, list(clients.idle()), [j.id for j in clients.jobs]))

    assert play(script).state.seen == ([1, 2, 4, 5], [0, 1, 2, 4, 5], [3])


def test_a_job_can_wait_for_a_time():
    def script(self, state, clients):
        clients.send(1, self.work, when=7.5, params=state.params)
        (r,) = clients.receive()
        return replace(state, seen=(r.message.began, r.time))

    assert play(script).state.seen == (7.5, 8.5)


def test_an_event_of_the_client_s_own_is_keyed():
    def script(self, state, clients):
        clients.send([0, 1, 2], self.work, when="charging", params=state.params)
        got = clients.receive(count=3)
        return replace(state, seen=tuple(sorted((r.id, r.message.began) for r in got)))

    a, b = play(script).state.seen, play(script).state.seen
    assert a == b
    assert len({t for _, t in a}) == 3


# ---------------------------------------------------------------- cutting and forgetting


def test_cut_gives_fewer_steps_and_the_vector_they_lead_to():
    def cut(self, state, clients):
        clients.send([3, 1], self.work, params=state.params)
        clients.cut([3], at=4.0)
        got = clients.receive(until=50.0)
        return replace(state, params=got.where(lambda r: r.id == 3)[0].delta, seen=tuple((r.id, r.steps) for r in got))

    def short(self, state, clients):
        clients.send([3], self.work, params=state.params, steps=4)
        return replace(state, params=clients.receive().delta[0])

    cut_run, short_run = play(cut), play(short)
    assert cut_run.state.seen == ((1, 1), (3, 4))
    assert torch.equal(cut_run.params, short_run.params)


def test_cut_after_it_was_computed_ahead():
    """The like jobs of one instant are trained together; one that is cut afterwards is trained again, shorter."""

    def script(self, state, clients):
        clients.send([0, 1, 3], self.work, params=state.params)
        clients.receive(count=1)  # client 1 is done at 1.0, and all three were computed
        clients.cut([3])
        got = clients.receive(until=50.0)
        return replace(state, seen=tuple((r.id, r.steps, r.time) for r in got))

    assert play(script).state.seen == ((3, 1, 1.0), (0, 5, 5.0))


def test_cut_before_anything_was_done():
    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        clients.cut([3], at=0.2)
        (r,) = clients.receive()
        return replace(state, seen=(r.steps, r.time, float(r.delta.norm())))

    assert play(script).state.seen == (0, 0.2, 0.0)


def test_cut_in_the_second_training():
    def script(self, state, clients):
        clients.send([5], self.twice, params=state.params)
        clients.cut([5], at=4.0)
        (r,) = clients.receive()
        return replace(state, seen=(r.steps, r.time))

    assert play(script).state.seen == (4, 4.0)


def test_a_cut_takes_as_long_as_a_message_to_get_there():
    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        clients.cut([3], at=3.0)
        (r,) = clients.receive()
        return replace(state, seen=(r.message.began, r.steps, r.time))

    assert play(script, world=replace(STEP, latency=1.0)).state.seen == (1.0, 3, 5.0)


def test_a_cut_hurries_no_answer():
    """Asked at 1 and answered at 2, the client has it at 3; who is told to stop at 3.5 does half a step: none."""

    def script(self, state, clients):
        clients.send([3], self.asks_first, params=state.params)
        clients.receive(until=2.5)
        clients.cut([3])
        (r,) = clients.receive()
        return replace(state, seen=(r.steps, r.time))

    assert play(script, world=replace(STEP, latency=1.0)).state.seen == (0, 4.5)


def test_cancelling_takes_no_question_back():
    size = 8 * 602

    def script(self, state, clients):
        (job,) = clients.send([3], self.asks_first, params=state.params)
        clients.receive(until=5.0)
        clients.cancel(job)
        return replace(state, seen=tuple(clients.receive(until=60.0).ids))

    run = play(script)
    assert run.state.seen == ()
    assert (run.host.ledger.up, run.host.ledger.down) == (0, 2 * size)


def test_a_cancelled_job_leaves_no_trace_and_frees_its_client():
    def script(self, state, clients):
        first, second = clients.send([3, 3], self.work, params=state.params)
        clients.send([1], self.work, params=state.params)
        clients.receive(count=1)
        clients.cancel(first)
        got = clients.receive(until=60.0)
        return replace(state, seen=tuple((r.id, r.job == second, r.message.began, r.jobs) for r in got))

    run = play(script)
    assert run.state.seen == ((3, True, 1.0, 1),)
    assert run.memories[3] == {"jobs": 1}


def test_cancelling_what_waits_or_is_unknown():
    def script(self, state, clients):
        _, second = clients.send([3, 3], self.work, params=state.params)
        clients.receive(until=1.0)
        clients.cancel(second)
        clients.cancel(999)
        got = clients.receive(until=60.0)
        return replace(state, seen=tuple((r.message.began, r.time) for r in got))

    assert play(script).state.seen == ((0.0, 6.0),)


def test_map_and_mean_beside_jobs_under_way():
    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        got = clients.map(self.work, [1, 2], params=state.params)
        middle = clients.now
        mean = clients.mean(self.work, [1, 2], weight=1, params=state.params)
        late = clients.receive()
        return replace(state, seen=(got.ids, middle, mean.count, mean.jobs, clients.now, late.ids))

    assert play(script).state.seen == ([1, 2], 2.0, 2, 2.0, 6.0, [3])


@pytest.mark.parametrize("world", [STEP, replace(STEP, deadline=100.0)])
def test_replies_of_a_map_say_when_each_arrived(world):
    def script(self, state, clients):
        got = clients.map(self.work, [3, 1, 2], params=state.params)
        return replace(state, seen=tuple((r.id, r.time) for r in got))

    assert play(script, world=world).state.seen == ((3, 6.0), (1, 1.0), (2, 2.0))


# ---------------------------------------------------------------- together


@pytest.mark.parametrize("engine", ["stacked", "pool"])
def test_stacked_equals_alone(engine):
    def script(self, state, clients):
        clients.send(range(6), self.twice, params=state.params)
        clients.cut([3], at=7.0)
        got = clients.receive(count=6)
        order = sorted(got, key=lambda r: r.id)
        return replace(state, params=sum(r.delta for r in order), seen=tuple((r.id, r.steps, r.time) for r in got))

    a, b = play(script), play(script, engine=engine, workers=2)
    assert a.state.seen == b.state.seen
    assert difference(a.params, b.params, 1e-12) == ""


def test_like_jobs_under_way_are_trained_together(monkeypatch):
    calls, plain = [], Local.compute
    monkeypatch.setattr(Local, "compute", lambda self, requests: calls.append(len(requests)) or plain(self, requests))

    def script(self, state, clients):
        clients.send(range(6), self.work, params=state.params)
        clients.receive(count=6)
        return state

    play(script)
    assert calls == [6]


def test_nothing_uncertain_is_computed_once_something_was_cut(monkeypatch):
    calls, plain = [], Local.compute
    monkeypatch.setattr(Local, "compute", lambda self, requests: calls.append(len(requests)) or plain(self, requests))

    def script(self, state, clients):
        clients.send([0, 3], self.work, params=state.params)
        clients.cut([3], at=2.0)
        clients.receive(count=1)
        return state

    play(script)
    assert sum(calls) == 1


# ---------------------------------------------------------------- run again


@dataclass(frozen=True)
class Everything(Script):
    """A round is one arrival; jobs are cut, cancelled, queued, delayed, ask the server and peers, and start others."""

    card = replace(Script.card, id="everything")

    async def asks(self, client, params):
        first = await client.train(params, solver=self.solver)
        newest = await client.ask(Everything.newest)
        peers = await client.ask(self.tells, of=[(client.id + 1) % 6])
        second = await client.train(first.vector + 0.1 * (newest.params - params), solver=self.solver, steps=2)
        client.memory["last"] = second.vector
        client.send((client.id + 2) % 6, self.work, when=0.7, params=second.vector)
        return fl.Message(delta=second.vector - params, heard=float(peers.jobs[0]), jobs=0, steps=0)

    async def tells(self, client):
        return fl.Message(jobs=float(client.memory.get("jobs", 0)))

    @staticmethod
    def newest(state):
        return fl.Message(params=state.params)

    def round(self, state, clients):
        n = len(state.seen)
        if n % 4 == 0:
            clients.send([0, 3, 3], self.work, params=state.params)
            clients.send([1, 5], self.asks, params=state.params)
        if n == 2:
            clients.cut([3], at=clients.now + 1.5)
        if n == 5:
            clients.cancel(clients.jobs[0].number)
        got = clients.receive(count=1)
        if not got:
            return state
        r = got[0]
        entry = (r.id, r.job, r.staleness, r.time, r.steps, r.jobs)
        return replace(state, params=state.params + 0.2 * r.delta, seen=(*state.seen, entry))


WORLD = fl.World(step_seconds=1.0, spread=0.5, jitter=0.3, latency=0.3, up=1e4, down=3e4)
ROUNDS = 14


def experiment(**options):
    return Trial(Everything).experiment(
        method=Everything(), sizes=SIZES, world=WORLD, rounds=ROUNDS, checkpoint_seconds=0.0, **options
    )


@pytest.fixture(scope="module")
def reference():
    return experiment().run()


def test_everything_happens(reference):
    assert len({e[0] for e in reference.state.seen}) >= 4
    assert max(e[2] for e in reference.state.seen) >= 2
    assert reference.host.ledger.peers > 0
    assert reference.host.dispatch.jobs


@pytest.mark.parametrize("killed", range(1, ROUNDS + 1))
def test_revived_at_every_event(reference, tmp_path, killed):
    def kill(event):
        if event["event"] == "round" and event["round"] == killed:
            raise Killed

    with pytest.raises(Killed):
        experiment(out=tmp_path, observers=(kill,)).run()
    assert difference(outcome(experiment(out=tmp_path).run(resume=True)), outcome(reference)) == ""


@pytest.mark.parametrize("engine", ["stacked", "pool", "debug"])
def test_everything_on_every_engine(reference, engine):
    run = experiment(engine=engine, workers=2).run()
    assert difference(run.state, reference.state, 1e-10) == ""
    assert difference(run.memories, reference.memories, 1e-10) == ""


def test_a_lost_reply_in_time():
    async def nan(client, honest, **payload):
        reply = await honest(client, **payload)
        return reply.replace(delta=reply.delta * float("nan"))

    def script(self, state, clients):
        clients.send([0, 2, 2], self.work, params=state.params)
        got = clients.receive(until=60.0)
        return replace(state, seen=tuple(got.ids))

    run = play(script, behave={2: nan}, on_failure="exclude")
    assert run.state.seen == (0,)
    assert set(run.memories) == {0}
    assert run.rows[0]["excluded"] == 2


@pytest.mark.parametrize("name", ["fedbuff", "fedasync", "favano", "fedfix", "fedcompass"])
@pytest.mark.parametrize("place", [0, 1])
def test_an_odd_shape_among_arrivals_is_counted_and_leaves_no_trace(name, place):
    """It may be the first reply of all, so that there is nothing yet to compare it with."""

    async def longer(client, honest, **payload):
        client.memory["mine"] = 1
        reply = await honest(client, **payload)
        return reply.replace(**{k: torch.cat([v, v[:1]]) for k, v in reply.items() if isinstance(v, Tensor)})

    trial = Trial(fl.catalogue()[name])
    odd = list(dict.fromkeys(h.client for h in trial.spy_on_reference()))[place]
    run = trial.run(behave={odd: longer})
    assert sum(row["excluded"] for row in run.rows) >= 1
    assert odd not in run.memories
    assert run.params.shape == trial.reference.params.shape
    assert torch.isfinite(run.params).all()


def test_shapes_that_are_the_method_s_own_business():
    """Only a method whose card promises vectors of the model is held to it, and only where a model was sent."""

    async def short(self, client, params=None):
        return fl.Message(rows=torch.ones(3 + client.id))

    def script(self, state, clients):
        clients.send([0], self.short, params=state.params)
        clients.send([1], self.short)
        return replace(state, seen=tuple(clients.receive(count=2, until=9.0).ids))

    Script.short = short  # type: ignore[attr-defined]
    run = play(script)
    assert (run.state.seen, run.rows[0]["excluded"]) == ((1,), 1)
    reason = next(iter(run.host.excluded))
    assert "none of what it was sent" in reason
    assert "(3,)" in reason


# ---------------------------------------------------------------- what stands, what is refused


def test_a_cut_may_come_sooner_than_the_last_one_said():
    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        clients.cut([3], at=5.0)
        clients.cut([3], at=2.0)
        clients.cut([3], at=4.0)
        (r,) = clients.receive()
        return replace(state, seen=(r.steps, r.time))

    assert play(script).state.seen == (2, 2.0)


def test_cancelling_a_reply_on_its_way_undoes_no_book_and_no_bytes():
    async def spends(client, honest, **payload):
        client.book.add("epsilon", 0.5)
        return await honest(client, **payload)

    def script(self, state, clients):
        (job,) = clients.send([1], self.bare, params=state.params)
        clients.receive(until=4.0)  # trained by 3.0, and the upload takes another ten seconds
        clients.cancel(job)
        return replace(state, seen=tuple(clients.receive(until=60.0).ids))

    size = 8 * 602
    run = play(script, world=fl.World(step_seconds=1.0, up=size / 10), behave={1: spends})
    assert run.state.seen == ()
    assert run.host.books == {1: {"epsilon": 0.5}}
    assert run.host.ledger.up == size
    assert run.memories == {}


def test_cancelling_a_reply_nobody_has_received_drops_it_and_frees_its_client():
    def script(self, state, clients):
        waiting, _ = clients.send([1, 2], self.work, params=state.params)
        clients.receive(of=[2])
        assert [p.number for p in clients.jobs] == [waiting]
        clients.cancel(waiting)
        free = 1 in clients.sample(len(SIZES))
        return replace(state, seen=(free, clients.jobs, list(clients.receive(until=60.0))))

    run = play(script)
    assert run.state.seen == (True, [], [])
    assert run.memories == {1: {"jobs": 1}, 2: {"jobs": 1}}


def test_a_named_weight_is_judged_before_anything_counts():
    """With jobs under way a mean goes through the clock, and refuses what it would refuse without."""

    def script(self, state, clients):
        clients.send([3], self.work, params=state.params)
        got = clients.mean(self.odd, [0, 1, 2], weight="share", params=state.params)
        return replace(state, seen=(got.count, got.weight))

    async def odd(self, client, params):
        client.memory["seen"] = True
        return fl.Message(delta=params, share=-1.0 if client.id == 1 else 2.0)

    Script.odd = odd  # type: ignore[attr-defined]
    run = play(script)
    assert run.state.seen == (2, 4.0)
    assert set(run.memories) == {0, 2}
    assert run.rows[0]["excluded"] == 1


@pytest.mark.parametrize("ask", ["map", "mean"])
def test_a_client_asked_twice_does_one_after_the_other(ask):
    """A cohort drawn with replacement: the second job starts from what the first left."""

    def script(self, state, clients):
        ids = [2, 2, 0]
        if ask == "map":
            got = clients.map(self.work, ids, params=state.params)
            return replace(state, seen=(got.ids, got.jobs.tolist(), clients.now))
        got = clients.mean(self.work, ids, weight=1, params=state.params)
        return replace(state, seen=(got.count, got.jobs, clients.now))

    run = play(script)
    assert run.state.seen == (([2, 2, 0], [1, 2, 1], 5.0) if ask == "map" else (3, 4 / 3, 5.0))
    assert run.memories[2] == {"jobs": 2}


def test_a_download_takes_as_long_as_its_bytes_whoever_asks():
    """`once` values are sent once; both roads, `map` and `send`, take the time of what was really sent."""
    size = 8 * 602

    def script(self, state, clients):
        for k in range(2):
            if self.cohort:
                clients.map(self.bare, [1], params=fl.once(state.params))
            else:
                clients.send(1, self.bare, params=fl.once(state.params))
                clients.receive()
            clients.note(**{f"t{k}": clients.now})
        return state

    times = []
    for cohort in (0, 1):
        kind = dataclass(frozen=True)(
            type("Once", (Script,), {"script": script, "__module__": __name__, "cohort": cohort})
        )
        world = fl.World(step_seconds=1.0, down=size / 2.0)
        run = Trial(kind).run(method=kind(), sizes=SIZES, world=world, rounds=1)
        assert run.host.ledger.down == size
        times.append(run.rows[0]["notes"])
    assert times == [{"t0": 5.0, "t1": 8.0}] * 2


@pytest.mark.parametrize("answered", [True, False])
def test_bytes_of_questions_are_those_asked_and_answered(answered):
    async def asks(self, client, params):
        for question, of in ((self.newest, None), (self.tells, [4, 5])):
            try:
                await client.ask(question, of=of, about=True)
            except fl.FedloomError:
                assert not answered
        return fl.Message(x=1.0)

    def newest(self, state, about):
        return {True: fl.Message(params=state.params)}[answered]

    async def tells(self, client, about):
        return {True: fl.Message(jobs=0.0)}[answered]

    def script(self, state, clients):
        if self.timed:
            clients.send([0, 1], self.asks, params=state.params)
            clients.receive(count=2)
        else:
            clients.map(self.asks, [0, 1], params=state.params)
        return state

    for timed in (False, True):
        for engine in ("sequential", "pool", "debug"):
            programs = {"script": script, "asks": asks, "newest": newest, "tells": tells}
            members = {**programs, "timed": timed, "__module__": __name__}
            kind = dataclass(frozen=True)(type("Asking", (Script,), members))
            options = {"engine": engine, "workers": 2, "on_failure": "exclude"}
            run = Trial(kind).run(method=kind(), sizes=SIZES, world=STEP, rounds=1, **options)
            ledger, size = run.host.ledger, 8 * 602
            answer, told = (size, 8) if answered else (0, 0)
            assert (ledger.up, ledger.down, ledger.peers) == (2 * (8 + 1), 2 * (size + answer), 2 * 2 * (told + 1))


def test_mixing_waits_for_jobs_under_way():
    async def keeps(self, client, params):
        client.memory["w"] = params
        return (await self.bare(client, params)).replace(vector=params)

    def script(self, state, clients):
        clients.map(self.keeps, [0, 1, 2], params=state.params)
        clients.send([1], self.keeps, params=state.params)
        clients.only(clients.idle()).mix("w", Complete())
        with pytest.raises(fl.FedloomError, match=r"under way at clients \[1\].*overwrite"):
            clients.mix("w", Complete())
        clients.receive()
        clients.mix("w", Complete())
        return state

    Script.keeps = keeps  # type: ignore[attr-defined]
    assert play(script).host.ledger.peers == (2 + 6) * 8 * 602
