"""Named sources: the bundled ones fully; those of FEDLOOM_DATA where that folder is, and by files made here."""

import gzip
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from fedloom.data import IGNORE, Federation, Natural, Source, federate, load, sources
from fedloom.data.convert import answered
from fedloom.data.registry import ENTRIES, VARIABLE, source
from fedloom.data.tabular import Table, tabular
from fedloom.data.texts import _alpaca, windows
from fedloom.errors import ConfigError, DataError

BUNDLED = {
    # name: samples, input shape, task, classes
    "digits": (1797, (1, 8, 8), "classification", 10),
    "breast-cancer": (569, (30,), "classification", 2),
    "wine": (178, (13,), "classification", 3),
    "diabetes": (442, (10,), "regression", None),
    "synthetic": (None, (60,), "classification", 10),
}

# name: train samples, test samples, input shape, task, classes, natural clients
STORED = {
    "mnist": (60_000, 10_000, (1, 28, 28), "classification", 10, 0),
    "fashion-mnist": (60_000, 10_000, (1, 28, 28), "classification", 10, 0),
    "cifar10": (10_000, 2_000, (3, 32, 32), "classification", 10, 0),
    "cifar100": (6_000, 1_200, (3, 32, 32), "classification", 100, 20),
    "pacs": (3_320, 0, (3, 32, 32), "classification", 7, 4),
    "camvid": (240, 120, (3, 72, 96), "segmentation", 11, 3),
    "video-clip": (60, 0, (3, 30, 40), "restoration", None, 0),
    "har": (6_000, 0, (9, 128), "classification", 6, 30),
    "fsdd": (1_500, 0, (1, 40, 64), "classification", 10, 6),
    "digit-strings": (616, 155, (1, 24, 128), "transcription", 10, 6),
    "cora": (2_708, 0, (1433,), "graph", 7, 0),
    "citeseer": (3_312, 0, (3703,), "graph", 6, 0),
    "shakespeare": (11_386, 0, (80,), "language", 256, 99),
    "gsm8k": (7_473, 1_319, (512,), "language", 256, 0),
    "code-alpaca": (2_017, 0, (512,), "language", 256, 0),
    "pubmedqa": (500, 500, (512,), "language", 256, 0),
    "financial-phrasebank": (4_846, 0, (256,), "language", 256, 0),
    "instruct-general": (999, 0, (512,), "language", 256, 0),
    "text-lm": (8_016, 0, (128,), "language", 256, 30),
    "adult": (32_561, 16_281, (56,), "classification", 2, 15),
    "heart": (920, 0, (25,), "classification", 2, 4),
    "credit-default": (30_000, 0, (26,), "classification", 2, 7),
    "bank-marketing": (40_004, 0, (37,), "classification", 2, 12),
    "communities-crime": (1_994, 0, (99,), "regression", None, 46),
    "oulad": (21_562, 0, (35,), "classification", 2, 13),
    "student": (1_044, 0, (58,), "classification", 2, 2),
    "bikeshare": (17_379, 0, (17,), "regression", None, 4),
    "nsl-kdd": (22_544, 0, (107,), "classification", 2, 0),
    "walmart": (6_435, 0, (8,), "regression", None, 45),
    "sachs": (7_466, 0, (11,), "causal", None, 9),
}

stored = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} is not set")


def test_the_lists_here_are_complete():
    assert {e.name for e in sources() if e.bundled} == set(BUNDLED)
    assert {e.name for e in sources() if not e.bundled} == set(STORED)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sources(name):
    n, shape, task, classes = BUNDLED[name]
    loaded = load(name)
    assert n is None or len(loaded.train) == n
    assert (loaded.shape, loaded.task, loaded.classes) == (shape, task, classes)
    assert loaded.train.x.dtype == torch.float32
    assert loaded.sha256 == load(name).sha256
    assert loaded.origin
    assert loaded.licence
    fed = federate(name, seed=1)
    assert fed.sha256 == federate(name, seed=1).sha256 != federate(name, seed=2).sha256
    assert fed.test is not None
    assert fed.classes == classes
    assert int(fed.sizes().min()) >= 1


