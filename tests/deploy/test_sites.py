"""Real sites on loopback: the same run as the local engine, and what is refused, and why."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

pytest.importorskip("starlette")

import httpx
from desk import Desk
from harness import Bench, Kill, Schedule, Setting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sites_http import Summed, summed

from fedloom.client import Ask
from fedloom.deploy import Authority, MemoryLost, Policy, Refused, Serving, Store, Terms, certs, join
from fedloom.deploy.agreement import Agreement, Offer, declaration
from fedloom.deploy.alone import alone
from fedloom.deploy.arrivals import Sites
from fedloom.deploy.blobs import Blobs, name_of
from fedloom.deploy.certs import server_context
from fedloom.deploy.coordinator import Coordinator
from fedloom.deploy.journal import Journal, Written
from fedloom.deploy.link import Link, Turned, Unreachable
from fedloom.deploy.listening import Listener, gate_of
from fedloom.deploy.metrics import exposition
from fedloom.deploy.replay import replay
from fedloom.deploy.serving import holdings
from fedloom.deploy.site import Site
from fedloom.deploy.tables import Table
from fedloom.deploy.wire import Reply
from fedloom.errors import CheckpointError, ConfigError, FedloomError, FedloomWarning, MessageError, NotSupported
from fedloom.message import At, Message
from fedloom.method import catalogue
from fedloom.runs import Recipe
from fedloom.runs.options import written
from fedloom.testing.tiny import small
from fedloom.timing.posted import Posted
from fedloom.written import dumps

# ---------------------------------------------------------------- the same run


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedper"])
def test_equal_to_the_local_engine_bit_for_bit(method, tmp_path):
    setting = _setting_of(method)
    bench = Bench(setting, tmp_path)
    bench.run(Schedule())
    bench.check()


def _setting_of(method: str) -> Setting:
    cls = catalogue()[method]
    families = "families" in cls.card.needs
    model = "mlp:8,dim=6+mlp:10,8,dim=6" if families else "mlp:8,dim=6"
    return Setting(method, 2, options=written(small(cls())), recipe={"model": model, "evaluate_every": 1}, test=True)


def _without_views_of_data() -> list[str]:
    """Methods that ask for nothing but clients (no public or server data, no peers), and for no network of a kind."""
    apart = {"public", "server data", "peers", "adapters", "clock", "validation"}
    ours = {id: cls for id, cls in catalogue().items() if cls.__module__.startswith("fedloom.")}
    return [id for id, cls in ours.items() if not apart & cls.card.needs and not hasattr(cls, "example")]


@pytest.mark.skipif("FEDLOOM_SLOW" not in os.environ, reason="minutes: FEDLOOM_SLOW=1")
@pytest.mark.parametrize("method", _without_views_of_data())
def test_every_method_that_needs_no_view_of_data(method, tmp_path):
    bench = Bench(_setting_of(method), tmp_path)
    bench.run(Schedule())
    bench.check()


def test_questions_in_mid_job_are_answered_the_same_after_deaths_on_both_sides(tmp_path):
    """FedASMU's clients are judged while their own jobs are under way, too: that takes no memory from these."""
    asked, answered = "fedloom.deploy.link:Link.ask", "fedloom.deploy.journal:Journal.answer"
    options = {"concurrency": 2, "trigger": 2, "period": 0.2, "solver.epochs": 1}
    bench = Bench(Setting("fedasmu", 4, options=options, tls=False), tmp_path)
    deaths = {site: [[Kill(asked, 1, after=True)], [Kill(asked, 1)]] for site in bench.setting.sites}
    bench.run(Schedule([[Kill(answered, 1, after=True)], [Kill(answered, 1)]], deaths))
    bench.check()
    with contextlib.closing(sqlite3.connect(tmp_path / "server" / "journal.db")) as journal:
        answers = {body for (body,) in journal.execute("SELECT body FROM answers")}
    assert len(answers) >= 2
    for site in bench.setting.sites:
        assert not answers & {path.name for path in (tmp_path / site / "blobs").iterdir()}


def test_compressed_messages_and_a_quorum_of_all(tmp_path):
    setting = Setting("fedavg", rounds=2, recipe={"channel": ("topk:0.3", "quantize:8"), "seed": 5})
    bench = Bench(setting, tmp_path)
    bench.run(Schedule())
    bench.check()


# ---------------------------------------------------------------- one coordinator, spoken to by hand


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def _job(link: Link) -> dict:
    while (job := link.next_job()) is None:
        pass
    return job


def _send(link: Link, job: dict, reply: Reply | bytes, folder: Path) -> dict:
    blobs = Blobs(folder / "out")
    body = blobs.put(reply if isinstance(reply, bytes) else reply.dumps())
    return link.reply(job["id"], body, blobs, 1000)


def test_a_reply_is_taken_once_and_the_first_one_stands(desk, tmp_path):
    a, _ = desk.joined()
    job = _job(a)
    good = Reply(message=Message(delta=torch.zeros(278)), work=[[1.0, 0.0, 0.0]])
    assert _send(a, job, good, tmp_path) == {"taken": "yes"}
    with pytest.raises(Turned, match="no reply of this site"):
        _send(a, job, Reply(message=Message(delta=torch.ones(278))), tmp_path)
    answer = a._json("POST", "/v1/replies", json.dumps({"job": job["id"], "body": name_of(good.dumps())}).encode())
    assert answer == {"taken": "yes"}
    assert desk.serving.service.standing()["sites"]["a"]["again"] == 1


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(message=Message(delta=torch.full((3,), float("nan")))), "NaN or infinity"),
        (Reply(message=Message(x=At(torch.tensor([0]), torch.ones(1), 10**12))), "more than"),
        (Reply(work=[[-1.0, 0.0, 0.0]]), "wrong type, a negative"),
        (b"not safetensors", "not a Fedloom message"),
        (dumps({"message": None}), "its fields are others"),
    ],
    ids=["nan", "bomb", "negative", "bytes", "fields"],
)
def test_what_can_never_count_is_refused_with_a_reason_and_counted(desk, tmp_path, reply, why):
    a, _ = desk.joined()
    answer = _send(a, _job(a), reply, tmp_path)
    assert answer["taken"] == "refused"
    assert why in answer["why"]
    assert desk.serving.service.standing()["sites"]["a"]["refused"] == 1


