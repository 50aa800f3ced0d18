"""Text read from the folder that FEDLOOM_DATA names, as bytes: `x` int64 (n, length) is read, `y` is the
byte that follows each, `mask` tells which of them count (the response of an instruction). The raw
records stay available.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError

from .convert import answered, text_rows
from .fields import Data
from .partitions import IID, Dirichlet, Natural
from .registry import Folder, Source, at_least, choice, integers, source

BYTES = 256
Records = Sequence[Mapping[str, Any]]


def windows(texts: Sequence[bytes], length: int) -> tuple[Data, Tensor]:
    """Every text cut into windows of `length` bytes to read, with the byte that follows each; and the text of each
    window int64 `(n,)`. What is left at the end of a text is dropped.

    Raises:
        ConfigError: no text is longer than `length`.
    """
    at_least(2, length=length)
    rows, owner = [], []
    for i, text in enumerate(texts):
        data = np.frombuffer(text, np.uint8)
        starts = np.arange(0, len(data) - length, length)
        rows.append(data[starts[:, None] + np.arange(length + 1)])
        owner.append(np.full(len(starts), i))
    whole = integers(np.concatenate(rows))
    if not len(whole):
        raise ConfigError(f"no text is longer than length={length} bytes")
    x, y = whole[:, :-1].contiguous(), whole[:, 1:].contiguous()
    return Data(x=x, y=y, mask=torch.ones_like(y, dtype=torch.bool)), integers(np.concatenate(owner))


@source("shakespeare", "language", "1.1 million characters of plays, by speaker; next character", "shakespeare")
def shakespeare(folder: Folder, seed: int, *, length: int = 80, least: int = 2000) -> Source:
    """Windows of each speaker's speeches; speakers with fewer than `least` characters are left out (2000: 99 stay)."""
    text = folder.bytes("tinyshakespeare.txt.gz")
    turns = folder.npz("turns.npz")
    speeches: dict[str, list[bytes]] = {}
    for role, start, stop in zip(turns["role"], turns["start"], turns["end"]):
        speeches.setdefault(str(turns["roles"][role]), []).append(text[start:stop].strip())
    spoken = {who: b"\n".join(said) for who, said in speeches.items()}
    spoken = {who: said for who, said in sorted(spoken.items()) if len(said) >= max(least, length + 1)}
    if not spoken:
        raise ConfigError(f"no speaker has {least} characters")
    train, groups = windows(list(spoken.values()), length)
    return Source(
        name="shakespeare",
        train=train,
        task="language",
        classes=BYTES,
        groups=groups,
        group_names=tuple(spoken),
        partition=Natural(),
        about=f"windows of {length} bytes by speaker",
        origin="karpathy/char-rnn",
        licence="none stated for the text",
    )


@source("text-lm", "language", "30 encyclopedia articles, or 300 web texts; next byte", "text_lm")
def text_lm(folder: Folder, seed: int, *, kind: str = "wiki", length: int = 128) -> Source:
    """`kind`: "wiki" (an article is a natural client) or "c4"."""
    choice("text-lm kind", kind, ("wiki", "c4"))
    if kind == "wiki":
        texts = [line for line in folder.bytes("wiki.txt.gz").splitlines() if line.strip()]
    else:
        texts = [record["text"].encode() for record in folder.lines("c4_300.jsonl.gz")]
    train, owner = windows(texts, length)
    held, groups = owner.unique(return_inverse=True)
    return Source(
        name="text-lm",
        train=train,
        task="language",
        classes=BYTES,
        groups=groups,
        group_names=tuple(f"text {i}" for i in held.tolist()),
        partition=Natural(),
        about=f"windows of {length} bytes by text",
        origin="hiyouga/LLaMA-Factory",
        licence="Apache-2.0 for the repository",
    )


def _instructions(
    name: str,
    train: Records,
    test: Records,
    pair: Callable[[Mapping[str, Any]], tuple[str, str]],
    length: int,
    origin: str,
    licence: str,
) -> Source:
    at_least(8, length=length)
    return Source(
        name=name,
        train=answered([pair(r) for r in train], length),
        test=answered([pair(r) for r in test], length) if test else None,
        task="language",
        classes=BYTES,
        partition=IID(),
        records=tuple(train),
        test_records=tuple(test),
        about=f"prompt and response in {length} bytes; the mask marks the response",
        origin=origin,
        licence=licence,
    )


def _alpaca(record: Mapping[str, Any]) -> tuple[str, str]:
    given = f"\n{record['input']}" if record.get("input") else ""
    return f"Instruction: {record['instruction']}{given}\nResponse: ", record["output"]


@source("gsm8k", "language", "7,473 + 1,319 school maths problems with worked answers", "gsm8k")
def gsm8k(folder: Folder, seed: int, *, length: int = 512) -> Source:
    train, test = (folder.lines(f"{part}.jsonl.gz") for part in ("train", "test"))
    pair = lambda r: (f"Question: {r['question']}\nAnswer: ", r["answer"])  # noqa: E731
    return _instructions("gsm8k", train, test, pair, length, "openai/grade-school-math", "MIT")


