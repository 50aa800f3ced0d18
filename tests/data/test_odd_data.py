"""Data as users bring it: what can be read is read right, and what cannot is answered with what to write."""

from __future__ import annotations

import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from fedloom.data import Data, Dirichlet, Federation, load
from fedloom.data.readers import read_frame
from fedloom.data.tabular import Table, tabular
from fedloom.errors import ConfigError, DataError, FedloomError, FedloomWarning

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), np.arange(60) % 3


def frame(**columns) -> pd.DataFrame:
    plain = {"age": X[:, 0], "kind": ["a", "b", "c"] * 20, "ward": ["e", "w"] * 30, "ill": ["no", "yes", "yes"] * 20}
    return pd.DataFrame({**plain, **columns})


# ------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("kind", [np.asarray, list, lambda y: np.asarray(y, dtype=object), pd.Series])
def test_labels_may_be_text(kind):
    names = np.array(["eel", "cat", "dog"])
    y, ids = kind(names[Y].tolist()), np.arange(60.0)[:, None]
    fed = Federation.from_arrays(ids, y, 5, test=(ids[:6], kind(names[Y[:6]].tolist())))
    assert fed.info["labels"] == ["cat", "dog", "eel"]
    assert fed.classes == 3
    for part in (fed.table, fed.test):
        assert [fed.info["labels"][k] for k in part.y.tolist()] == names[part.x.flatten().long().numpy() % 3].tolist()
    with pytest.raises(DataError, match=r"test: 2 labels are none of \['cat', 'dog', 'eel'\]: \['fox'\]"):
        Federation.from_arrays(ids, y, 5, test=(ids[:3], kind(["cat", "fox", "fox"])))


@pytest.mark.parametrize("kind", [list, pd.Series, lambda names: np.asarray(names, dtype=object)])
@pytest.mark.parametrize("gap", [float("nan"), None])
def test_a_name_that_is_missing_is_no_class_and_no_client(kind, gap):
    names = kind(["cat", "eel", gap] * 20)
    with pytest.raises(DataError, match=r"labels y: 20 of 60 are missing \(first: sample 2\)"):
        Federation.from_arrays(X, names, 5)
    with pytest.raises(DataError, match=r"groups: 20 of 60 are missing \(first: sample 2\)"):
        Federation.from_arrays(X, Y, groups=names)


def test_whole_numbers_are_standardised_as_numbers():
    x = np.arange(60)[:, None] * [[1, 0]] + [[0, 7]]
    table = Federation.from_arrays(x, Y, 3, standardise=True, client_test=0.0).table
    assert table.x.dtype == torch.float32
    assert table.x.mean(0).abs().max() < 1e-6
    assert table.x[:, 0].std(correction=0) == pytest.approx(1)
    assert Federation.from_arrays(torch.tensor(X), Y, 3, standardise=True).table.x.dtype == torch.float64


def test_numbers_of_several_kinds_are_numbers():
    mixed = np.array([[1, 2.5, True]] * 6, dtype=object)
    assert Federation.from_arrays(mixed, clients=2).examples(1).x.tolist() == [[1, 2.5, 1]]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, torch.FloatTensor])
def test_what_is_standardised_is_rounded_last(kind):
    """1.6e9 + k are all one float32."""
    seconds = 1.6e9 + np.arange(60.0)[:, None]
    fed = Federation.from_arrays(seconds, Y, 3, test=(kind(seconds[:6]), Y[:6]), standardise=True)
    assert fed.table.x.dtype == fed.test.x.dtype == torch.float32
    assert len(fed.table.x.unique()) == 60


def test_text_may_be_bytes_as_hdf5_holds_it():
    names = np.array([b"\xc3\xa9el", b"cat"] * 30)
    for given in (names, names.astype(object)):
        fed = Federation.from_arrays(X, given, groups=given, test=(X[:2], given[:2]))
        assert fed.names == ("cat", "éel")
        assert fed.info["labels"] == ["cat", "éel"]
        assert fed.test.y.tolist() == [1, 0]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, float, object])
def test_groups_that_are_numbers_have_one_name_in_arrays_and_tables(kind):
    groups = np.array([3, 10] * 30).astype(kind)
    assert Federation.from_arrays(X, Y, groups=groups).names == ("3", "10")
    assert Federation.from_pandas(frame(ward=groups), "ill", "ward").names == ("3", "10")
    assert Federation.from_arrays(X, Y, groups=groups, test="3").names == ("10",)
    assert Federation.from_arrays(X, Y, groups=np.array([0.5, 1.0] * 30, dtype=np.float32)).names == ("0.5", "1")