def test_a_site_reads_and_answers_its_own_jobs_alone(desk, tmp_path):
    a, b = desk.joined()
    job = _job(a)
    _job(b)
    with pytest.raises(Turned, match="no job"):
        _send(b, job, Reply(), tmp_path)
    with pytest.raises(Turned, match="no such bytes"):
        b.fetch("0" * 64, Blobs(tmp_path / "in"))
    with pytest.raises(Turned, match="not a site of this federation"):
        desk.link("mallory").offer()


def test_another_plan_is_refused(desk):
    a, _ = desk.joined()
    a.plan = "0" * 32
    with pytest.raises(Turned, match="goes by the plan") as refused:
        a.next_job()
    assert refused.value.status == 412


def test_a_declaration_stands_and_fits_the_others(desk):
    a, b = desk.link("a"), desk.link("b")
    said = desk.declare("a")
    a.hello(said)
    a.hello(said)  # as often as one likes
    with pytest.raises(Turned, match="declared other data"):
        a.hello({**said, "sha256": "other"})
    with pytest.raises(Turned, match="unlike those of a"):
        b.hello({**desk.declare("b"), "fields": {"x": [[3], "float32"], "y": [[], "int64"]}})
    for odd in ({"sizes": [1, 2]}, {"sizes": [-1]}, {"fields": {}}, {"classes": "ten"}):
        with pytest.raises(Turned) as refused:
            b.hello({**desk.declare("b"), **odd})
        assert refused.value.status == 422


def test_declarations_that_come_at_once_are_held_against_each_other(desk, monkeypatch):
    journal, both = desk.serving.journal, threading.Barrier(2)
    declare = journal.declare

    def late(site: str, content: dict) -> dict:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # until the other, too, has been found to fit
        return declare(site, content)

    monkeypatch.setattr(journal, "declare", late)
    odd = {**desk.declare("b"), "fields": {"x": [[3], "float32"], "y": [[], "int64"]}}
    with ThreadPoolExecutor() as pool:
        said = [pool.submit(desk.link("a").hello, desk.declare("a")), pool.submit(desk.link("b").hello, odd)]
    assert [type(s.exception()) for s in said].count(Turned) == 1
    assert len(journal.declarations()) == 1


def test_transfers_go_on_where_they_stopped(desk, tmp_path):
    a, _ = desk.joined()
    job = _job(a)
    body = Reply(message=Message(delta=torch.randn(278))).dumps()
    name, half = name_of(body), len(body) // 2

    def put(offset: int, part: bytes, size: int = len(body)) -> int:
        return a._json("PUT", f"/v1/blobs/{name}?offset={offset}&size={size}", part)["received"]

    assert put(0, body[:half]) == half
    assert put(0, body[:half]) == half  # again: nothing changes
    assert put(half + 7, body[half + 7 :]) == half  # not the next one: says where it stands
    assert put(half, body[half:]) == len(body)
    with pytest.raises(Turned, match="plan allows") as refused:
        put(0, b"x", size=10**12)
    assert refused.value.status == 413
    answer = a._json("POST", "/v1/replies", json.dumps({"job": job["id"], "body": name}).encode())
    assert answer == {"taken": "yes"}


def test_bytes_that_are_not_what_they_are_named_by_are_fetched_again_for_as_long_as_the_site_is_patient(desk, tmp_path):
    a, _ = desk.joined()
    payload = _job(a)["payload"]
    desk.serving.blobs.path(payload).write_bytes(b"rotten")
    a.patience = 0.0
    with pytest.raises(Unreachable, match="do not have the hash"):
        a.fetch(payload, Blobs(tmp_path / "in"))
    desk.serving.blobs.path(payload).write_bytes(b"")
    with pytest.raises(Unreachable, match="damaged"):
        a.fetch(payload, Blobs(tmp_path / "in"))


def test_patience_is_for_silence_and_not_for_a_transfer_that_goes_on(desk, tmp_path, monkeypatch):
    a, _ = desk.joined()
    body, told = bytes(range(60)), list[str]()
    monkeypatch.setattr("fedloom.deploy.link._PATIENCE", (0.01, 0.01))

    @contextlib.contextmanager
    def slowly(request: httpx.Request) -> Iterator[Any]:
        """Twenty bytes a request, cut after longer than the site is patient."""
        here = int(request.headers.get("range", "bytes=0-")[6:-1])
        told.append(f"from {here}")

        def pieces(_: int) -> Iterator[bytes]:
            for k in range(here, here + 20, 5):
                time.sleep(0.05)
                yield body[k : k + 5]
            if here < 40:
                raise httpx.ReadError("cut")

        yield SimpleNamespace(
            status_code=206 if here else 200, headers={"content-length": str(60 - here)}, iter_bytes=pieces
        )

    monkeypatch.setattr(a, "_answer", slowly)
    a.patience = 0.15
    assert a.fetch(name_of(body), Blobs(tmp_path / "in")).read_bytes() == body
    assert told == ["from 0", "from 20", "from 40"]


def test_a_site_has_as_many_classes_as_the_table_of_the_plan_has_labels(tmp_path):
    table = {"target": "sick", "labels": ["no", "yes"], "columns": {"age": [50, 10]}}
    with contextlib.closing(Desk(tmp_path, table=table)) as desk:
        with pytest.raises(Turned, match="sick has 2 labels here, and a said 3 classes"):
            desk.link("a").hello({**_said(), "classes": 3})
        desk.link("a").hello({**_said(), "classes": 2})