def test_digits_are_images_between_0_and_1():
    x = load("digits").train.x
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)


def test_tables_are_standardised_on_train_and_again_on_the_clients_train_samples():
    x = load("wine").train.x
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-5
    fed = federate("wine", clients=5, partition="iid")
    train = torch.cat([fed.local(i).x for i in range(5)])
    assert train.mean(0).abs().max() < 1e-5
    assert len(train) < 178 * 0.7


def test_a_regression_target_is_standardised_and_says_by_what():
    diabetes = load("diabetes")
    assert abs(float(diabetes.train.y.mean())) < 1e-5
    assert diabetes.notes["target_mean"] == pytest.approx(152.13, abs=0.01)
    assert federate("diabetes").info["target_std"] == diabetes.notes["target_std"]


def test_a_test_part_is_scaled_by_the_train_part_alone():
    train = pd.DataFrame({"a": [0.0, 2.0, np.nan], "y": [10.0, 30.0, 20.0]})
    test = pd.DataFrame({"a": [101.0, np.nan], "y": [50.0, 20.0]})
    source = tabular("own", train, Table("y", task="regression", missing="mean"), test, origin="", licence="")
    scale = np.std([10, 30, 20])
    assert source.train.x.tolist() == [[-1], [1], [0]]
    assert source.test.x.tolist() == [[100], [0]]
    assert source.notes == pytest.approx({"target_mean": 20, "target_std": scale})
    assert source.test.y.tolist() == pytest.approx([30 / scale, 0])


def test_synthetic_clients_differ_as_alpha_and_beta_say():
    def centres(name):
        s = load(name)
        return torch.stack([s.train.x[s.groups == k].mean(0) for k in range(30)])

    assert load("synthetic:0.5,0.5").sha256 != load("synthetic:1,1").sha256
    apart = [float(centres(f"synthetic:0,{beta}").mean(1).std()) for beta in (0, 4)]
    assert apart[0] < 0.5 < 2 < apart[1]
    same = centres("synthetic:0,0,iid=true")
    assert same.abs().max() < 1.0
    # the label is a linear function of the input within one client, and not across clients
    s = load("synthetic:1,1", clients=3)
    assert len(s.group_names) == 3
    assert int(torch.bincount(s.groups).min()) > 50
    variance = load("synthetic:0,0,iid=true").train.x.var(0)
    assert torch.allclose(variance, torch.arange(1, 61).float() ** -1.2, rtol=0.1)


def test_synthetic_makes_as_many_clients_as_asked_for():
    fed = federate("synthetic", clients=12)
    assert len(fed) == 12
    assert fed.info["partition"] == "natural"
    assert len(federate("synthetic", clients=12, partition="iid")) == 12
    assert len(federate("synthetic:clients=5", clients=5)) == 5
    assert len(federate("synthetic:clients=5", clients=12, partition="iid")) == 12
    with pytest.raises(ConfigError, match="5 of them; given 12 clients"):
        federate("synthetic:clients=5", clients=12)


