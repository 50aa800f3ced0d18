"""Strings of spoken digits, from the clips of the Free Spoken Digit Dataset."""

from __future__ import annotations

import numpy as np
import torch

from fedloom.keyed import generator

from .fields import IGNORE, Data
from .folder import log_mel
from .partitions import Natural
from .registry import Folder, Source, at_least, source

RATE, HOP, FRAMES = 8000, 128, 128
"""Samples a second, samples a frame, frames of a string: about two seconds."""

TEST_TAKE = 20
"""Takes from this one on (5 of 25) are test clips: no clip is in a training and in a test string."""


@source("digit-strings", "transcription", "strings of 1 to 3 spoken digits by 6 speakers, as spectrograms", "fsdd")
def digit_strings(folder: Folder, seed: int, *, bands: int = 24, digits: int = 3, repeats: int = 1) -> Source:
    """x: log-mel energies `[1, bands, 128]` of clips of one speaker, one behind the other; y: their digits.

    digits: of the longest string; repeats: in how many strings each clip is.
    """
    at_least(1, bands=bands, repeats=repeats)
    at_least(2, digits=digits)
    file = folder.npz("fsdd.npz")
    clips = np.split(file["audio"].astype(np.float32) / 32768, file["offset"][1:-1])
    sound: list[np.ndarray] = []
    labels: list[list[int]] = []
    speaker: list[int] = []
    test: list[bool] = []
    for who in range(len(file["speakers"])):
        for tested in (False, True):
            mine = np.flatnonzero((file["speaker"] == who) & ((file["take"] >= TEST_TAKE) == tested))
            for turn in range(1 if tested else repeats):
                rng = generator(seed, "digit strings", who, tested, turn)
                order = mine[torch.randperm(len(mine), generator=rng).numpy()]
                lengths = torch.randint(1, digits + 1, (len(mine),), generator=rng).tolist()
                for string in _strings([len(clips[i]) for i in order], lengths):
                    sound.append(np.concatenate([clips[i] for i in order[string]]))
                    labels.append([int(file["y"][i]) for i in order[string]])
                    speaker.append(who)
                    test.append(tested)
    samples = (FRAMES - 1) * HOP
    waves = torch.zeros(len(sound), samples)
    y = torch.full((len(sound), digits), IGNORE)
    for row, target, wave, said in zip(waves, y, sound, labels):
        row[: len(wave)] = torch.from_numpy(wave[:samples])
        target[: len(said)] = torch.tensor(said)
    data = Data(x=log_mel(waves, bands, RATE, hop=HOP).unsqueeze(1), y=y)
    held_out = torch.tensor(test)
    return Source(
        name="digit-strings",
        train=data.rows(~held_out),
        test=data.rows(held_out),
        task="transcription",
        classes=10,
        labels=tuple(map(str, range(10))),
        groups=torch.tensor(speaker)[~held_out],
        group_names=tuple(map(str, file["speakers"])),
        partition=Natural(),
        about=f"strings of 1 to {digits} digits, log-mel spectrograms [1, {bands}, {FRAMES}] of 8 kHz speech",
        origin="Jakobovski/free-spoken-digit-dataset",
        licence="CC BY-SA 4.0",
    )


def _strings(sizes: list[int], lengths: list[int]) -> list[slice]:
    """Consecutive clips in strings of these lengths; a string ends early where the next clip would not fit."""
    strings: list[slice] = []
    at = 0
    for length in lengths:
        end = at + 1
        while end < min(at + length, len(sizes)) and sum(sizes[at : end + 1]) <= (FRAMES - 1) * HOP:
            end += 1
        if at < len(sizes):
            strings.append(slice(at, end))
        at = end
    return strings