def test_a_site_has_room_for_one_reply(desk):
    """Whole bodies that no reply names do not pile up."""
    a, _ = desk.joined()
    _job(a)
    for k in range(5):
        part = f"body {k}".encode()
        a._json("PUT", f"/v1/blobs/{name_of(part)}?offset=0&size={len(part)}", part)
    assert len([p for p in desk.serving.blobs.folder.iterdir() if p.stat().st_size == 6]) == 1


def test_one_site_s_questions_do_not_take_all_there_is(desk, monkeypatch):
    desk.joined()
    job, most, running = _job(desk.joined()[0]), [0], [0]

    def slow(site: str, id: str, number: int, body: bytes) -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return "answer"

    service = desk.serving.service
    service.coordinator.look()
    monkeypatch.setattr(service.coordinator, "question", slow)

    def ask(number: int) -> None:
        link = desk.link("a")
        link.plan = service.plan
        with contextlib.suppress(FedloomError):
            link._json("POST", f"/v1/questions?job={job['id']}&number={number}", b"what?")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert most == [1]


def test_a_question_too_large_for_a_piece_costs_its_job_and_not_the_site(tmp_path):
    asked = Ask(len, None, math.inf, Message(x=torch.zeros(1000)))
    with contextlib.closing(Store(tmp_path)) as store:
        site = SimpleNamespace(partner=None, plan=SimpleNamespace(place=str), store=store, piece=1000)
        with pytest.raises(MessageError, match=r"a question of 4,\d\d\d bytes.* 1,000: .*\[sites\] piece") as failed:
            Site._asked(cast("Site", site), asked, 0)
        assert not store.audit()
    assert not isinstance(failed.value, Turned)


def test_a_job_is_told_no_more_than_a_message_may_hold(tmp_path, monkeypatch):
    with contextlib.closing(Desk(tmp_path, largest=0.01)) as desk:
        job, coordinator = _job(desk.joined()[0]), desk.serving.service.coordinator
        monkeypatch.setattr(coordinator, "_askable", lambda program: lambda state: Message(x=torch.zeros(1000)))

        def ask(number: int) -> str:
            return coordinator.question("a", job["id"], number, dumps({"program": "latest", "message": {}}))

        first = ask(0)
        ask(1)
        for _ in range(2):
            with pytest.raises(MessageError, match=r"bytes, and the plan allows 10,000.*\[sites\] largest"):
                ask(2)
            coordinator._told.clear()  # as in one that was started again
        assert ask(0) == first
        assert len(coordinator.journal.answers(job["id"])) == 2


def test_damaged_bodies_are_sent_again(desk):
    a, _ = desk.joined()
    _job(a)
    raw = httpx.Client(base_url=desk.serving.url, trust_env=False)
    part = b"some bytes"
    where = f"/v1/blobs/{name_of(part)}?offset=0&size={len(part)}"
    damaged = raw.put(where, content=part, headers=summed("PUT", where.encode(), "a", a.plan, b"other bytes"))
    assert damaged.status_code == 400
    assert damaged.json()["again"]
    other = raw.put(f"/v1/blobs/{'0' * 64}?offset=0&size=10", content=part, auth=Summed("a", a.plan))
    assert other.status_code == 422  # whole, and not what it was announced as