def test_names_forgive_hyphens_and_case():
    assert load("Breast_Cancer").name == "breast-cancer"
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        load("digit")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digits:3", {}, "takes no options"),
        ("digits", {"size": 3}, "takes no options; given 'size'"),
        ("synthetic:a", {}, "alpha of the source 'synthetic' is a number; given 'a'"),
        ("synthetic:-1,1", {}, "alpha, beta >= 0"),
        ("synthetic:clientz=3", {}, "Did you mean 'clients'"),
        ("synthetic:1,1,30,false,9", {}, "takes alpha, beta, clients, iid"),
        ("digits", {"limit": 0}, "limit is 1 or more"),
        ("synthetic", {"clients": 2.5}, "clients of the source 'synthetic' is a whole number; given 2.5"),
        ("synthetic", {"clients": True}, "is a whole number; given True"),
        ("synthetic", {"iid": 3}, "iid of the source 'synthetic' is"),
        ("synthetic:1,alpha=2", {}, "gives alpha twice"),
        ("synthetic:1,1,5", {"clients": 7}, "clients=5 in synthetic:1,1,5, and clients=7; leave one of them out"),
        ("synthetic:iid=maybe", {}, "given 'maybe'"),
        ("synthetic:nan", {}, "alpha of the source 'synthetic' is a number; given nan"),
        ("synthetic", {"beta": float("inf")}, "alpha, beta >= 0"),
    ],
)
def test_wrong_options_say_what_is_right(name, options, says):
    with pytest.raises(ConfigError, match=says):
        load(name, **options)


@pytest.mark.parametrize(
    ("name", "folder", "says"),
    [
        ("fsdd:bands=0", "fsdd", "bands is 1 or more; given 0"),
        ("digit-strings:repeats=0", "fsdd", "repeats is 1 or more; given 0"),
        ("digit-strings:digits=1", "fsdd", "digits is 2 or more; given 1"),
        ("financial-phrasebank:length=0", "financial_phrasebank", "length is 8 or more; given 0"),
        ("instruct-general:pairs,length=7", "instruct_general", "length is 8 or more; given 7"),
    ],
)
def test_options_that_leave_nothing_are_refused_and_the_files_not_blamed(monkeypatch, tmp_path, name, folder, says):
    (tmp_path / folder).mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=says):
        load(name)