def test_fractions_and_seeds_may_be_numbers_of_numpy():
    plain = {"test": 0.25, "public": 0, "val": 0.125, "seed": 3, "partition": Dirichlet(0.5)}
    own = {"test": np.float32(0.25), "public": np.int64(0), "val": np.float64(0.125), "seed": np.int32(3)}
    for y in (Y, Y.astype(str)):
        there = Federation.from_arrays(X, y, np.int64(3), **own, partition=Dirichlet(np.float32(0.5)))
        here = Federation.from_arrays(X, y, 3, **plain)
        assert there.sha256 == here.sha256
        assert json.dumps(there.info) == json.dumps(here.info)
    with pytest.raises(ConfigError, match=r"give shared data as \(x, y\), not np.float32\(0.25\)"):
        Federation.from_clients([(X, Y)], test=np.float32(0.25))


def test_groups_that_are_numbers_are_in_the_order_of_numbers():
    for kind in (int, object):
        fed = Federation.from_arrays(X, Y, groups=(np.arange(60) % 12).astype(kind))
        assert fed.names == tuple(map(str, range(12)))


def test_arrays_may_come_from_another_kind_of_processor():
    fed = Federation.from_arrays(X.astype(">f8"), Y.astype(">i4"), 3)
    assert fed.sha256 == Federation.from_arrays(X, Y, 3).sha256


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": X * 1e300}, r"'x' holds numbers beyond 3\.4e\+38.*torch\.tensor"),
        ({"x": np.full((60, 1), 2**63, np.uint64)}, "'x' holds 9223372036854775808.*largest of int64"),
        ({"x": torch.tensor(X + 1j)}, "complex128, and samples are dense real numbers.*view_as_real"),
        ({"x": torch.tensor(X).to_sparse()}, r"sparse_coo.*to_dense\(\)"),
        ({"x": np.ma.masked_array(X, mask=X > 1)}, r"masked array, .* values hidden; fill them, as in values\.filled"),
        ({"x": [[1.0, None]] * 60}, r"empty entries \(None\)"),
        ({"x": [{"a": 1}] * 60}, "holds dict objects"),
        ({"test": (X[:5], Y[:5].astype(float))}, r"test: the field 'y' is float32, and int64 elsewhere.*y\.to"),
        ({"test": (torch.tensor(X), Y)}, "test: the field 'x' is float64, and float32 elsewhere"),
        ({"test": (X[:0], Y[:0])}, "test: no samples$"),
        ({"classes": 0}, "1 or more classes; given classes=0"),
    ],
)
def test_arrays_that_are_refused(given, says):
    with pytest.raises(FedloomError, match=says):
        Federation.from_arrays(**{"x": X, "y": Y, "clients": 4, **given})


def test_sparse_matrices_are_named():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(DataError, match=r"csr_matrix objects.*values\.toarray\(\)"):
        Federation.from_arrays(sparse.csr_matrix(X), Y, 4)


def test_what_is_shared_is_like_the_clients_samples_however_they_come():
    clients = [(X[:30], Y[:30]), (X[30:], Y[30:])]
    assert len(Federation.from_clients(clients, test=(X[:5], Y[:5])).test) == 5
    with pytest.raises(DataError, match="test: samples have"):
        Federation.from_clients(clients, test=(X[:5, :2], Y[:5]))
    with pytest.raises(DataError, match="client 1: the field 'x' is int64, and float32 elsewhere"):
        Federation.from_clients([clients[0], (X[30:].astype(int), Y[30:])])
    with pytest.raises(DataError, match="for all clients at once"):
        Federation.from_clients([(X[:2], ["a", "b"])])


def test_the_servers_own_samples_may_say_more_and_not_less():
    table, offsets = Data(x=torch.zeros(4, 2), y=torch.tensor([0, 1, 0, 1])), np.array([0, 2, 4])
    more = Federation.from_offsets(table, offsets, validation=table.replace(cluster=table.y))
    assert set(more.validation) == {"x", "y", "cluster"}
    with pytest.raises(DataError, match="validation: samples have"):
        Federation.from_offsets(table, offsets, validation=table.replace(x=torch.zeros(4, 3)))


