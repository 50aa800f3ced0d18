"""Whatever is wrong in what a site sends, it is refused with a reason, it is counted, and the journal is as it was."""

# ruff: noqa: E501  (a line a case)

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("starlette")

import httpx
from desk import Desk
from sites_http import Summed, summed

from fedloom.client import Sending
from fedloom.deploy.addresses import REASONS
from fedloom.deploy.blobs import Blobs, name_of
from fedloom.deploy.coordinator import Coordinator
from fedloom.deploy.link import Ended, Link, Turned
from fedloom.deploy.wire import Reply
from fedloom.engines.base import Job, Outcome
from fedloom.errors import MessageError, NotSupported
from fedloom.message import At, Message, Once
from fedloom.written import dumps

GOOD = Reply(message=Message(delta=torch.zeros(278)), work=[[1.0, 0.0, 0.0]])
BODY = GOOD.dumps()


class Known(Desk):
    """A coordinator that has handed a job to each of two sites."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, largest=0.01, piece=0.004)
        links = dict(zip("ab", self.joined()))
        self.jobs = {name: next(filter(None, iter(link.next_job, None))) for name, link in links.items()}
        self.plan = links["a"].plan
        self.links = links
        self.raw = httpx.Client(base_url=self.serving.url, trust_env=False)

    def ask(self, method: str, where: str, body: bytes = b"", site: str = "a", plan: str = "", **headers: str) -> Any:
        auth = None if headers.pop("bare", "") else Summed(site, plan or self.plan)
        return self.raw.request(method, where, content=body, auth=auth, headers=headers)

    def put(self, body: bytes, **more: Any) -> Any:
        return self.ask("PUT", f"/v1/blobs/{name_of(body)}?offset=0&size={len(body)}", body, **more)

    def post(self, body: bytes, job: str, **more: Any) -> Any:
        said = json.dumps({"job": job, "body": name_of(body)}).encode()
        return self.ask("POST", "/v1/replies", said, **more)

    def journal(self) -> dict[str, list[Any]]:
        """All that is decided."""
        with sqlite3.connect(f"file:{self.folder}/server/journal.db?mode=ro", uri=True) as c:
            tables = [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: c.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in tables}

    def refused(self) -> dict[str, int]:
        return self.serving.service.standing()["refused_requests"]

    def close(self) -> None:
        self.raw.close()
        super().close()


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Iterator[Known]:
    made = Known(tmp_path_factory.mktemp("desk"))
    yield made
    made.close()


def declared(desk: Known, **changed: Any) -> bytes:
    return json.dumps({**desk.declare("a"), **changed}).encode()


Try = Callable[[Known], httpx.Response]
OTHER = b"bytes that nobody announced"
LARGE = 20_000  # of the 10,000 bytes the plan allows; a piece is 4,000

REQUESTS: dict[str, tuple[int, str, Try]] = {
    # who speaks, by which plan, and whether it came as it was sent
    "a name that is none": (403, "not a site", lambda d: d.ask("GET", "/v1/offer", site="mallory")),
    "no name": (403, "not a site", lambda d: d.ask("GET", "/v1/jobs", site="")),
    "no sums": (400, "damaged", lambda d: d.ask("GET", "/v1/jobs", bare="yes", **{"fedloom-site": "a"})),
    "another's name under the same sums": (
        400,
        "damaged",
        lambda d: d.raw.get("/v1/jobs", headers={**summed("GET", b"/v1/jobs", "a", d.plan, b""), "fedloom-site": "b"}),
    ),
    "another address under the same sums": (
        400,
        "damaged",
        lambda d: d.raw.get("/v1/plan", headers=summed("GET", b"/v1/jobs", "a", d.plan, b"")),
    ),
    "no such address, under other sums": (
        400,
        "damaged",
        lambda d: d.raw.get("/v1/jobz", headers=summed("GET", b"/v1/jobs", "a", d.plan, b"")),
    ),
    "a damaged body": (
        400,
        "damaged",
        lambda d: d.raw.post("/v1/replies", content=b"{}", headers=summed("POST", b"/v1/replies", "a", d.plan, b"[]")),
    ),
    "no such address": (404, "addresses are", lambda d: d.ask("GET", "/v1/job")),
    "no such method": (405, "addresses are", lambda d: d.ask("DELETE", "/v1/jobs")),
    **{
        f"another plan at {where}": (412, "goes by the plan", lambda d, m=m, w=where: d.ask(m, w, plan="0" * 32))
        for m, where in (
            ("GET", "/v1/jobs"),
            ("GET", f"/v1/blobs/{'0' * 64}"),
            ("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size=1"),
            ("POST", "/v1/replies"),
            ("POST", f"/v1/questions?job={'0' * 32}&number=0"),
            ("POST", "/v1/bye"),
        )
    },
    # numbers and names in addresses
    **{
        f"wait={text}": (422, "wait", lambda d, text=text: d.ask("GET", f"/v1/jobs?wait={text}"))
        for text in ("nan", "inf", "-1", "1e400", "soon", "", "1&wait=2", "0x10", "1_0", "%D9%A1")
    },
    **{
        f"offset={text}": (422, "offset", lambda d, t=text: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset={t}&size=9", b"x"))
        for text in ("nan", "-1", "1.5", "1e3", str(1 << 51), "", "0&offset=1")
    },
    "no size": (422, "size", lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0", b"x")),
    "size=0": (422, "size", lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size=0")),
    "a name that is no hash": (422, "hash", lambda d: d.ask("PUT", "/v1/blobs/journal.db?offset=0&size=1", b"x")),
    "a name in another folder": (404, "addresses", lambda d: d.ask("GET", "/v1/blobs/..%2f..%2fjournal.db")),
    "a hash in capitals": (422, "hash", lambda d: d.ask("GET", f"/v1/blobs/{'A' * 64}")),
    "bytes that are not for it": (404, "no such bytes", lambda d: d.ask("GET", f"/v1/blobs/{'0' * 64}")),
    # what a site declares
    **{
        f"declares {changed}": (422, next(iter(changed)), lambda d, c=changed: d.ask("POST", "/v1/hello", declared(d, **c)))
        for changed in (
            {"sizes": [1, 2]},
            {"sizes": []},
            {"sizes": [-1]},
            {"sizes": [1.5]},
            {"sizes": [True]},
            {"sizes": [float("nan")]},
            {"sizes": "18"},
            {"fields": {}},
            {"fields": {"x": [[3], "complex64"]}},
            {"fields": {"x": [[-3], "float32"]}},
            {"fields": {"x": [[1] * 9, "float32"]}},
            {"fields": [["x", 3]]},
            {"classes": None},
            {"classes": float("inf")},
            {"classes": 1 << 39},  # the outputs of everybody's network
            {"sha256": 5},
            {"sha256": "0" * 200},
            {"more": 1},
        )
    },
    "other data than before": (409, "declared other data", lambda d: d.ask("POST", "/v1/hello", declared(d, sizes=[17]))),
    "data unlike the others'": (
        409,
        "unlike those of",
        lambda d: d.ask("POST", "/v1/hello", declared(d, fields={"x": [[3], "float32"], "y": [[], "int64"]})),
    ),
    **{
        f"says {body[:12]!r}": (422, "body", lambda d, b=body: d.ask("POST", "/v1/hello", b))
        for body in (b"", b"{", b"\xff\xfe", b"null", b"[]", b"[" * 5000, b'"text"')
    },
    "a hello that is too long": (413, "more than", lambda d: d.ask("POST", "/v1/hello", declared(d) + b" " * (1 << 20))),
    # pieces
    "larger than the plan allows": (
        413,
        "the plan allows",
        lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size={LARGE}", b"x"),
    ),
    "a piece that is too large": (
        413,
        "more than",
        lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size=9000", bytes(5000)),
    ),
    "more than it said": (413, "more than", lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size=5", b"123456")),
    "other bytes than it said": (
        422,
        "do not have the hash",
        lambda d: d.ask("PUT", f"/v1/blobs/{'0' * 64}?offset=0&size={len(OTHER)}", OTHER),
    ),
    # replies and questions
    **{
        f"a reply {said}": (422, next(iter(said), "body"), lambda d, s=said: d.ask("POST", "/v1/replies", json.dumps(s).encode()))
        for said in (
            {"job": "../x", "body": "0" * 64},
            {"body": 5, "job": "0" * 32},
            {"body": "journal.db", "job": "0" * 32},
            {"more": 1, "job": "0" * 32, "body": "0" * 64},
            {"job": None, "body": "0" * 64},
        )
    },
    "a reply without its bytes": (409, "not here yet", lambda d: d.post(OTHER, d.jobs["a"]["id"])),
    "no such job": (422, "no job", lambda d: (d.put(BODY), d.post(BODY, "0" * 32))[1]),
    "another site's job": (422, "no job", lambda d: (d.put(BODY), d.post(BODY, d.jobs["b"]["id"]))[1]),
    "an upload that another site captured": (
        422,
        "no job",
        lambda d: (d.put(BODY), d.post(BODY, d.jobs["a"]["id"], site="b"))[1],
    ),
    **{
        f"asks {asked}": (422, "question", lambda d, a=asked: d.ask(
            "POST", f"/v1/questions?job={d.jobs['a']['id']}&number=0", dumps(a)
        ))
        for asked in (
            {"message": {}},
            {"program": "round", "message": {}},
            {"program": "__class__.__init__", "message": {}},
            {"program": "local", "message": {}},
            {"program": "solver.lr", "message": Message()},
            [1, 2],
        )
    },
    "asks for another's job": (
        422,
        "no job",
        lambda d: d.ask("POST", f"/v1/questions?job={d.jobs['b']['id']}&number=0", dumps({})),
    ),
    "asks number nan": (422, "number", lambda d: d.ask("POST", f"/v1/questions?job={'0' * 32}&number=nan")),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_no_bad_request_lands(what, known):
    status, why, tried = REQUESTS[what]
    journal, before = known.journal(), known.refused()
    answer = tried(known)
    assert (answer.status_code, known.journal() == journal) == (status, True), answer.text
    assert why in answer.json()["why"]
    reason = REASONS[status]
    assert known.refused().get(reason, 0) > before.get(reason, 0)
    figures = known.raw.get("/metrics").text
    assert f'fedloom_requests_refused_by_reason_total{{reason="{reason}"}} {known.refused()[reason]}' in figures


def packed(**changed: Any) -> Message:
    """A message with a quantised tensor, one field of which is not what it should be."""
    from fedloom.channel.compression.packed import Quantized

    fields = {"codes": torch.zeros(4, dtype=torch.uint8), "scales": torch.ones(1), "bits": 8, "shape": (4,)}
    return Message(delta=Quantized(**{**fields, **changed}))


REPLIES: dict[str, tuple[str, str, Reply | bytes]] = {
    "nan": ("not finite", "NaN", Reply(message=Message(delta=torch.full((3,), float("nan"))))),
    "infinity": ("not finite", "NaN", Reply(message=Message(delta=torch.full((3,), float("inf"))))),
    "nan as a number": ("not finite", "NaN", Reply(message=Message(loss=float("nan")))),
    "nan in a list": ("not finite", "NaN", Reply(message=Message(parts=[torch.zeros(2), torch.full((1,), float("nan"))]))),
    "nan in a packed tensor": ("not finite", "NaN", Reply(message=packed(scales=torch.full((1,), float("nan"))))),
    "a tensor of a terabyte": ("too large", "more than", Reply(message=Message(x=At(torch.tensor([0]), torch.ones(1), 10**12)))),
    "the same, sent once": (
        "too large",
        "more than",
        Reply(message=Message(x=Once(At(torch.tensor([0]), torch.ones(1), 10**12)))),
    ),
    "a packed tensor of a terabyte": ("too large", "more than", Reply(message=packed(shape=(10**6, 10**6)))),
    "too few codes": ("malformed", "are not 400 codes of 8 bits", Reply(message=packed(shape=(400,)))),
    "codes of no bits": ("malformed", "codes of 0 bits", Reply(message=packed(bits=0))),
    "codes that are text": ("malformed", "reply", Reply(message=packed(codes="text"))),
    "a shape of truth values": ("malformed", "shape", Reply(message=packed(shape=(True,)))),
    "a negative shape": ("malformed", "shape", Reply(message=packed(shape=(-4,)))),
    "negative steps": ("malformed", "negative", Reply(work=[[-1.0, 0.0, 0.0]])),
    "infinite work": ("malformed", "infinite", Reply(work=[[float("inf"), 0.0, 0.0]])),
    "work that is text": ("malformed", "wrong type", Reply(work="work")),  # type: ignore[arg-type]
    "privacy given back": ("malformed", "negative", Reply(booked={"eps": -1.0})),
    "asked of half a byte": ("malformed", "wrong type", Reply(asked=[0.5, 0])),  # type: ignore[list-item]
    "more steps than there are": ("malformed", "wrong type", Reply(work=[[1e200, 0.0, 0.0]])),
    "more bytes asked than there are": ("malformed", "wrong type", Reply(asked=[10**300, 0])),
    "a book's sum that is infinite": ("malformed", "wrong type", Reply(booked={"eps": 1e308})),
    "a book by numbers": ("malformed", "wrong type", Reply(booked={1: 1.0})),  # type: ignore[dict-item]
    "a book of a thousand entries": ("malformed", "too much", Reply(booked={str(k): 1.0 for k in range(1000)})),
    "a long story": ("malformed", "too much", Reply(excluded="why " * 2000)),
    "a number that no float holds": ("not finite", "'n'", Reply(message=Message(delta=torch.zeros(280), n=10**400))),
    "jobs for others": ("malformed", "fields", dumps({**GOOD.__dict__, "outbox": [{"id": 1, "program": "local"}]})),
    "other fields": ("malformed", "fields", dumps({"message": None})),
    "no reply": ("malformed", "fields", dumps([1, 2])),
    "a message that is a list": ("malformed", "wrong type", Reply(message=[1])),  # type: ignore[arg-type]
    "a record nobody knows": ("malformed", "unknown record", BODY.replace(b'\\"message\\"', b'\\"massage\\"')),
    "truncated": ("malformed", "not a Fedloom message", BODY[:-1]),
    "a tree of JSON larger than the plan allows": ("too large", "bytes of JSON", Reply(message=Message(x=[[]] * 30_000))),
    "a head that promises too much": ("malformed", "not a Fedloom message", (1 << 40).to_bytes(8, "little") + BODY[8:]),
    "bytes": ("malformed", "not a Fedloom message", b"not safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", REPLIES)
def test_no_bad_reply_counts(what, tmp_path):
    """The site is told why, the refusal is counted by its kind, and the closing says it did not count."""
    kind, why, reply = REPLIES[what]
    desk = Desk(tmp_path, largest=1.0)
    try:
        a, b = desk.joined()
        job, other = (next(filter(None, iter(link.next_job, None))) for link in (a, b))
        blobs = Blobs(tmp_path / "out")
        body = blobs.put(reply if isinstance(reply, bytes) else reply.dumps())
        answer = a.reply(job["id"], body, blobs, 1000)
        assert answer["taken"] == "refused"
        assert why in answer["why"]
        standing = desk.serving.service.standing()
        assert standing["refused_replies"] == {kind: 1}
        assert standing["sites"]["a"]["refused"] == 1
        b.reply(other["id"], blobs.put(BODY), blobs, 1000)
        while not (closings := desk.serving.journal.closings()):
            pass
        (closing,) = list(closings.values())[:1]
        assert closing["refused"] == {job["id"]: answer["why"]}
    finally:
        desk.close()


def test_a_site_says_no_more_than_is_taken_from_it():
    job = Job(0, 0, "local", Message(), (), {}, 0, 0.0)
    for reply in (Reply.without("why " * 10**5), Reply.of(Outcome(job, excluded="why " * 10**5), None)):
        assert Reply.loads(reply.dumps(), 10**4).excluded.startswith("why why")
    sending = Outcome(job, outbox=[Sending(1, print, None, {})])
    with pytest.raises(NotSupported, match="sends its peers a job"):
        Reply.of(sending, None)


COUNTED = {"n": 2.0, "hits": 1.0, "loss": 1.0}
EVALUATIONS: dict[str, Message] = {
    "nothing": Message(),
    "no sums": Message(m0=1.0),
    "too few sums": Message(m0={"n": 2.0}),
    "text": Message(m0={**COUNTED, "loss": "low"}),
    "another sum that is text": Message(m0={**COUNTED, "more": "text"}),
    "what would overflow once it is added up": Message(m0={**COUNTED, "loss": 1e308}),
}


@pytest.mark.parametrize("what", EVALUATIONS)
def test_no_evaluation_counts_of_which_no_figure_can_be_made(what, known):
    plan = known.serving.service.coordinator.plan
    with pytest.raises(MessageError):
        Reply(message=EVALUATIONS[what]).opened(plan, "test")
    assert Reply(message=Message(m0=COUNTED)).opened(plan, "test") == Message(m0=COUNTED)


def test_an_evaluation_unlike_most_others_is_left_out(tmp_path):
    """A site that is the first to be added up counts a thing more; the others' figures stand."""

    def answer(link: Link, judged: Message) -> None:
        blobs = Blobs(tmp_path / link.site)
        with contextlib.suppress(Ended):
            while True:
                if (job := link.next_job()) is not None:
                    message = judged if job["judge"] else Message(delta=torch.zeros(280))
                    link.reply(job["id"], blobs.put(*Reply(message=message).pieces()), blobs, 1000)
        link.bye()

    with contextlib.closing(Desk(tmp_path, names={"a": 1, "b": 2})) as desk, ThreadPoolExecutor() as pool:
        a, b = desk.joined()
        for done in [
            pool.submit(answer, a, Message(m0={**COUNTED, "more": 1.0})),
            pool.submit(answer, b, Message(m0=COUNTED)),
        ]:
            done.result(20)
        desk.thread.join(10)
        figures = desk.run[0].rows[-1]["global"]
        assert (figures["accuracy"], figures["loss"], set(figures["clients"])) == (0.5, 0.5, {"1", "2"})