@source("code-alpaca", "language", "2,017 or 4,535 programming instructions", "code_alpaca")
def code_alpaca(folder: Folder, seed: int, *, version: str = "2k", length: int = 512) -> Source:
    """`version`: "2k", or "4k" of a later edition."""
    name = {"2k": "code_alpaca_2k", "4k": "code_alpaca_new_4k"}[choice("version", version, ("2k", "4k"))]
    records = folder.lines(f"{name}.jsonl.gz")
    return _instructions("code-alpaca", records, (), _alpaca, length, "sahil280114/codealpaca", "CC BY-NC 4.0")


@source("pubmedqa", "language", "500 + 500 medical questions on abstracts; yes, no, maybe", "pubmedqa")
def pubmedqa(folder: Folder, seed: int, *, length: int = 512, answer: str = "decision") -> Source:
    """`answer`: "decision" (yes, no, maybe) or "long" (the conclusion). The prompt ends with the question, so that
    cutting a row costs abstract only."""
    key = {"decision": "decision", "long": "long_answer"}[choice("answer", answer, ("decision", "long"))]
    records = folder.lines("pubmedqa_labeled.jsonl.gz")
    train, test = ([r for r in records if r["split"] == part] for part in ("train", "test"))

    def pair(r: Mapping[str, Any]) -> tuple[str, str]:
        return f"Abstract: {' '.join(r['context'])}\nQuestion: {r['question']}\nAnswer: ", r[key]

    return _instructions("pubmedqa", train, test, pair, length, "pubmedqa/pubmedqa", "MIT")


@source(
    "financial-phrasebank",
    "language",
    "4,846 sentences of financial news: negative, neutral, positive",
    "financial_phrasebank",
)
def financial_phrasebank(folder: Folder, seed: int, *, task: str = "language", length: int = 256) -> Source:
    """`task`: "language" (the sentiment is the response; field `label` holds it as 0, 1, 2) or "classification" (`x`
    the sentence, `y` the sentiment)."""
    choice("task", task, ("language", "classification"))
    at_least(8, length=length)
    records = folder.lines("financial_phrasebank.jsonl.gz")
    names = ("negative", "neutral", "positive")
    label = torch.tensor([names.index(r["label"]) for r in records])
    if task == "language":
        train = answered([(f"{r['sentence']}\nSentiment: ", r["label"]) for r in records], length).replace(label=label)
    else:
        train = Data(x=text_rows([r["sentence"] for r in records], length), y=label)
    return Source(
        name="financial-phrasebank",
        train=train,
        task=task,
        classes=BYTES if task == "language" else 3,
        labels=() if task == "language" else names,
        partition=Dirichlet(0.5),
        records=tuple(records),
        about=f"sentences in {length} bytes",
        origin="Ankit-AP-Paul/financial-news-classification",
        licence="none stated (the original: non-commercial use)",
    )


@source(
    "instruct-general",
    "language",
    "999 general instructions; also 300 preference pairs, 300 rated answers",
    "instruct_general",
)
def instruct_general(folder: Folder, seed: int, *, kind: str = "instructions", length: int = 512) -> Source:
    """`kind`: "instructions"; "pairs" (`x, y, mask` the chosen answer, `rejected_x, rejected_y, rejected_mask` the
    other); or "binary" (field `good` 0 or 1)."""
    choice("kind", kind, ("instructions", "pairs", "binary"))
    at_least(8, length=length)
    origin, licence = "hiyouga/LLaMA-Factory", "Apache-2.0 for the repository"
    if kind == "instructions":
        records = folder.lines("alpaca_en.jsonl.gz")
        return _instructions("instruct-general", records, (), _alpaca, length, origin, licence)
    if kind == "pairs":
        records = folder.lines("preference_pairs_en.jsonl.gz")
        prompts = ["".join(f"{t['from']}: {t['value']}\n" for t in r["conversations"]) + "answer: " for r in records]
        chosen, rejected = (
            answered([(p, r[key]["value"]) for p, r in zip(prompts, records)], length) for key in ("chosen", "rejected")
        )
        train = chosen.replace(**{f"rejected_{name}": rejected[name] for name in rejected})
    else:
        records = folder.lines("preference_binary_en.jsonl.gz")
        train = answered([_last_turn(r["messages"]) for r in records], length)
        train = train.replace(good=torch.tensor([int(r["label"]) for r in records]))
    return Source(
        name="instruct-general",
        train=train,
        task="preference",
        classes=BYTES,
        records=tuple(records),
        about=f"preferences in {length} bytes",
        origin=origin,
        licence=licence,
    )


def _last_turn(messages: Records) -> tuple[str, str]:
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError("a rated conversation ends with the assistant's answer")
    before = "".join(f"{m['role']}: {m['content']}\n" for m in messages[:-1])
    return f"{before}assistant: ", messages[-1]["content"]