def test_a_client_that_cannot_be_made_is_named():
    fed = Federation.generated(4, 3, lambda id: Data(x=torch.ones(3, 1) / (id - 2 or [])))
    with pytest.raises(DataError, match=r"client 2: make\(2\) raised TypeError: .*") as raised:
        fed.local(2)
    assert isinstance(raised.value.__cause__, TypeError)


# ------------------------------------------------------------------------------------------------------------- frames


def test_large_numbers_that_differ_little_stay_apart():
    """1.6e9 + k are all one float32."""
    seconds = 1.6e9 + RNG.permutation(60)
    fed = Federation.from_pandas(frame(age=seconds), "ill", clients=3, client_test=0.0, ordered=True)
    assert fed.table.x.dtype == torch.float32
    assert len(fed.table.x[:, 0].unique()) == 60


def test_a_target_that_is_standardised_is_rounded_last():
    seconds = frame(ill=1.6e9 + np.arange(60.0))
    y = tabular("own", seconds, Table("ill", task="regression"), origin="", licence="").train.y
    assert y.dtype == torch.float32
    assert len(y.unique()) == 60


def test_a_value_is_one_category_however_it_is_written():
    def columns(values):
        return Federation.from_pandas(frame(kind=values), "ill", clients=3, drop=["ward"]).info["columns"]

    assert columns([1, "1", 2] * 20) == ["age", "kind=1", "kind=2"]
    assert columns(["missing", None, "a"] * 20) == ["age", "kind=a", "kind=missing"]
    assert Federation.from_pandas(frame(ill=[1, "1", 2] * 20), "ill", clients=3).classes == 2


@pytest.mark.parametrize("kind", [np.float32, np.float16, "category", "Float64"])
def test_numbers_of_any_width_are_categories_and_labels(kind):
    odd = pd.Series(np.float32([1, 2.5, 4] * 20)).astype(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fed = Federation.from_pandas(frame(room=odd), "ill", clients=3, categorical=["room"], drop=["kind", "ward"])
    assert fed.info["columns"] == ["age", "room=1", "room=2.5", "room=4"]
    assert fed.table.x[:, 1:].sum() == 60
    assert Federation.from_pandas(frame(ill=odd), "ill", clients=3, task="classification").classes == 3


def test_columns_without_names_are_named_by_their_places():
    numbered = pd.DataFrame(np.c_[X[:, :2], np.arange(60) % 3, Y])
    fed = Federation.from_pandas(numbered, "3", "2")
    assert (fed.info["columns"], len(fed)) == (["0", "1"], 3)
    assert tabular("own", numbered, Table("3", "2"), origin="", licence="").group_names == fed.names


def test_numbers_that_come_as_objects_are_numbers():
    objects = frame(count=np.arange(60) % 7, ill=X[:, 1]).drop(columns=["kind", "ward"]).astype(object)
    fed = Federation.from_pandas(objects, "ill", clients=3)
    assert fed.info["columns"] == ["age", "count"]
    assert fed.table.y.is_floating_point()


@pytest.mark.parametrize("odd", ["?", "1.5 kg"])
def test_numbers_with_some_text_among_them_are_no_categories(odd):
    ages = [odd, *(str(k % 25) for k in range(59))]
    with pytest.raises(
        DataError, match=r"'age' has 26 different texts .*to_numeric\(frame\['age'\], errors='coerce'\)"
    ):
        Federation.from_pandas(frame(age=ages), "ill", clients=3)
    with pytest.raises(DataError, match=r"the target 'ill' has 26 different texts .*task='classification'"):
        Federation.from_pandas(frame(ill=ages), "ill", clients=3)
    assert Federation.from_pandas(frame(ill=ages), "ill", clients=3, task="classification").classes == 26


def test_categories_that_were_never_seen_are_said():
    with pytest.warns(FedloomWarning, match=r"test: column 'kind': 60 of 60 values are none.*\['z'\]; they are 0"):
        fed = Federation.from_pandas(frame(), "ill", clients=3, test=frame(kind="z"))
    assert fed.test.x[:, 1:4].sum() == 0


def test_many_texts_are_categories_only_if_they_are_said_to_be():
    names = [f"p{i}" for i in range(60)]
    with pytest.raises(DataError, match=r"'name' has 60 different texts in 60 rows.*drop=\['name'\]"):
        Federation.from_pandas(frame(name=names), "ill", clients=3)
    fed = Federation.from_pandas(frame(name=names), "ill", clients=3, categorical=["name"])
    assert len(fed.info["columns"]) == 1 + 3 + 2 + 60


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda: pd.concat([frame(), frame()[["age"]]], axis=1), {}, "several columns are called 'age'"),
        (lambda: frame().T.set_index([list("abcd")], append=True).T, {}, "names of several levels"),
        (lambda: frame(day=pd.date_range("2020", periods=60)), {}, r"'day' holds times.*dt\.dayofyear"),
        (lambda: frame(ill=pd.date_range("2020", periods=60)), {}, "the target 'ill' holds times"),
        (lambda: frame(ill=[f"p{i}" for i in range(60)]), {}, "'ill' has 60 different texts .*task='classification'"),
        (lambda: frame(tags=[[1, 2]] * 60), {}, "'tags' holds list objects"),
        (lambda: frame(ill=[[1, 2]] * 60), {}, "'ill' holds list objects"),
        (lambda: frame(z=1j), {}, "'z' holds complex numbers"),
        (
            lambda: frame(age=["12"] * 30 + ["n/a"] * 30),
            {"target": "age", "task": "regression"},
            "30 of 60 rows.*'n/a'",
        ),
        (frame, {"drop": "age"}, r"drop is a list of columns: drop=\['age'\]"),
        (lambda: frame(y="q"), {"keep": ["y"]}, "'y' is taken; rename it"),
        (lambda: frame(size="q"), {"keep": ["size"]}, "'size' is taken; rename it"),
    ],
)
def test_frames_that_are_refused(make, options, says):
    with pytest.raises(FedloomError, match=says):
        Federation.from_pandas(make(), **{"target": "ill", "clients": 3, **options})


