"""Tables read from the folder that FEDLOOM_DATA names: numbers standardised, categories one-hot, a group column as
natural clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .convert import codes, moments, scale
from .fields import Data
from .frames import Encoding, plain
from .partitions import IID, Dirichlet, Natural
from .registry import ENTRIES, Folder, Source, choice, source


@dataclass(frozen=True)
class Table:
    """How a frame becomes a source: its target, the column of natural clients, a protected attribute to keep.

    task: "classification", "regression", or None: what the target looks like.
    """

    target: str
    group: str | None = None
    task: str | None = "classification"
    categorical: Sequence[str] = ()
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    missing: str = "error"
    ordered: bool = False


def tabular(
    name: str, frame: pd.DataFrame, table: Table, test: pd.DataFrame | None = None, *, origin: str, licence: str
) -> Source:
    """A source of a frame. A regression target is standardised too; its scale is in `notes`.

    Means and scales are those of `frame`. Where the set has no test part of its own these are all its rows, also those
    that `federate` holds out later: it scales the inputs again with the clients' train samples, but what filled a
    missing number, and a target's scale, stay as they are. `Federation.from_pandas` fills with train samples alone.
    """
    whole = frame if test is None else pd.concat([frame, test])
    group = table.group
    encoding = Encoding.of(
        whole, table.target, group, table.task, table.categorical, table.keep, table.drop, table.missing
    )
    parts = [encoding.data(part, name) for part in (frame, *(() if test is None else (test,)))]
    columns, notes = encoding.numeric_columns, {}
    by = moments(parts[0]["x"], columns)
    parts = [part.replace(x=scale(part["x"], columns, by)) for part in parts]
    if encoding.labels is None:
        y = parts[0]["y"]
        notes = {"target_mean": float(y.mean()), "target_std": float(y.std(correction=0)) or 1.0}
        parts = [p.replace(y=((p["y"] - notes["target_mean"]) / notes["target_std"]).float()) for p in parts]
    groups, names = (None, ()) if group is None else codes(plain(frame)[group])
    default = Natural() if group else IID() if encoding.labels is None else Dirichlet(0.5)
    return Source(
        name=name,
        train=parts[0],
        test=parts[1] if len(parts) > 1 else None,
        task=table.task or ("regression" if encoding.labels is None else "classification"),
        classes=encoding.classes,
        labels=encoding.labels or (),
        groups=groups,
        group_names=names,
        columns=encoding.columns,
        numeric=columns,
        partition=default,
        ordered=table.ordered,
        notes=notes,
        about=ENTRIES[name].about if name in ENTRIES else "",
        origin=origin,
        licence=licence,
    )


@source("adult", "classification", "48,842 census rows: income above 50K; occupations are clients", "adult")
def adult(folder: Folder, seed: int, *, group: str = "occupation") -> Source:
    """`group`: "occupation", "workclass" or "race". Field `sex` is kept: 0 female, 1 male."""
    choice("adult group", group, ("occupation", "workclass", "race"))
    frame = folder.frame("adult.csv.gz")
    table = Table("income", group, keep=["sex"], drop=["split"])
    train, test = (frame.query(f"split == {part!r}") for part in ("train", "test"))
    return tabular("adult", train, table, test, origin="liyaooi/FETCH (UCI Adult)", licence="UCI: CC BY 4.0")


@source("heart", "classification", "920 patients of 4 hospitals: heart disease or not", "heart")
def heart(folder: Folder, seed: int) -> Source:
    """Missing numbers become the mean of all rows (see `tabular`); missing categories are a category."""
    table = Table("disease", "hospital", categorical=["cp", "restecg", "slope", "thal"], missing="mean")
    origin = "GaTech-CS7641-A-Fall2020-Team7/public-dataset (UCI heart disease)"
    return tabular("heart", folder.frame("heart.csv.gz"), table, origin=origin, licence="UCI: CC BY 4.0")


@source(
    "credit-default",
    "classification",
    "30,000 credit cards: default next month; education levels are clients",
    "credit_default",
)
def credit_default(folder: Folder, seed: int, *, group: str = "EDUCATION") -> Source:
    """`group`: "EDUCATION" or "MARRIAGE". Field `SEX` is kept: 0 male, 1 female."""
    choice("credit-default group", group, ("EDUCATION", "MARRIAGE"))
    other = "MARRIAGE" if group == "EDUCATION" else "EDUCATION"
    table = Table("default payment", group, categorical=["SEX", other], keep=["SEX"])
    frame = folder.frame("credit_default.csv.gz")
    return tabular("credit-default", frame, table, origin="tailequy/fairness_dataset", licence="none stated")


@source(
    "bank-marketing", "classification", "40,004 calls of a bank: deposit or not; jobs are clients", "bank_marketing"
)
def bank_marketing(folder: Folder, seed: int, *, group: str = "job") -> Source:
    """`group`: "job" or "month". The length of the call is left out: it is not known before the call."""
    choice("bank-marketing group", group, ("job", "month"))
    table = Table("y", group, drop=["duration"])
    frame = folder.frame("bank_marketing.csv.gz")
    return tabular("bank-marketing", frame, table, origin="tailequy/fairness_dataset", licence="none stated")


@source(
    "communities-crime", "regression", "1,994 communities of 46 states: violent crimes per person", "communities_crime"
)
def communities_crime(folder: Folder, seed: int) -> Source:
    """Field `Black` (0 or 1: a large share of black inhabitants) is kept."""
    table = Table(
        "ViolentCrimesPerPop", "state", "regression", keep=["Black"], drop=["communityname", "fold", "class", "Black"]
    )
    frame = folder.frame("communities_crime.csv.gz")
    return tabular("communities-crime", frame, table, origin="tailequy/fairness_dataset", licence="none stated")


@source(
    "oulad", "classification", "21,562 students of an open university: pass or fail; 13 regions are clients", "oulad"
)
def oulad(folder: Folder, seed: int, *, group: str = "region") -> Source:
    """`group`: "region" or "code_module". Field `gender` is kept: 0 female, 1 male."""
    choice("oulad group", group, ("region", "code_module"))
    table = Table("final_result", group, keep=["gender"], drop=["id_student"])
    frame = folder.frame("oulad.csv.gz")
    return tabular("oulad", frame, table, origin="tailequy/fairness_dataset", licence="OULAD: CC BY 4.0")


@source("student", "classification", "1,044 pupils of 2 schools: high or low final grade", "student")
def student(folder: Folder, seed: int) -> Source:
    """Field `sex` is kept: 0 female, 1 male."""
    table = Table("class", "school", keep=["sex"])
    frame = folder.frame("student.csv.gz")
    return tabular("student", frame, table, origin="tailequy/fairness_dataset", licence="none stated")


@source("bikeshare", "regression", "17,379 hours of bike rentals in time order; 4 seasons are clients", "bikeshare")
def bikeshare(folder: Folder, seed: int) -> Source:
    """The parts of the count (casual, registered) are left out."""
    table = Table("count", "season", "regression", ["weekday", "weather"], drop=["casual", "registered"], ordered=True)
    frame = folder.frame("bikeshare.csv.gz")
    return tabular("bikeshare", frame, table, origin="liyaooi/FETCH (UCI)", licence="UCI: CC BY 4.0")


@source("nsl-kdd", "classification", "22,544 network connections: normal or attack", "nsl_kdd")
def nsl_kdd(folder: Folder, seed: int, *, labels: str = "binary") -> Source:
    """`labels`: "binary" (attack, normal) or "name" (38 labels, some with very few samples)."""
    choice("nsl-kdd labels", labels, ("binary", "name"))
    frame = folder.frame("nsl_kdd_test.csv.gz")
    if labels == "binary":
        frame["label"] = np.where(frame["label"] == "normal", "normal", "attack")
    table = Table("label", categorical=["protocol_type", "service", "flag"])
    return tabular("nsl-kdd", frame, table, origin="ryota7777/FIDSUS", licence="none stated")


@source("walmart", "regression", "143 weeks of sales of 45 shops", "walmart")
def walmart(folder: Folder, seed: int) -> Source:
    """The date becomes the year and the season (sine and cosine of the week); samples stay in time order."""
    frame = folder.frame("walmart_store_sales.csv.gz")
    date = pd.to_datetime(frame["Date"], format="%d-%m-%Y")
    angle = 2 * np.pi * date.dt.day_of_year / 365.25
    frame = frame.assign(year=date.dt.year, season_sin=np.sin(angle), season_cos=np.cos(angle), when=date)
    frame = frame.sort_values(["Store", "when"], kind="stable")
    table = Table("Weekly_Sales", "Store", "regression", drop=["Date", "when"], ordered=True)
    origin = "ZarahShibli/Retail-Analysis-with-Walmart-Data"
    return tabular("walmart", frame, table, origin=origin, licence="none stated")


@source("sachs", "causal", "11,672 cells, 11 signalling proteins, 14 experimental conditions", "sachs")
def sachs(folder: Folder, seed: int, *, conditions: int = 9) -> Source:
    """`conditions`: 9 (the usual 7,466 cells) or 14. x: standardised logarithms."""
    choice("number of conditions", str(conditions), ("9", "14"))
    frame = folder.frame("sachs.csv.gz")
    frame = frame.query(f"condition <= {conditions}")
    names = tuple(str(c) for c in frame.columns if c not in ("condition", "condition_name"))
    x = torch.from_numpy(np.log(np.asarray(frame[list(names)])).astype(np.float32))
    numeric = torch.arange(x.shape[1])
    groups, group_names = codes(list(map(str, frame["condition_name"])))
    return Source(
        name="sachs",
        train=Data(x=scale(x, numeric, moments(x, numeric))),
        task="causal",
        groups=groups,
        group_names=group_names,
        columns=names,
        numeric=numeric,
        partition=Natural(),
        hold_out=0.0,
        about=ENTRIES["sachs"].about,
        origin="longjp/gcd-code",
        licence="none stated",
    )
