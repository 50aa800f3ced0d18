"""Sources that need no files: scikit-learn's small sets, and the synthetic federation of the FedProx
paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedloom.errors import ConfigError

from .convert import moments, scale
from .fields import Data
from .partitions import IID, Dirichlet, Natural, numbers
from .registry import Source, source

_SKLEARN = "scikit-learn, from the UCI Machine Learning Repository"


@source("digits", "classification", "1,797 hand-written digits, 8x8 grey; 10 classes")
def digits(folder: None, seed: int) -> Source:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.float32)).unsqueeze(1).div_(16)
    return Source(
        name="digits",
        train=Data(x=x, y=torch.from_numpy(bunch.target.astype(np.int64))),
        task="classification",
        classes=10,
        labels=tuple(map(str, range(10))),
        partition=Dirichlet(0.3),
        about="images [1, 8, 8] in 0..1",
        origin=_SKLEARN + " (Optical Recognition of Handwritten Digits, test part)",
        licence="CC BY 4.0",
    )


def _table(name: str, bunch: Any, task: str, partition: Any, about: str, licence: str) -> Source:
    """A table of scikit-learn's, standardised with all its rows. `federate` scales the inputs again with the clients'
    train samples; a regression target keeps the scale of all rows, which is in `notes`."""
    x = torch.from_numpy(bunch.data.astype(np.float32))
    numeric = torch.arange(x.shape[1])
    x, notes = scale(x, numeric, moments(x, numeric)), {}
    if task == "regression":
        y = torch.from_numpy(bunch.target.astype(np.float32))
        notes = {"target_mean": float(y.mean()), "target_std": float(y.std(correction=0))}
        y = (y - notes["target_mean"]) / notes["target_std"]
    else:
        y = torch.from_numpy(bunch.target.astype(np.int64))
    return Source(
        name=name,
        train=Data(x=x, y=y),
        task=task,
        classes=None if task == "regression" else int(y.max()) + 1,
        labels=() if task == "regression" else tuple(map(str, bunch.target_names)),
        columns=tuple(map(str, bunch.feature_names)),
        numeric=numeric,
        partition=partition,
        notes=notes,
        about=about,
        origin=_SKLEARN,
        licence=licence,
    )


@source("breast-cancer", "classification", "569 tumours, 30 features; malignant or benign")
def breast_cancer(folder: None, seed: int) -> Source:
    from sklearn.datasets import load_breast_cancer

    about = "30 standardised features"
    return _table("breast-cancer", load_breast_cancer(), "classification", Dirichlet(0.5), about, "CC BY 4.0")


@source("wine", "classification", "178 wines, 13 features; 3 cultivars")
def wine(folder: None, seed: int) -> Source:
    from sklearn.datasets import load_wine

    return _table("wine", load_wine(), "classification", Dirichlet(0.5), "13 standardised features", "CC BY 4.0")


@source("diabetes", "regression", "442 patients, 10 features; disease progression after a year")
def diabetes(folder: None, seed: int) -> Source:
    from sklearn.datasets import load_diabetes

    about = "10 standardised features, standardised target"
    return _table("diabetes", load_diabetes(scaled=False), "regression", IID(), about, "none stated")


@source("synthetic", "classification", "FedProx Synthetic(alpha, beta): 60 features, 10 classes, sizes by a power law")
def synthetic(
    folder: None, seed: int, *, alpha: float = 1.0, beta: float = 1.0, clients: int = 30, iid: bool = False
) -> Source:
    """Synthetic(alpha, beta) of FedProx (Li et al., MLSys 2020).

    Client k draws u_k ~ N(0, alpha), B_k ~ N(0, beta); a model W_k (10, 60), b_k (10,) with entries ~ N(u_k, 1); a
    centre v_k (60,) with entries ~ N(B_k, 1); inputs x ~ N(v_k, diag(j^-1.2)); labels argmax(W_k x + b_k). alpha and
    beta are standard deviations, as in the authors' program; sizes are 50 + lognormal(4, 2).

    `iid`: all clients share one model, and the centre is 0.
    """
    if not (0 <= alpha < np.inf and 0 <= beta < np.inf and clients >= 1):
        raise ConfigError(f"synthetic needs alpha, beta >= 0 and clients >= 1; given {alpha}, {beta}, {clients}")
    spread = np.arange(1, 61) ** -0.6  # square root of j^-1.2
    common = numbers(seed, "synthetic", "shared")
    shared = (common.normal(0, 1, (10, 60)), common.normal(0, 1, 10))
    xs, ys = [], []
    for k in range(clients):
        rng = numbers(seed, "synthetic", k)
        u, centre = rng.normal(0, alpha), rng.normal(rng.normal(0, beta), 1, 60)
        weight, bias = rng.normal(u, 1, (10, 60)), rng.normal(u, 1, 10)
        if iid:
            (weight, bias), centre = shared, np.zeros(60)
        x = centre + spread * rng.normal(0, 1, (50 + int(rng.lognormal(4, 2)), 60))
        xs.append(x.astype(np.float32))
        ys.append((x @ weight.T + bias).argmax(1))
    sizes = [len(y) for y in ys]
    return Source(
        name=f"synthetic:{alpha:g},{beta:g}" + (",iid=true" if iid else ""),
        train=Data(x=torch.from_numpy(np.concatenate(xs)), y=torch.from_numpy(np.concatenate(ys))),
        task="classification",
        classes=10,
        groups=torch.arange(clients).repeat_interleave(torch.tensor(sizes)),
        group_names=tuple(map(str, range(clients))),
        partition=Natural(),
        about="60 features, 10 classes, every client its own linear model and centre",
        origin="generated",
        licence="free",
    )