def test_odd_frames_that_are_read():
    given = frame(
        kind=pd.Categorical(["b", "a", None] * 20, categories=["b", "a", "never"]),
        count=pd.array([1, None, 3] * 20, dtype="Int64"),
        old=RNG.random(60) > 0.5,
    )
    twice = pd.concat([given[:30], given[:30]])  # an index that repeats itself
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (given, twice, given.set_index(pd.Index(RNG.permutation(60) * 3))):
            fed = Federation.from_pandas(each, "ill", "ward", missing="mean", test=0.2)
            assert fed.names == ("e", "w")
            assert fed.info["columns"] == ["age", "count", "old", "kind=a", "kind=b", "kind=missing"]
            assert fed.table.x.isfinite().all()


def test_a_file_named_on_the_line_may_leave_columns_out(tmp_path):
    path = tmp_path / "wards.csv"
    frame(name=[f"p{i}" for i in range(60)], room=np.arange(60) % 4, flat=3.5).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"'name' has 60 different texts.* ,na=TEXT,missing=mean"):
        load(f"{path}:target=ill")
    assert load(f"{path}:target=ill,drop=name+age,categorical=room+ward").columns[:2] == ("flat", "kind=a")
    assert load(f"{path}:target=age,drop=name,na=a+b,missing=mean").columns[2:4] == ("kind=c", "kind=missing")
    same = load(f"{path}:target=flat,drop=name")  # a target that never varies
    assert same.notes == {"target_mean": 3.5, "target_std": 1.0}
    assert not same.train.y.any()


# --------------------------------------------------------------------------------------- files and other libraries


def test_a_mark_may_stand_for_an_empty_cell(tmp_path):
    path = tmp_path / "heart.csv"
    path.write_text("vessels,ill\n?,no\n2,yes\n-9,no\n4,yes\n")
    assert load(f"{path}:target=ill").columns[-1] == "vessels=?"
    read = load(f"{path}:target=ill,na=?+-9,missing=mean")
    assert read.columns == ("vessels",)
    assert read.train.x[:, 0].tolist() == pytest.approx([0, -1, 0, 1])


def test_damaged_tables_are_named(tmp_path):
    packed = gzip.compress(frame().to_csv(index=False).encode())
    flipped = bytes(255 - b if 60 <= i < 64 else b for i, b in enumerate(packed))
    for name, content in (("cut", packed[:-40]), ("flipped", flipped)):
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"'{name}.csv.gz' is not a readable csv table"):
            Federation.from_file(path, "ill", clients=3)
        with pytest.raises(DataError, match="is not a readable csv table"):
            load(f"{path}:target=ill")


def test_row_numbers_that_pandas_wrote_are_no_input(tmp_path):
    frame().sample(frac=1, random_state=0).to_csv(tmp_path / "a.csv")
    fed = Federation.from_file(tmp_path / "a.csv", "ill", "ward")
    assert fed.info["columns"] == ["age", "kind=a", "kind=b", "kind=c"]