PATHS = ("/v1/offer", "/v1/hello", "/v1/plan", "/v1/jobs", "/v1/replies", "/v1/questions", "/v1/blobs/x", "/metrics")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    path=st.one_of(st.sampled_from(PATHS), st.text("abc/.%0", max_size=12).map(lambda t: "/v1/blobs/" + t)),
    query=st.dictionaries(
        st.sampled_from(["wait", "offset", "size", "job", "number"]), st.text(max_size=6), max_size=3
    ),
    body=st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)),
)
def test_no_request_brings_it_down(desk, method, path, query, body):
    """Whatever is asked, the answer is a refusal or an answer, never a failure of the server."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    query = {**query, "wait": "0"}
    with httpx.Client(base_url=desk.serving.url, auth=Summed("a"), trust_env=False) as raw:
        url = httpx.URL(desk.serving.url).copy_with(path=path, params=query)
        answer = raw.request(method, url, content=content)
    assert answer.status_code < 500 or answer.status_code == 503


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
def test_no_bytes_break_the_decoder(noise, at, flip):
    """Random bytes, and a reply with one byte changed: a reply again, or a MessageError."""
    body = bytearray(Reply(message=Message(delta=torch.ones(3), n=2.0), work=[[1.0, 0.0, 0.0]]).dumps())
    body[at % len(body)] ^= flip
    for data in (noise, bytes(body)):
        with contextlib.suppress(MessageError):
            assert isinstance(Reply.loads(data, 10**6), Reply)


def test_figures_for_prometheus_and_people(desk):
    desk.joined()
    with httpx.Client(base_url=desk.serving.url, headers={"fedloom-site": "a"}, trust_env=False) as raw:
        assert raw.get("/healthz").text == "ok\n"
        text = raw.get("/metrics").text
        status = raw.get("/v1/status").json()
    assert "# TYPE fedloom_replies_total counter" in text
    assert 'fedloom_replies_total{site="a"} 0' in text
    assert "fedloom_sites_joined 2" in text
    assert status["sites"]["a"]["joined"]
    assert status["sites"]["a"]["heard"] < 60
    assert 'fedloom_site_silent_seconds{site="a"}' in text


def test_the_queue_and_what_was_refused_are_counted_by_reason(desk, tmp_path):
    a, b = desk.joined()
    _job(b)
    assert desk.serving.service.standing()["sites"]["b"]["queue"] == 1
    for link, body in ((a, b"not safetensors"), (b, Reply(message=Message(d=torch.full((1,), float("nan")))))):
        _send(link, _job(link), body, tmp_path)
    a.plan = "0" * 32
    with pytest.raises(Turned):
        a.next_job()
    standing = desk.serving.service.standing()
    assert standing["refused_replies"] == {"malformed": 1, "not finite": 1}
    assert standing["refused_requests"] == {"another plan": 1}
    text = exposition(standing)
    assert 'fedloom_replies_refused_by_reason_total{reason="not finite"} 1' in text
    assert 'fedloom_requests_refused_by_reason_total{reason="another plan"} 1' in text
    assert 'fedloom_jobs_waiting{site="b"} ' in text


def test_tables_are_read_by_the_plan(tmp_path):
    table = Table(target="sick", labels=["no", "yes"], columns={"age": [50, 10], "kind": ["1", "2", "missing"]})
    (tmp_path / "t.csv").write_text("kind,age,sick\n1,60,yes\n,,no\n7,40,no\n")
    odd = r"column 'kind': 1 of 3 values are none of its categories, such as \['7'\]"
    with pytest.warns(FedloomWarning, match=odd):
        data = table.read(tmp_path / "t.csv")
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [-1, 0, 0, 0]]
    assert data.y.tolist() == [1, 0, 0]
    terms = Terms(names=["a"], table=table)
    assert Terms(**json.loads(json.dumps(terms.model_dump(mode="json")))) == terms


# ---------------------------------------------------------------- who may speak


@pytest.fixture
def guarded(tmp_path) -> Iterator[tuple[Serving, Authority]]:
    authority = Authority.init(tmp_path / "certs")
    for name in ("a", "b", "watcher"):
        authority.issue(name)
    setting = Setting("fedavg", sites=("a", "b"), terms={"names": ["a", "b"]})
    serving = Serving(setting.made(), tmp_path / "server", certs=tmp_path / "certs")
    yield serving, authority
    serving.close()


def _as(serving: Serving, folder: Path, site: str = "") -> Link:
    return Link(serving.url, site, folder, patience=0.5, wait=1)


def test_the_name_is_that_of_the_certificate(guarded, tmp_path):
    serving, authority = guarded
    link = _as(serving, authority.folder / "sites" / "a", site="b")  # says it is b
    link.hello(_said())
    assert list(serving.journal.declarations()) == ["a"]
    with pytest.raises(Turned, match="not a site of this federation"):
        _as(serving, authority.folder / "sites" / "watcher").offer()
    assert _as(serving, authority.folder / "sites" / "watcher").standing()["state"] == "waiting for sites"


def test_a_revoked_certificate_counts_no_more_at_once(guarded):
    serving, authority = guarded
    link = _as(serving, authority.folder / "sites" / "a")
    link.offer()
    authority.revoke("a")
    with pytest.raises(Turned, match="was revoked") as refused:  # on the very connection it has
        link.offer()
    assert refused.value.status == 403
    authority.issue("a")
    _as(serving, authority.folder / "sites" / "a").offer()
    with pytest.raises(Turned, match="was revoked"):
        link.offer()


def test_a_poll_that_waits_hears_of_its_revocation(guarded):
    serving, authority = guarded
    links = [_as(serving, authority.folder / "sites" / name) for name in "ab"]
    for link in links:
        link.hello(_said())
    agreement = Agreement.read(links[0].agreement())
    links[0].plan, links[0].wait = agreement.hash, 1.5
    threading.Timer(0.5, authority.revoke, ["a"]).start()
    with pytest.raises(Turned, match="was revoked"):
        links[0].next_job()


def test_certificates_of_others_and_old_ones_are_refused(guarded, tmp_path, monkeypatch):
    serving, authority = guarded
    stranger = Authority.init(tmp_path / "other")
    folder = stranger.issue("a")
    (folder / "ca.pem").write_bytes((authority.folder / "ca.pem").read_bytes())
    with pytest.raises(certs.Untrusted, match="not issued by the authority"):
        _as(serving, folder)
    monkeypatch.setattr(certs, "_STARTS", timedelta(days=-3))
    old = authority.issue("b", days=-1)
    with pytest.raises(certs.Untrusted, match="ended"):
        _as(serving, old)
    for odd in (folder, old):  # nor does the coordinator take them from a site that does not look
        context = ssl.create_default_context(cafile=odd / "ca.pem")
        context.load_cert_chain(odd / "site.pem", odd / "site.key")
        with pytest.raises((httpx.HTTPError, ssl.SSLError)):
            httpx.get(serving.url + "/healthz", verify=context, trust_env=False)
    nobody = ssl.create_default_context(cafile=authority.folder / "ca.pem")
    with pytest.raises((httpx.HTTPError, ssl.SSLError)):  # no certificate at all
        httpx.get(serving.url + "/healthz", verify=nobody, trust_env=False)


def test_files_that_do_not_go_together_are_named(tmp_path):
    authority = Authority.init(tmp_path / "certs")
    folder, other = authority.issue("a"), authority.issue("b")
    (folder / "site.key").write_bytes((other / "site.key").read_bytes())
    with pytest.raises(ConfigError, match=r"site\.pem, site\.key and ca\.pem in .*a do not go together"):
        certs.site_context(folder)
    (folder / "site.pem").write_bytes(b"half of it")
    with pytest.raises(ConfigError, match=r"site\.pem is no certificate, or damaged"):
        certs.name_in(folder)
    (folder / "ca.pem").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"or one is damaged \(NO_CERT"):
        certs.site_context(folder)


def test_a_coordinator_of_another_authority_is_refused(tmp_path):
    mine, other = Authority.init(tmp_path / "mine"), Authority.init(tmp_path / "other")
    folder = mine.issue("a")
    setting = Setting("fedavg", sites=("a",))
    serving = Serving(setting.made(), tmp_path / "server", certs=other.folder)
    try:
        with pytest.raises(certs.Untrusted, match=r"CERTIFICATE_VERIFY_FAILED"):
            _as(serving, folder).offer()
    finally:
        serving.close()


def test_the_coordinator_s_certificate_is_renewed_for_the_hosts_it_has_or_others(tmp_path, monkeypatch):
    authority = Authority.init(tmp_path / "certs", ["localhost"])
    folder, setting = authority.issue("a"), Setting("fedavg", sites=("a",))

    def served(host: str) -> None:
        with contextlib.closing(Serving(setting.made(), tmp_path / "server", certs=authority.folder)) as serving:
            url = serving.url.replace("127.0.0.1", host)
            with contextlib.closing(Link(url, "", folder, patience=0.5, wait=1)) as link:
                link.offer()

    with pytest.raises(certs.Untrusted, match=r"not valid for '127\.0\.0\.1'.*fedloom certs renew"):
        served("127.0.0.1")
    with monkeypatch.context() as patch:
        patch.setattr(certs, "_STARTS", timedelta(days=-3))
        authority.renew(days=-1)
    with pytest.raises(certs.Untrusted, match=r"server\.pem ended .* UTC\..*fedloom certs renew --folder"):
        served("localhost")
    assert authority.renew() == ["localhost"]
    served("localhost")
    assert authority.renew(["127.0.0.1"]) == ["127.0.0.1"]
    served("127.0.0.1")


def test_a_coordinator_that_hangs_up_is_said_to_have_perhaps_another_clock(guarded, monkeypatch):
    serving, authority = guarded
    monkeypatch.setattr(certs, "_STARTS", timedelta(days=2))
    folder = authority.issue("a", days=30)
    starts = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    with pytest.raises(Unreachable, match=rf"does not count by its clock: this site's counts from {starts}"):
        _as(serving, folder).offer()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"1F": "a"}', '{"1F": {"name": "a"}}', "\xff"])
def test_a_damaged_list_of_certificates_shuts_nobody_out_for_good(text, guarded):
    serving, authority = guarded
    link, issued = _as(serving, authority.folder / "sites" / "a"), authority.folder / "issued.json"
    kept = issued.read_text()
    issued.write_text(text, encoding="latin-1")
    for refused in (lambda: authority.issue("b"), lambda: authority.revoke("a"), lambda: gate_of(authority.folder)):
        with pytest.raises(ConfigError, match=r"issued\.json cannot be read, or is damaged"):
            refused()
    with pytest.raises(Unreachable, match=r"issued\.json cannot be read, or is damaged"):
        link.offer()
    issued.write_text(kept)
    link.offer()


def test_keys_are_for_their_owner_alone(tmp_path):
    authority = Authority.init(tmp_path / "certs")
    folder = authority.issue("a", days=10)
    for key in (authority.folder / "ca.key", authority.folder / "server.key", folder / "site.key"):
        assert key.stat().st_mode & 0o077 == 0
    assert server_context(authority.folder).minimum_version == ssl.TLSVersion.TLSv1_3
    entry = next(iter(authority.issued().values()))
    assert datetime.fromisoformat(entry["until"]) > datetime.now(UTC)
    with pytest.raises(ConfigError, match="already"):
        Authority.init(tmp_path / "certs")
    with pytest.raises(ConfigError, match="named by"):
        authority.issue("../b")
    with pytest.raises(ConfigError, match="no certificate of 'c'"):
        authority.revoke("c")


@pytest.mark.parametrize("host", ["https://coordinator.example.org", "coordinator:8750", "höst", "", "a..b"])
def test_what_is_no_host_is_refused_before_there_is_an_authority(host, tmp_path):
    with pytest.raises(ConfigError, match=r"without https:// and without its port; given"):
        Authority.init(tmp_path / "certs", [host, "localhost"])
    Authority.init(tmp_path / "certs", ["coordinator", "*.example.org", "::1"])


def test_no_revocation_is_lost_to_a_certificate_that_is_issued_meanwhile(tmp_path, monkeypatch):
    authority = Authority.init(tmp_path / "certs")
    authority.issue("a")
    save, read = Authority._save, threading.Event()

    def late(self: Authority, issued: dict) -> None:
        read.set()
        time.sleep(0.2)
        save(self, issued)

    monkeypatch.setattr(Authority, "_save", late)
    with ThreadPoolExecutor() as pool:
        issuing = pool.submit(authority.issue, "b")
        read.wait(5)
        pool.submit(authority.revoke, "a").result()
        issuing.result()
    assert {entry["name"]: bool(entry["revoked"]) for entry in authority.issued().values()} == {"a": True, "b": False}
    with pytest.raises(ConfigError, match="holds no authority"):
        Authority(tmp_path / "nowhere").issue("a")
    assert not (tmp_path / "nowhere").exists()


def test_a_certificate_stays_in_force_where_no_new_one_can_be_issued(tmp_path):
    authority = Authority.init(tmp_path / "certs")
    authority.issue("a")
    (authority.folder / "ca.key").unlink()  # the authority is somewhere else
    with pytest.raises(ConfigError, match=r"has no ca\.key"):
        authority.issue("a")
    assert [entry["revoked"] for entry in authority.issued().values()] == [""]


def test_nothing_goes_in_the_clear_beyond_this_machine():
    with pytest.raises(ConfigError, match="in the clear"):
        Listener(None, "0.0.0.0:0", None)
    with pytest.raises(ConfigError, match="not encrypted"):
        Link("http://example.org:80", "a", None)
    with pytest.raises(ConfigError, match="asks who you are"):
        Link("https://example.org:80", "a", None)


def test_who_says_nothing_is_hung_up_on(desk, monkeypatch):
    import socket

    from fedloom.deploy import listening

    monkeypatch.setattr(listening, "FIRST_BYTES", 0.3)
    url = httpx.URL(desk.serving.url)
    with socket.create_connection((url.host, url.port)) as s:
        s.settimeout(5)
        s.sendall(b"GET /healthz HT")
        assert s.recv(10) == b""


def _said() -> dict:
    return {"sizes": [9], "fields": {"x": [[1, 8, 8], "float32"], "y": [[], "int64"]}, "classes": 4, "sha256": "0"}


# ---------------------------------------------------------------- what a site takes part in


def _offer(terms: Terms | None = None, **recipe) -> Offer:
    return Offer.of(Recipe(**{"method": "fedavg", "rounds": 5, **recipe}), terms or Terms(names=["a", "b", "c"]))


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Policy(methods=["scaffold"]), "not one this site runs"),
        (Policy(most_rounds=4), "5 rounds"),
        (Policy(least_clients=4), "a federation of 3"),
        (Policy(least_cohort=4), "cohorts of 3"),
        (Policy(privacy=True), "no differential privacy"),
    ],
)
def test_policies(policy, why):
    with pytest.raises(Refused, match=why):
        policy.check(_offer())


def test_the_cohort_of_a_policy_is_that_of_whichever_method_asks():
    for asks in ({"cohort": 2}, {"method": "lifl", "set": {"inner.cohort": 2}}):
        with pytest.raises(Refused, match="cohorts of 2 clients"):
            Policy(least_cohort=3).check(_offer(Terms(names=list("abcd")), **asks))
        Policy(least_cohort=2).check(_offer(Terms(names=list("abcd")), **asks))


@pytest.mark.parametrize(
    ("asks", "why"),
    [
        ({"set": {"cohort": 0.9}}, r"cohort = 0\.9 draws every client by chance"),
        ({"method": "lifl", "set": {"inner.cohort": 0.9}}, "by chance"),
        ({"method": "fedasync"}, "FedAsync takes replies up as they arrive"),
        ({"method": "fedbuff"}, "as they arrive"),
    ],
)
def test_what_may_come_to_a_single_client_is_no_cohort_of_two(asks, why):
    offer = _offer(Terms(names=list("abcd")), **asks)
    with pytest.raises(Refused, match=f"{why}.*2 clients a round at least"):
        Policy(least_cohort=2).check(offer)
    Policy(least_cohort=1).check(offer)


def test_policies_that_are_met():
    Policy(methods=["fedavg"], most_rounds=5, least_clients=3, least_cohort=3).check(_offer())
    Policy(privacy=True).check(_offer(channel=("dp:clip=1,noise=1.1",)))


@pytest.mark.parametrize("named", ["os:system", "subprocess : run", "fedloom.cli:main", "counting:Counting"])
def test_no_code_is_imported_by_a_name_from_outside(named):
    content = _offer().content()
    content["recipe"] = content["recipe"].replace('method = "fedavg"', f'method = "{named}"')
    with pytest.raises(Refused, match="code outside of Fedloom"):
        Policy().check(Offer.read(content))
    content = _offer().content()
    content["recipe"] += f'\n[set]\nhook = "a, {named}"\n' if "[set]" not in content["recipe"] else ""
    content["recipe"] = content["recipe"].replace("[set]", f'[set]\nhook = "a, {named}"')
    with pytest.raises(Refused, match="code outside of Fedloom"):
        Policy().check(Offer.read(content))


@pytest.mark.parametrize(
    "model", ["ours.nets:Net", "ours.nets:Net:width=8", "mlp+ours.nets:Net", "ours.py:Net", "fedloom.methods.py:Net"]
)
def test_a_network_from_outside_is_imported_only_of_listed_packages_and_never_by_its_file(model):
    content = _offer(model="cnn:width=0.5").content()
    Policy().check(Offer.read(content))
    content["recipe"] = content["recipe"].replace("cnn:width=0.5", model)
    with pytest.raises(Refused, match="code outside of Fedloom"):
        Policy().check(Offer.read(content))
    if ".py" not in model:
        Policy(modules=["ours"]).check(Offer.read(content))
    else:
        with pytest.raises(Refused, match="code outside of Fedloom"):
            Policy(modules=["ours"]).check(Offer.read(content))


def test_what_sites_cannot_do_is_refused_at_the_door():
    with pytest.raises(NotSupported, match="along a graph"):
        _offer(method="dfedavgm")
    with pytest.raises(NotSupported, match="for simulation"):
        _offer(world={"latency": 1.0})
    with pytest.raises(ConfigError, match="names nobody"):
        Terms(names=[])
    for name, odd in {"deadline": -1, "largest": math.inf, "piece": 1e-9}.items():
        with pytest.raises(ConfigError, match=name):
            Terms(names=["a"], **{name: odd})
    with pytest.raises(ConfigError, match="deadline"):
        Terms(names=["a"], deadline=math.inf)
    with pytest.raises(ConfigError, match=r"'a' is there twice; a site of two clients is \{ a = 2 \}"):
        Terms(names=["a", "b", "a"])


# ---------------------------------------------------------------- what a coordinator keeps


@pytest.fixture
def journal(tmp_path) -> Iterator[Journal]:
    with contextlib.closing(Journal(tmp_path / "journal.db")) as made:
        yield made


def _asked(id: str, round: int, payload: str) -> Written:
    return Written(id, f"exchange of {id}", "a", round, payload, {"id": id})


def test_bodies_go_with_the_last_round_that_names_them(journal):
    journal.open([_asked("old", 1, "first model"), _asked("new", 2, "model")])
    journal.open([_asked("older", 0, "model")])
    for id, body in {"older": "same", "old": "one", "new": "same"}.items():
        journal.reply(id, body, None, 0.0)
    for id, body in {"old": "told", "new": "told too"}.items():
        journal.answer(id, 0, body, f"answer {id}", 1, {"round": 1})
    journal.close_exchange("exchange of old", 1, {"replied": ["old"]})
    assert journal.outlived(0) == []
    assert journal.outlived(2) == ["first model", "one", "told"]
    assert journal.outlived(2) == []
    assert [id for id in ("older", "old", "new") if journal.job(id) is not None] == ["new"]
    assert set(journal.replies(["older", "old", "new"])) == {"new"}
    assert journal.answers("old") == []
    assert journal.answers("new") == ["told too"]
    assert journal.closing("exchange of old") == {"replied": ["old"]}
    assert journal.outlived(3) == ["model", "same", "told too"]


def test_what_outlives_its_round_is_kept_as_long_as_that_may_be_run_again_and_no_longer(journal, tmp_path):
    """Job 0 is answered in round 6, every other in its own."""
    blobs = Blobs(tmp_path / "blobs")
    coordinator = Coordinator(cast(Any, None), lambda: (0, None), Terms(names=["a"]), journal, blobs)
    road, kept = Sites(coordinator, 0.0), list[list[int]]()

    def under_way(*jobs: int) -> dict[str, Posted]:
        return {str(k): Posted(k, 0, "", Message(), (), {}, k) for k in jobs}

    for k in range(12):
        journal.open([_asked(str(k), k, blobs.put(b"payload %d" % k))])
        if k:
            journal.reply(str(k), blobs.put(b"reply %d" % k), None, 0.0)
            assert road.event(f"event {k}/0", under_way(*[0] * (k <= 6), k), math.inf, 0.0)["job"] == str(k)
        if k == 6:
            journal.reply("0", blobs.put(b"reply 0"), None, 0.0)
            assert road.event("event 6/1", under_way(0), math.inf, 0.0)["job"] == "0"
        kept.append([j for j in range(k + 1) if journal.job(str(j)) is not None])
        assert len(list(blobs.folder.iterdir())) == 2 * len(kept[-1]) - (k < 6)
    assert kept[9] == list(range(10))
    assert kept[10] == [4, 5, 6, 7, 8, 9, 10]
    assert kept[11] == [5, 6, 7, 8, 9, 10, 11]


def test_an_answer_and_the_state_it_came_from_stand_as_they_were_first(journal):
    assert journal.answer("j", 0, "first", "answer j/0", 4, {"round": 3}) == "first"
    assert journal.answer("j", 0, "second", "answer j/0", 5, {"round": 4}) == "first"
    assert journal.answered("j", 0) == "first"
    assert journal.answered("j", 1) is None
    assert journal.closings() == {"answer j/0": {"round": 3}}


def test_nothing_goes_that_something_names(journal):
    journal.open([_asked("j", 0, "payload")])
    journal.reply("j", "reply", None, 0.0)
    journal.answer("j", 0, "answer", "answer j/0", 0, {"round": 0})
    assert [journal.unnamed(body) for body in ("payload", "reply", "answer", "odd", None)] == [[], [], [], ["odd"], []]


def test_every_commit_is_synced_and_a_site_writes_over_its_secrets(journal, tmp_path):
    full = 2
    with contextlib.closing(Store(tmp_path / "a")) as store:
        for database in (journal, store):
            assert database.rows("PRAGMA synchronous") == [(full,)]
            assert database.rows("PRAGMA journal_mode") == [("wal",)]
        assert store.rows("PRAGMA secure_delete") == [(1,)]


# ---------------------------------------------------------------- what a site keeps


def test_memories_go_by_the_name_the_server_gives(tmp_path):
    store = Store(tmp_path)
    assert store.memory(0, "") == {}
    store.done("j1", 0, b"reply", {"n": 1}, {"eps": 0.5}, {})
    assert store.memory(0, "j1") == {"n": 1}  # it counted: the base now
    store.done("j2", 0, b"reply2", {"n": 2}, {"eps": 0.5}, {})
    assert store.memory(0, "j1") == {"n": 1}  # j2 did not count: gone
    with pytest.raises(MemoryLost, match=r"version j2.*has base j1"):
        store.memory(0, "j2")
    assert store.books() == {0: {"eps": 1.0}}  # what was spent was spent
    with pytest.raises(MemoryLost):
        Store(tmp_path / "restored from nowhere").memory(0, "j1")


def test_an_evaluation_beside_a_job_under_way_leaves_what_that_job_left(tmp_path):
    store = Store(tmp_path)
    store.done("j1", 0, b"reply", {"n": 1}, {}, {})
    assert store.memory(0, "", read=True) == {}
    assert store.memory(0, "j1") == {"n": 1}
    store.done("j2", 0, b"reply2", {"n": 2}, {}, {})
    assert store.memory(0, "j1", read=True) == {"n": 1}
    assert store.memory(0, "j2", read=True) == {"n": 2}
    assert store.memories() == {0: {"j1": {"n": 1}, "j2": {"n": 2}}}
    assert store.memory(0, "j2") == {"n": 2}


def test_the_same_job_gets_the_same_bytes(tmp_path):
    store = Store(tmp_path)
    body = store.done("j1", 0, b"reply", {"n": 1}, {}, {})
    store.close()
    again = Store(tmp_path)
    assert again.reply("j1") == body
    assert again.blobs.get(body) == b"reply"
    assert again.reply("j2") is None


def test_whoever_looks_into_a_site_s_folder_takes_nothing_from_it(tmp_path):
    """Its audit log is read while the site works: a body that is not named yet is about to be."""
    store = Store(tmp_path)
    store.decide("joined", "a plan")
    body = store.blobs.put(b"a reply")
    store.blobs.append(name_of(b"payload"), 0, b"pay", 7)
    Store(tmp_path).audit()
    store.done("j1", 0, b"a reply", None, {}, {})
    assert store.blobs.get(body) == b"a reply"
    assert store.blobs.received(name_of(b"payload")) == 3
    store.tidy()
    assert [path.name for path in store.blobs.folder.iterdir()] == [body]


def test_the_audit_log_tells_when_it_was_changed(tmp_path):
    store = Store(tmp_path)
    for k in range(4):
        store.done(f"j{k}", 0, b"reply", None, {}, {"plan": "p"})
    assert [e.what["job"] for e in store.audit()] == ["j0", "j1", "j2", "j3"]
    store.close()
    for damage in (
        "UPDATE audit SET entry = replace(entry, 'j1', 'jx') WHERE place = 1",
        "DELETE FROM audit WHERE place = 2",
    ):
        copy = tmp_path / name_of(damage.encode())[:8]
        copy.mkdir()
        (copy / "site.db").write_bytes((tmp_path / "site.db").read_bytes())
        with contextlib.closing(sqlite3.connect(copy / "site.db")) as c:
            c.execute(damage)
            c.commit()
        with pytest.raises(CheckpointError, match="was changed"):
            Store(copy).audit()


def test_blobs_that_rot_are_noticed(tmp_path):
    blobs = Blobs(tmp_path)
    name = blobs.put(b"content")
    blobs.path(name).write_bytes(b"c0ntent")
    with pytest.raises(MessageError, match="damaged"):
        blobs.get(name)
    with pytest.raises(MessageError, match="not the hash"):
        blobs.path("../journal.db")


def test_a_transfer_that_was_whole_before_a_kill_is_finished(tmp_path):
    blobs, body = Blobs(tmp_path), b"all of it"
    partial = tmp_path / f"{name_of(body)}.a.partial"
    partial.write_bytes(body)
    assert blobs.append(name_of(body), 0, body, len(body), "a") == len(body)
    assert blobs.get(name_of(body)) == body


def test_a_new_transfer_ends_no_other_site_s(tmp_path):
    blobs, body = Blobs(tmp_path), b"all of it"
    blobs.append(name_of(body), 0, body[:4], len(body), "north.org")
    blobs.append(name_of(b"another"), 0, b"ano", 7, "org")
    assert blobs.received(name_of(body), "north.org") == 4


def test_what_a_kill_left_of_a_payload_goes_and_transfers_go_on(tmp_path):
    made = Setting("fedavg", sites=("a",), tls=False).made()
    blobs = Blobs(tmp_path / "blobs")
    blobs.append(name_of(b"a reply"), 0, b"a re", 7, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blobs, "_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            blobs.put(b"a payload")
    assert len(list(blobs.folder.iterdir())) == 2
    Serving(made, tmp_path).close()
    assert [path.name for path in blobs.folder.iterdir()] == [f"{name_of(b'a reply')}.a.partial"]


def test_what_came_and_was_never_named_goes_when_the_coordinator_is_started_again(tmp_path):
    setting = Setting("fedavg", sites=("a",), tls=False)
    public = setting.samples[0]
    with contextlib.closing(Serving(setting.made(), tmp_path, public=public)) as serving:
        blobs, journal = serving.blobs, serving.journal
        payload, body, answer, late = map(blobs.put, (b"payload", b"body", b"answer", b"late"))
        journal.open([_asked("job", 0, payload)])
        journal.reply("job", body, None, 0.0)
        journal.answer("job", 0, answer, "answer job/0", 0, {"round": 0})
    Serving(setting.made(), tmp_path, public=public).close()
    assert {path.name for path in blobs.folder.iterdir()} == {serving.offer.public, payload, body, answer}
    assert serving.offer.public
    assert late not in blobs


def test_a_folder_is_one_federation_s(tmp_path):
    setting = Setting("fedavg", sites=("a",), tls=False)
    Serving(setting.made(), tmp_path).close()
    Serving(setting.made(), tmp_path).close()
    other = Setting("fedavg", sites=("a",), tls=False, rounds=9)
    with pytest.raises(ConfigError, match=r"another federation \(recipe: 'rounds = 3' here, 'rounds = 9' there\)"):
        Serving(other.made(), tmp_path)
    slower = Setting("fedavg", sites=("a",), tls=False, terms={"deadline": 9.0})
    with pytest.raises(ConfigError, match=r"\(terms\.deadline: None here, 9\.0 there\)"):
        Serving(slower.made(), tmp_path)


def test_a_replay_takes_the_samples_of_every_client_and_of_no_other(tmp_path):
    setting = Setting("fedavg", sites=("a", "b"), tls=False)
    with contextlib.closing(Serving(setting.made(), tmp_path)) as serving:
        with pytest.raises(CheckpointError, match="no run yet: not all of a, b have joined"):
            replay(tmp_path, setting.samples)
        for site in "ab":
            serving.journal.declare(site, declaration(holdings(setting.of(site), serving.offer, site)))
    for samples in (setting.samples[:1], [*setting.samples, setting.samples[0]]):
        with pytest.raises(ConfigError, match=rf"has 2 clients, and was given the samples of {len(samples)}\."):
            replay(tmp_path, samples)


def test_noise_is_not_keyed_by_the_seed_that_sites_know():
    from fedloom.channel import DP
    from fedloom.channel.stage import Exchange
    from fedloom.deploy.serving import Secret
    from fedloom.keyed import generator

    def total(secret: str) -> torch.Tensor:
        exchange = Exchange(4, 4.0, 4.0, 100, None, lambda purpose: generator(0, purpose))
        channel = Secret(DP(clip=1.0, noise=1.0, delta=1e-3), secret)
        return channel.settle(Message(delta=torch.zeros(5)), exchange).delta

    assert torch.equal(total("one"), total("one"))
    assert not torch.equal(total("one"), total("two"))


def test_a_folder_is_worked_in_by_one_process(desk, tmp_path):
    made = Setting("fedavg", sites=("a", "b"), tls=False).made()
    with pytest.raises(ConfigError, match=r"server is in use: .*Stop that one.*another folder, --out"):
        Serving(made, tmp_path / "server")
    with alone(tmp_path / "a"), pytest.raises(ConfigError, match="a is in use"):
        join(desk.serving.url, desk.setting.of("a"), "a", out=tmp_path / "a", approve=lambda _: False)
    with pytest.raises(Refused, match="not approved"):
        join(desk.serving.url, desk.setting.of("a"), "a", out=tmp_path / "a", approve=lambda _: False)


def test_what_could_not_begin_lets_go_of_its_folder(tmp_path):
    made = Setting("fedavg", sites=("a",), tls=False).made()
    with pytest.raises(ConfigError) as failed:
        Serving(made, tmp_path, listen="nowhere")
    Serving(made, tmp_path).close()
    assert "in use" not in str(failed.value)