def test_without_the_folder_the_error_names_the_variable_and_the_bundled_sets(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"FEDLOOM_DATA.*breast-cancer, diabetes, digits"):
        load("fashion-mnist")
    assert not ENTRIES["mnist"].available
    assert ENTRIES["digits"].available
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="no folder fashion_mnist/"):
        load("fashion-mnist")
    (tmp_path / "fashion_mnist").mkdir()
    with pytest.raises(DataError, match="no file 'train-images"):
        load("fashion-mnist")
    for name in ("cifar10", "gsm8k", "heart"):
        (tmp_path / name).mkdir()
    (tmp_path / "cifar10" / "cifar10.npz").write_bytes(b"PK\x05\x06 broken")
    with pytest.raises(DataError, match="not a readable"):
        load("cifar10")
    (tmp_path / "heart" / "heart.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        load("heart")


def test_files_of_the_folder_are_read(monkeypatch, tmp_path):
    """Small files in the same formats, so that the readers are tested without the real sets."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for part, n in (("train", 12), ("t10k", 4)):
        images = np.arange(n * 784, dtype=np.uint64).astype(np.uint8).reshape(n, 28, 28)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(s.to_bytes(4, "big") for s in array.shape)
            (tmp_path / "mnist" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    loaded = load("mnist")
    assert loaded.train.x.shape == (12, 1, 28, 28)
    assert float(loaded.train.x[0, 0, 0, 5]) == pytest.approx(5 / 255)
    assert loaded.train.y.tolist() == [*range(10), 0, 1]
    short = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"12")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(short)
    with pytest.raises(DataError, match="cut short: 2 of 9"):
        load("mnist")

    (tmp_path / "gsm8k").mkdir()
    records = [{"question": "1+1?", "answer": "2\u2028#### 2"}, {"question": "2+2?", "answer": "#### 4"}]
    for part in ("train", "test"):
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (tmp_path / "gsm8k" / f"{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    loaded = load("gsm8k", length=40)
    assert loaded.records[0]["answer"].endswith("#### 2")
    said = bytes(loaded.train.y[1][loaded.train.mask[1]].tolist())
    assert said == b"#### 4\0"


def test_answers_are_masked_and_long_prompts_lose_their_beginning():
    data = answered([("abc", "de"), ("x" * 50 + "end", "answer"), ("", "hi"), ("q", "r" * 99)], 12)
    assert data.x.shape == data.y.shape == data.mask.shape == (4, 12)
    assert bytes(data.x[0].tolist()) == b"abcde" + bytes(7)
    assert data.y[0].tolist() == [IGNORE, IGNORE, *b"de", 0, *[IGNORE] * 7]
    assert bytes(data.x[1].tolist()) == b"xxxendanswer"[:12]
    for row in range(4):
        assert (data.y[row][~data.mask[row]] == IGNORE).all()
        assert torch.equal(data.y[row][:-1][data.mask[row][:-1]], data.x[row][1:][data.mask[row][:-1]])
    assert bytes(data.y[3][data.mask[3]].tolist()) == b"r" * 12


def test_an_instruction_without_an_input_has_no_line_for_it():
    assert _alpaca({"instruction": "Add", "input": "1 2", "output": "3"}) == ("Instruction: Add\n1 2\nResponse: ", "3")
    assert _alpaca({"instruction": "Sing", "input": "", "output": "la"}) == ("Instruction: Sing\nResponse: ", "la")


def test_windows_read_on_where_the_last_one_stopped():
    data, owner = windows([b"abcdefghij", b"klm", b"nopq"], 3)
    assert [bytes(row.tolist()) for row in data.x] == [b"abc", b"def", b"ghi", b"nop"]
    assert [bytes(row.tolist()) for row in data.y] == [b"bcd", b"efg", b"hij", b"opq"]
    assert owner.tolist() == [0, 0, 0, 2]
    with pytest.raises(ConfigError, match="no text is longer"):
        windows([b"abc"], 3)
    with pytest.raises(ConfigError, match="length is 2 or more; given 1"):
        windows([b"abc"], 1)


def test_limit_keeps_groups_and_samples_together():
    full, some = load("synthetic", clients=4), load("synthetic", clients=4, limit=50)
    assert len(some.train) == len(some.groups) == 50
    where = {tuple(x.tolist()): int(g) for x, g in zip(full.train.x, full.groups)}
    assert all(where[tuple(x.tolist())] == int(g) for x, g in zip(some.train.x, some.groups))


def test_a_loaded_source_can_be_federated_again():
    digits = load("digits")
    assert federate(digits, 10, "iid").sha256 == federate("digits", 10, "iid").sha256
    with pytest.raises(ConfigError, match="loaded already"):
        federate(digits, limit=10)


def sites(folder, **rows):
    for name, text in rows.items():
        (folder / f"{name}.csv").write_text(f"age,sex,outcome\n{text}\n")


def test_files_of_a_pattern_are_clients_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sites(tmp_path, south="1,f,ill\n2,m,well", north="3,f,ill\n4,m,well\n5,f,ill")
    federation = federate("*.csv:target=outcome", test=0.0, client_test=0.0)
    assert federation.names == ("north", "south")
    assert federation.sizes().tolist() == [3, 2]
    assert federation.info["columns"] == ["age", "sex=f", "sex=m"]
    assert load("*.csv:target=outcome,group=sex").group_names == ("f", "m")
    assert load("*.csv:target=outcome,group=sex").columns == ("age",)
    assert load("nor*.csv:target=outcome").group_names == ("north",)


def test_files_of_a_pattern_that_share_a_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ward in "ab":
        (tmp_path / ward).mkdir()
        sites(tmp_path / ward, patients="1,f,ill\n2,m,well")
    assert load("*/patients.csv:target=outcome").group_names == ("a/patients.csv", "b/patients.csv")


def test_a_pattern_reaches_into_folders_and_every_file_has_a_client(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, ward in ((".", "north"), ("a/b", "south")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        sites(tmp_path / place, **{ward: "1,f,ill\n2,m,well"})
    assert load("**/*.csv:target=outcome").group_names == ("north", "south")
    (tmp_path / "east.csv").write_text("age,sex,outcome\n")
    with pytest.raises(DataError, match=r"east.csv has no rows"):
        load("**/*.csv:target=outcome")


def test_files_of_a_pattern_have_the_same_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sites(tmp_path, north="1,f,ill\n2,m,well")
    (tmp_path / "south.csv").write_text("age,outcome\n1,ill\n")
    with pytest.raises(DataError, match=r"north.csv and south.csv .* only one of them has \['sex'\]"):
        load("*.csv:target=outcome")
    with pytest.raises(DataError, match=r"no file 'east\*.csv'"):
        load("east*.csv:target=outcome")
    with pytest.raises(DataError, match=r"one pattern: '\*.csv'"):
        load("north.csv,south.csv:target=outcome")


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="registered twice"):
        source("digits", "classification", "again")(lambda folder, seed: load("digits"))


# ------------------------------------------------------------------------------------------------ the real sets


@stored
@pytest.mark.parametrize("name", STORED)
def test_stored_sources(name):
    train, test, shape, task, classes, natural = STORED[name]
    loaded = load(name)
    assert isinstance(loaded, Source)
    assert (len(loaded.train), loaded.shape, loaded.task, loaded.classes) == (train, shape, task, classes)
    assert len(loaded.test or ()) == test
    assert len(loaded.group_names) == natural
    assert loaded.origin
    assert loaded.licence
    assert loaded.about
    fed = federate(loaded)
    assert isinstance(fed, Federation)
    assert int(fed.sizes().min()) >= 1
    assert fed.name == name
    if isinstance(loaded.partition, Natural):
        assert fed.names == loaded.group_names


@stored
def test_domains_can_be_left_out():
    fed = federate("pacs", test="sketch")
    assert fed.names == ("photo", "art_painting", "cartoon")
    assert len(fed.test) == 800


@stored
def test_graphs_name_their_neighbours():
    fed = federate("cora", clients=5)
    ids = {int(node): (i, row) for i in range(5) for row, node in enumerate(fed.local(i).node)}
    i, row = ids[next(iter(ids))]
    neighbours = [n for n in fed.local(i).neighbours[row].tolist() if n >= 0]
    whole = load("cora").train
    assert set(neighbours) == {int(n) for n in whole.neighbours[int(fed.local(i).node[row])] if n >= 0}
    edges = int((whole.neighbours >= 0).sum())
    assert edges == 2 * 5278
    assert all(int(a) in whole.neighbours[int(b)] for b in range(50) for a in whole.neighbours[b] if a >= 0)


@stored
def test_options_of_stored_sets():
    assert load("shakespeare:length=40,least=10000").shape == (40,)
    assert load("cifar100", labels="coarse").classes == 20
    assert load("nsl_kdd", labels="name").classes == 38
    assert load("sachs:14").groups.max() == 13
    pairs = load("instruct-general", kind="pairs")
    assert pairs.task == "preference"
    assert "rejected_mask" in pairs.train
    assert set(load("instruct-general", kind="binary").train.good.tolist()) == {0, 1}
    sentences = load("financial-phrasebank", task="classification")
    assert torch.bincount(sentences.train.y).tolist() == [604, 2879, 1363]
    assert load("code-alpaca", version="4k").train.x.shape == (4535, 512)
    assert load("text-lm", kind="c4", length=64).shape == (64,)
    with pytest.raises(ConfigError, match="Did you mean 'coarse'"):
        load("cifar100", labels="coars")


@stored
def test_protected_attributes_stay_beside_the_inputs():
    adult = load("adult")
    assert torch.bincount(adult.train.sex).tolist() == [10771, 21790]
    assert adult.labels == ("<=50K", ">50K")
    assert not any("occupation" in c or "split" in c for c in adult.columns)
    credit = load("credit-default")
    assert torch.bincount(credit.train.SEX).tolist() == [11888, 18112]