@pytest.mark.parametrize(
    "text",
    [
        '\ufeffage,kind,ill\r\n4,"a, b",no\r\n6,c,yes\r\n',
        'age, kind, ill\n4, "a, b", no\n6, c, yes\n',
        'age,kind,ill\n0,"a, b",no,\n1,c,yes,\n',
        'age,kind,ill,,\n4,"a, b",no,,\n6,c,yes,,\n',
        'age,kind,ill,\n4,"a, b",no\n6,c,yes\n',
        '"age","kind","ill"\n"1",4,"a, b","no"\n"2",6,"c","yes"\n',
    ],
    ids=[
        "byte order mark",
        "spaces after commas",
        "commas at the end",
        "and in the header",
        "a comma in the header",
        "row names without a header",
    ],
)
def test_tables_as_other_programs_write_them(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    read = load(f"{path}:target=ill")
    assert (read.columns, read.labels) == (("age", "kind=a, b", "kind=c"), ("no", "yes"))
    assert read.train.x.tolist() == [[-1, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_cell_too_many_in_the_first_row_does_not_make_names_of_the_first_column(tmp_path, pack):
    path = tmp_path / ("a.csv" if pack is bytes else "a.csv.gz")
    path.write_bytes(pack(b"age,kind,ill\n4,a,no,x\n\n6,b,yes\n"))
    with pytest.raises(DataError, match="header names 3 columns, row 1 has 4 cells, and row 2 has 3"):
        read_frame(path, "csv")


def test_a_code_is_one_category_in_the_longest_table(tmp_path):
    path, blank = tmp_path / "a.csv", "," * 64
    path.write_text(f"code,ill{blank}\n" + f"007,no{blank}\n" * 9000 + f"A7,yes{blank}\n" * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_frame(path, "csv")["code"].unique()) == ["007", "A7"]


def test_arrays_of_a_file_are_named_by_target_and_group(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, label_train=Y, who_train=Y, x_test=X[:4], label_test=Y[:4], who_test=Y[:4])
    fed = Federation.from_file(path, "label", "who")
    assert (set(fed.table), set(fed.test), len(fed), fed.classes) == ({"x", "y"}, {"x", "y"}, 3, 3)
    with pytest.raises(DataError, match="no array 'lable'; it has x, label, who"):
        Federation.from_file(path, "lable", clients=3)
    np.savez(path, x=X, y=Y, x_train=X[:9], y_train=Y[:9])
    with pytest.raises(DataError, match="both 'x' and 'x_train'"):
        Federation.from_file(path, clients=3)
    path.write_bytes(b"")
    np.save(tmp_path / "b.npy", X)
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(DataError, match="a single array"):
        Federation.from_file(path, clients=3)


def test_files_of_another_set_are_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLOOM_DATA", str(tmp_path))
    for folder, file, content in (
        ("heart", "heart.csv.gz", gzip.compress(b"age,disease\n1,0\n")),
        ("adult", "adult.csv.gz", gzip.compress(b"age,income\n1,0\n")),
        ("gsm8k", "train.jsonl.gz", gzip.compress(b"{broken")),
        ("mnist", "train-images-idx3-ubyte.gz", gzip.compress(bytes([0, 0, 8, 200, 0]))),
        ("student", "student.csv.gz", gzip.compress(b"a,b\n" * 9)[:-9]),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(content)
        with pytest.raises(FedloomError):
            load(folder)
    (tmp_path / "har").mkdir()
    np.savez(tmp_path / "har" / "har.npz", x=X)
    with pytest.raises(DataError, match="not those of 'har', or damaged: KeyError: 'subject"):
        load("har")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DataLoader(TensorDataset(torch.tensor(X))), r"given DataLoader.*loader\.dataset"),
        (lambda: [(X[0], 1), (X[1],)], r"item 1 has the parts \[0\], and item 0 \[0, 1\]"),
        (lambda: [{"x": X[0], "y": 1}, {"x": X[1]}], r"item 1 has the parts \['x'\]"),
    ],
)
def test_datasets_that_are_refused(make, says):
    with pytest.raises(DataError, match=says):
        Federation.from_torch(make(), 2)


def test_a_dataset_stands_for_its_arrays_wherever_data_are_given():
    whole = TensorDataset(torch.tensor(X).float(), torch.tensor(Y))
    parts = Federation.from_clients([Subset(whole, range(20)), Subset(whole, range(20, 60))], client_test=0.0)
    assert [parts.size(i) for i in parts.ids] == [20, 40]
    assert torch.equal(parts.local(1).train.y.sort().values, torch.tensor(Y[20:]).sort().values)
    tested = Federation.from_arrays(X, Y, 3, test=whole)
    assert tested.test is not None
    assert len(tested.test) == 60
    with pytest.raises(DataError, match=r"client 1: .*a DataLoader's dataset is loader\.dataset"):
        Federation.from_clients([whole, DataLoader(whole)])


@pytest.mark.parametrize("kind", [TensorDataset, Dataset])
def test_items_are_asked_for_where_a_dataset_makes_them(kind):
    class Doubled(kind):
        def __init__(self):
            self.tensors = (torch.tensor(X), torch.tensor(Y))

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return 2 * self.tensors[0][i], self.tensors[1][i]

    doubled = Federation.from_torch(Doubled(), 3, client_test=0.0).table.x
    assert torch.equal(doubled.sum(0), 2 * Federation.from_arrays(torch.tensor(X), Y, 3).table.x.sum(0))


class Picture:
    """What is asked of an image of Pillow; `shown` is what it converts to."""

    def __init__(self, pixels, mode, shown=None):
        self.pixels, self.mode, self.shown = pixels, mode, shown

    def getbands(self):
        return tuple(self.mode)

    def convert(self, mode):
        assert mode == self.shown.mode
        return self.shown

    def __array__(self, dtype=None, copy=None):
        return self.pixels


GREEN = Picture(np.full((4, 5, 3), (0, 255, 0), np.uint8), "RGB")
GREY = Picture(np.full((4, 5), 255, np.uint8), "L")
PALETTE = Picture(np.full((4, 5), 7, np.uint8), "P", GREEN)


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (GREEN, [0, 1, 0]),
        (GREY, [1]),
        (PALETTE, [0, 1, 0]),
        (Picture(np.full((4, 5), True), "1", GREY), [1]),
        (Picture(np.full((4, 5), 65535, np.uint16), "I;16"), [1]),
        (Picture(np.full((4, 5), 0.25, np.float32), "F"), [0.25]),
    ],
    ids=lambda given: getattr(given, "mode", ""),
)
def test_images_of_pillow_are_floats_with_channels_first(image, channels):
    table = Federation.from_torch([(image, k % 2) for k in range(6)], 2).table
    assert table.x.dtype == torch.float32
    assert torch.equal(table.x, torch.tensor(channels).float().view(1, -1, 1, 1).expand(6, -1, 4, 5))
    columns = {"v": [image] * 6, "k": [0, 1] * 3}
    made = type("Split", (), {"column_names": [*columns], "__getitem__": lambda self, name: columns[name]})()
    assert torch.equal(Federation.from_huggingface(made, 2, x="v", y="k").table.x, table.x)