# ---------------------------------------------------------------- what was found by chance, told on purpose


def test_a_body_is_not_lost_between_its_arrival_and_the_journal(tmp_path, monkeypatch):
    """Two sites send the same bytes; one goes on to others just when the other's reply is looked at."""
    desk, meanwhile = Desk(tmp_path), []
    try:
        a, b = desk.joined()
        job, _ = (next(filter(None, iter(link.next_job, None))) for link in (a, b))
        blobs = Blobs(tmp_path / "out")
        body = blobs.put(BODY)
        assert b._json("PUT", f"/v1/blobs/{body}?offset=0&size={len(BODY)}", BODY)["received"] == len(BODY)
        honest = Coordinator._refusal

        def looked_at(self: Coordinator, *given: Any) -> Any:
            found = honest(self, *given)
            if not meanwhile:
                meanwhile.append(1)
                b._json("PUT", f"/v1/blobs/{name_of(OTHER)}?offset=0&size={len(OTHER)}", OTHER)
            return found

        monkeypatch.setattr(Coordinator, "_refusal", looked_at)
        assert a.reply(job["id"], body, blobs, 10_000) == {"taken": "yes"}
        assert meanwhile
        assert desk.serving.blobs.get(body) == BODY
    finally:
        desk.close()


def test_a_site_cannot_have_bytes_dropped_that_are_not_its_own(tmp_path):
    desk = Desk(tmp_path)
    try:
        a, _ = desk.joined()
        next(filter(None, iter(a.next_job, None)))
        public = desk.serving.blobs.put(b"what the coordinator holds for all")
        assert a._json("PUT", f"/v1/blobs/{public}?offset=0&size=34", b"x")["received"] == 34
        a._json("PUT", f"/v1/blobs/{name_of(OTHER)}?offset=0&size={len(OTHER)}", OTHER)
        assert public in desk.serving.blobs
    finally:
        desk.close()


