"""Stages as text, the channel as a whole, the byte ledger."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedloom.channel import (
    DP,
    STAGES,
    Channel,
    Clip,
    Exchange,
    GaussianNoise,
    Ledger,
    Quantize,
    RandK,
    Sender,
    Sign,
    Stage,
    TopK,
    parse_stage,
)  # fmt: skip
from fedloom.errors import ConfigError, NotSupported
from fedloom.keyed import generator
from fedloom.message import Message
from fedloom.written import dumps, loads

WRITTEN: dict[str, Stage] = {
    "topk:0.05": TopK(0.05),
    "topk:0.1,feedback=False": TopK(0.1, feedback=False),
    "topk:0.1,fields=delta+control": TopK(0.1, fields=("delta", "control")),
    "randk:0.2,feedback=True": RandK(0.2, feedback=True),
    "quantize:8": Quantize(8),
    "quantize:4,rounding=nearest,bucket=512": Quantize(4, "nearest", 512),
    "sign": Sign(),
    "sign:feedback=False": Sign(feedback=False),
    "clip:1.0": Clip(1.0),
    "noise:1.1": GaussianNoise(1.1),
    "noise:1.1,delta=1e-06,public=steps+n": GaussianNoise(1.1, 1e-6, ("steps", "n")),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_text_round_trip(text: str) -> None:
    assert parse_stage(text) == (WRITTEN[text],)
    assert str(WRITTEN[text]) == text


def test_other_spellings() -> None:
    assert parse_stage(" TopK:share=0.2 , feedback=no ") == (TopK(0.2, feedback=False),)
    assert parse_stage("quantize:4,nearest,none") == (Quantize(4, "nearest", None),)
    assert parse_stage("topk") == (TopK(),)
    assert parse_stage("dp:clip=1,noise=1.1") == DP(1.0, 1.1) == (Clip(1.0), GaussianNoise(1.1))
    assert parse_stage("dp:0.5,2,1e-6") == DP(0.5, 2.0, 1e-6)


def test_every_stage_has_a_name() -> None:
    assert {name for name, s in STAGES.items() if isinstance(s, type) and s.name != name} == set()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topkk:0.1", "'topk'"),
        ("", "Known"),
        ("topk:shar=0.1", "'share'"),
        ("topk:abc", "a number"),
        ("quantize:2.5", "a whole number"),
        ("topk:0.1,feedback=perhaps", "true or false"),
        ("topk:2", r"in \(0, 1\]"),
        ("quantize:8,rounding=neerest", "nearest"),
        ("clip:1,2,3", "clip takes norm"),
        ("topk:0.1,share=0.2", "twice"),
        ("dp:clip=1", "lacks noise"),
    ],
)
def test_texts_that_mean_nothing(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_stage(text)


def test_channels_from_anything_reasonable() -> None:
    four = Channel.of([TopK(0.1), "quantize:8", DP(1.0, 1.1)])
    assert four == Channel((TopK(0.1), Quantize(8), Clip(1.0), GaussianNoise(1.1)))
    assert str(four) == "topk:0.1 | quantize:8 | clip:1.0 | noise:1.1"
    assert Channel.of(four) is four
    assert not Channel.of(None)
    assert not Channel.of([])
    assert Channel.of("clip:1") == Channel.of(Clip(1.0)) == Channel((Clip(1.0),))
    assert four.sums_only
    assert four.uniform
    for odd in ([3], {"clip": 2.0}):
        with pytest.raises(ConfigError, match="made of stages"):
            Channel.of(odd)


@dataclass(frozen=True)
class Adds(Stage):
    """Leaves its mark, takes it off again, and counts."""

    mark: float = 1.0

    def encode(self, message: Message, sender: Sender) -> Message:
        sender.memory["seen"] = sender.memory.get("seen", 0) + 1
        sender.notes[f"mark {self.mark}"] = self.mark
        return message.replace(x=message.x * 10 + self.mark)

    def decode(self, message: Message) -> Message:
        return message.replace(x=(message.x - self.mark) / 10)

    def settle(self, total: Message, exchange: Exchange) -> Message:
        exchange.count += 1
        return total.replace(x=total.x * 10 + self.mark)

    def report(self, ledger: Any) -> dict[str, Any]:
        return {"mark": self.mark}


def test_order_memory_and_reports() -> None:
    channel, memory = Channel.of([Adds(1), Adds(2)]), {}
    sender = Sender(0, memory, lambda p: generator(p))
    sent = channel.encode(Message(x=0.0), sender)
    assert sent.x == 12
    assert channel.decode(sent).x == 0
    assert memory == {"channel.0.Adds.seen": 1, "channel.1.Adds.seen": 1}
    assert sender.notes == {"mark 1": 1, "mark 2": 2}
    exchange = Exchange(3, 3.0, 3.0, 10, None, lambda p: generator(p))
    assert channel.settle(Message(x=0.0), exchange).x == 21  # backwards
    assert exchange.count == 5
    assert exchange.stages == channel.stages
    assert channel.report({}) == {"Adds:1": {"mark": 1}, "Adds:2": {"mark": 2}}


def test_an_observer_changes_nothing() -> None:
    message = Message(x=torch.ones(3))
    channel = Channel.of(Stage())
    sender = Sender(0, {}, lambda p: generator(p))
    assert channel.decode(channel.encode(message, sender)) is message
    assert not channel.sums_only


def test_methods_that_read_replies_need_a_channel_without_sums() -> None:
    card = SimpleNamespace(needs=frozenset({"replies"}), title="FedDF")
    with pytest.raises(NotSupported, match="FedDF reads single replies"):
        Channel.of(DP(1.0, 1.0)).check(SimpleNamespace(method=SimpleNamespace(card=card), models={}))  # type: ignore[arg-type]


def test_ledger() -> None:
    ledger = Ledger(up=10, down=20)
    before = ledger.copy()
    ledger.up += 5
    ledger.peers += 1
    assert ledger.since(before) == Ledger(5, 0, 1)
    assert ledger.total == 36
    assert loads(dumps(ledger)) == ledger
    assert before == Ledger(10, 20, 0)