def test_an_image_that_is_the_label_is_the_class_of_each_pixel():
    table = Federation.from_torch([(GREEN, PALETTE)] * 6, 2).table
    assert torch.equal(table.y, torch.full((6, 4, 5), 7))


def test_hugging_face_columns():
    hf = pytest.importorskip("datasets")

    def made(**columns):
        return hf.Dataset.from_dict({"v": X.tolist(), "l": Y.tolist(), **columns})

    def read(dataset, **options):
        return Federation.from_huggingface(dataset, 3, **{"x": "v", "y": "l", **options})

    names = ["eel", "cat", "dog"]
    named = read(made(l=[names[k] for k in Y]), test=made(l=["dog"] * 60))
    assert named.info["labels"] == ["cat", "dog", "eel"]
    assert set(named.test.y.tolist()) == {1}
    declared = read(made().cast_column("l", hf.ClassLabel(names=[*names, "fox"])))
    assert (declared.info["labels"], declared.classes) == ([*names, "fox"], 4)
    for dataset, options, says in (
        (made(v=["a", None] * 30), {}, r"'v' is empty in 30 of 60 rows \(first: row 1\).*filter"),
        (made(v=[1.0, None] * 30), {}, "'v' is empty in 30 of 60"),
        (hf.DatasetDict(train=made()), {}, r"has splits \(train\).*dataset\['train'\]"),
        (made(), {"group": "who"}, "unknown column 'who'"),
        (made(), {"length": 0}, "length=1 or more"),
        (frame(), {}, "given DataFrame.*from_pandas"),
    ):
        with pytest.raises(FedloomError, match=says):
            read(dataset, **options)