def test_what_is_not_what_it_was_announced_as_is_sent_again(tmp_path):
    """Somebody began an upload in this site's name: the site begins anew, and is not turned away."""
    desk = Desk(tmp_path)
    try:
        a, _ = desk.joined()
        job = next(filter(None, iter(a.next_job, None)))
        blobs = Blobs(tmp_path / "out")
        body = blobs.put(BODY)
        a._json("PUT", f"/v1/blobs/{body}?offset=0&size={len(BODY)}", b"0" * 500)
        assert a.reply(job["id"], body, blobs, 10_000) == {"taken": "yes"}
    finally:
        desk.close()


def test_a_run_that_diverged_is_told_of(tmp_path):
    desk = Desk(tmp_path)
    try:
        desk.serving.service.progress = {"round": 1, "figures": {"global.loss": float("nan")}, "bytes": {}}
        assert desk.link("a").standing()["figures"] == {"global.loss": None}
    finally:
        desk.close()


def test_one_slow_site_is_in_nobodys_way(tmp_path, monkeypatch):
    """Its piece waits; those of others come through; and its own next piece ends the one before."""
    desk = Desk(tmp_path)
    try:
        links = desk.joined()
        for link in links:
            next(filter(None, iter(link.next_job, None)))
        a, b = links
        url = httpx.URL(desk.serving.url)

        def dripping() -> Iterator[bytes]:
            yield BODY[:10]
            release.wait(10)
            yield BODY[10:]

        release, ended = threading.Event(), []
        target = f"/v1/blobs/{name_of(BODY)}?offset=0&size={len(BODY)}"

        def slow() -> None:
            with httpx.Client(base_url=url, trust_env=False) as raw:
                ended.append(
                    raw.put(target, content=dripping(), headers=summed("PUT", target.encode(), "a", a.plan, BODY))
                )

        thread = threading.Thread(target=slow)
        thread.start()
        while "a" not in desk.serving.service.uploads._uploading:
            pass
        assert b._json("PUT", f"/v1/blobs/{name_of(OTHER)}?offset=0&size={len(OTHER)}", OTHER)["received"] == len(OTHER)
        assert a._json("PUT", target, BODY)["received"] == len(BODY)
        release.set()
        thread.join(10)
        assert ended[0].status_code == 408
        assert "begun anew" in ended[0].json()["why"]
    finally:
        desk.close()


def test_a_revoked_or_foreign_word_is_no_acknowledgement(known):
    """What another server says in a coordinator's place is taken for damage, never for an answer."""
    link = known.link("a")
    link.plan, link.patience = known.plan, 0.0
    with pytest.raises(Turned) as refused:
        link._json("GET", "/v1/nowhere")
    assert refused.value.status == 404
