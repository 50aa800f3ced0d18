"""Federations: who holds what, that splits never overlap, what a population costs, and what is refused."""

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from fedloom.data import Data, Dirichlet, Federation, Local
from fedloom.data.arrange import client_names
from fedloom.data.population import split_sizes
from fedloom.errors import ConfigError, DataError, FedloomError


def numbered(n: int = 200, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that are their own row number, so that a sample can be followed."""
    return torch.arange(n, dtype=torch.float32).view(-1, 1), torch.arange(n) % classes


def rows_of(data: Data | None) -> list[int]:
    return [] if data is None else [int(v) for v in data.x.flatten()]


# ------------------------------------------------------------------------------------------------------------- splits


@settings(max_examples=80, deadline=None)
@given(n=st.integers(0, 500), val=st.floats(0, 0.5), test=st.floats(0, 0.49))
def test_split_sizes_add_up_and_leave_something_to_train_on(n, val, test):
    train, vals, tests = split_sizes(n, val, test)
    assert train + vals + tests == n
    assert min(train, vals, tests) >= 0
    assert train >= 1 or n == 0
    arrays = split_sizes(np.array([n, n]), val, test)
    assert [int(a[1]) for a in arrays] == [train, vals, tests]
    if n * (1 - val - test) >= 2:
        assert abs(tests - n * test) <= 0.5
        assert abs(vals - n * val) <= 0.5


@pytest.mark.parametrize(("n", "val", "test"), [(10, 0.45, 0.5), (3, 0.4, 0.4), (2, 0.9, 0.05), (1, 0.5, 0.4)])
def test_val_gives_way_before_train_does_one_by_one_and_all_at_once(n, val, test):
    one = split_sizes(n, val, test)
    assert one[0] == 1
    assert [part.tolist() for part in split_sizes(np.array([n]), val, test)] == [[part] for part in one]


@settings(max_examples=30, deadline=None)
@given(
    clients=st.integers(1, 30),
    partition=st.sampled_from(["iid", "dirichlet:0.2", "dirichlet:0.2,least=0", "shards:2", "quantity:0.5"]),
    shared=st.sampled_from([{}, {"test": 0.2}, {"test": 0.1, "public": 0.1, "validation": 0.05}]),
    val=st.sampled_from([0.0, 0.15]),
    seed=st.integers(0, 10_000),
)
def test_every_sample_is_in_exactly_one_place(clients, partition, shared, val, seed):
    x, y = numbered()
    fed = Federation.from_arrays(x, y, clients, partition, val=val, client_test=0.2, seed=seed, **shared)
    found = rows_of(fed.test) + rows_of(fed.public) + rows_of(fed.validation)
    for i in range(len(fed)):
        local = fed.local(i)
        found += rows_of(local.train) + rows_of(local.val) + rows_of(local.test)
        assert fed.size(i) == len(local) == len(local.train)
        for part in (local, local.val, local.test):
            assert torch.equal(part.y, part.x.flatten().long() % 4)  # fields stay together
    assert sorted(found) == list(range(200))
    assert fed.sizes().tolist() == [fed.size(i) for i in range(len(fed))]
    assert fed.classes == 4


def test_locals_are_views_of_one_table():
    x, y = numbered()
    fed = Federation.from_arrays(x, y, 10, "dirichlet:0.3", val=0.1)
    table = fed.table
    assert table is not None
    for i in (0, 4, 9):
        local = fed.local(i)
        assert isinstance(local, Local)
        assert local.train is local
        assert local.base is table
        for part in (local, local.val, local.test):
            assert part.base is table
            assert part.x.untyped_storage().data_ptr() == table.x.untyped_storage().data_ptr()
            assert torch.equal(table.x[part.offset : part.offset + len(part)], part.x)


def test_a_seed_fixes_everything_and_each_seed_differs():
    x, y = numbered()
    make = lambda seed: Federation.from_arrays(x, y, 10, "dirichlet:0.3", test=0.1, seed=seed)  # noqa: E731
    assert make(1).sha256 == make(1).sha256 != make(2).sha256
    assert make(np.int64(1)).sha256 == make(1).sha256
    assert torch.equal(make(1).table.x, make(1).table.x)
    other = Federation.from_arrays(x, y, 10, "dirichlet:0.3", test=0.1, seed=1, client_test=0.3)
    assert other.sha256 != make(1).sha256
    moved = x.clone()
    moved[7] += 1
    assert Federation.from_arrays(moved, y, 10, "dirichlet:0.3", test=0.1, seed=1).sha256 != make(1).sha256


def test_ordered_clients_test_on_their_latest_samples():
    x, y = numbered(100)
    fed = Federation.from_arrays(x, y, partition="natural", groups=np.arange(100) % 5, test=0.2, val=0.1, ordered=True)
    for i in range(5):
        local = fed.local(i)
        order = rows_of(local) + rows_of(local.val) + rows_of(local.test)
        assert order == sorted(order)
        held = [r for r in rows_of(fed.test) if r % 5 == i]
        assert len(held) == 4
        assert min(held) > max(order)


def test_hold_outs_take_an_equal_share_of_every_group_and_empty_none():
    x, y = numbered(101)
    groups = np.where(np.arange(101) < 100, "big", "one")
    fed = Federation.from_arrays(x, y, partition="natural", groups=groups, test=0.5)
    assert fed.names == ("big", "one")
    assert fed.size(1) == 1
    assert len(fed.test or ()) == 50


def test_a_group_can_be_the_test_set():
    x, y = numbered(90)
    groups = np.array(["art", "photo", "sketch"]).repeat(30)
    fed = Federation.from_arrays(x, y, partition="domains", groups=groups, test="photo")
    assert rows_of(fed.test) == list(range(30, 60))
    assert fed.names == ("art", "sketch")
    with pytest.raises(ConfigError, match="names no group; groups: art, photo, sketch"):
        Federation.from_arrays(x, y, partition="domains", groups=groups, test="painting")


def test_a_fraction_of_more_than_a_test_group_leaves_is_refused():
    x, y = numbered(90)
    groups = np.array(["art", "photo", "sketch"]).repeat([10, 60, 20])
    hold = lambda public: Federation.from_arrays(x, y, 2, "iid", groups=groups, test="photo", public=public)  # noqa: E731
    assert len(hold(0.3).public) == 27
    for public in (0.4, 1 / 3):
        with pytest.raises(DataError, match=r"public=.* of 90 samples is 3\d, .*: 30 are not held out yet"):
            hold(public)


def test_client_names_follow_their_groups():
    x, y = numbered(60)
    speakers = np.array(["zoe", "ann", "bob"])[np.arange(60) % 3]
    fed = Federation.from_arrays(x, y, partition="natural", groups=speakers)
    assert fed.names == ("ann", "bob", "zoe")
    for i, name in enumerate(fed.names):
        assert {speakers[r] for r in rows_of(fed.local(i))} == {name}
    assert Federation.from_arrays(x, y, 6, "domains", groups=speakers).names == (
        "ann 1", "bob 1", "zoe 1", "ann 2", "bob 2", "zoe 2",
    )  # fmt: skip
    assert Federation.from_arrays(x, y, 2, "natural", groups=speakers).names is None
    empty = np.array([0, 2, 2, 4])
    assert client_names(np.array([0, 0, 1, 1]), ("ann", "bob"), empty) is None


# ---------------------------------------------------------------------------------------------------- a lazy population


def test_a_million_generated_clients_cost_nothing():
    def make(id):
        x, y = numbered(50)
        return x + id, y

    tracemalloc.start()
    fed = Federation.generated(1_000_000, 50, make, classes=4)
    built = tracemalloc.get_traced_memory()[0]
    local = fed.local(999_999)
    fed.size(123_456)
    fed.sizes([5, 900_000])
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(fed) == 1_000_000
    assert fed.nbytes == 0
    assert built < 20_000
    assert used - built < 200_000
    assert len(local) == 40
    assert len(local.test) == 10
    assert float(local.x.min()) == 999_999


def test_a_million_stored_clients_cost_eight_bytes_each():
    n = 1_000_000
    table = Data(x=torch.zeros(n, 1))
    offsets = np.arange(n + 1)
    tracemalloc.start()
    fed = Federation.from_offsets(table, offsets)
    built, peak = tracemalloc.get_traced_memory()
    for i in range(0, n, 10_007):
        fed.local(i)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert fed.nbytes <= 8 * (n + 1)
    assert built <= 16 * n
    assert peak <= 64 * n
    assert after - built < 10_000  # nothing stays of the clients that were looked at
    assert fed.table is not None
    assert fed.table.x.data_ptr() == table.x.data_ptr()


def test_generated_clients_keep_few_and_are_checked():
    made = []

    def make(id):
        made.append(id)
        n = 3 if id != 7 else 2
        return {"x": torch.full((n, 2), float("nan") if id == 5 else 1.0), "y": torch.full((n,), 9 if id == 6 else 0)}

    fed = Federation.generated(10, 3, make, classes=4, keep=2)
    fed.local(0), fed.local(0), fed.local(1), fed.local(2), fed.local(0)
    assert made == [0, 1, 2, 0]
    for id, says in ((5, "NaN or infinite"), (6, r"outside 0\.\.3"), (7, "gave 2 samples, and size says 3")):
        with pytest.raises(DataError, match=f"client {id}.*{says}"):
            fed.local(id)


def test_generated_clients_may_differ_in_size_and_shape():
    sizes = [1, 5, 0, 40]
    fed = Federation.generated(4, sizes, lambda i: torch.zeros(sizes[i], i + 1), val=0.1)
    assert fed.sizes().tolist() == [1, 4 - 1, 0, 28]
    assert fed.local(3).x.shape == (28, 4)
    assert Federation.generated(3, lambda id: id + 1, lambda id: torch.zeros(id + 1, 2)).sizes().tolist() == [1, 2, 2]
    assert Federation.generated(3, np.int64(5), lambda id: torch.zeros(5, 2)).sizes().tolist() == [4] * 3
    for sizes, said in (([5, 5, 5.5], "float64 of shape"), ([5, 5], "int64 of shape")):
        with pytest.raises(DataError, match=f"one size per client, a whole number: given {said}"):
            Federation.generated(3, sizes, lambda id: torch.zeros(5, 2))
    with pytest.raises(DataError, match="1 of 3 client sizes are negative"):
        Federation.generated(3, [1, -1, 2], lambda i: torch.zeros(1, 1))
    with pytest.raises(DataError, match="for 3 clients"):
        Federation.generated(3, [1, 2], lambda i: torch.zeros(1, 1))
    with pytest.raises(DataError, match="client 1: a client has 0 or more samples; its size is -1"):
        Federation.generated(3, lambda id: 1 - 2 * id, lambda id: torch.zeros(1, 1)).sizes()


def test_the_hash_of_a_generated_population_is_of_its_recipe():
    def ones(id):
        return torch.ones(4, 2)

    def zeros(id):
        return torch.zeros(4, 2)

    made = Federation.generated(100, 4, ones, recipe="r").sha256
    assert made == Federation.generated(100, 4, ones, recipe="r").sha256
    others = [
        Federation.generated(101, 4, ones, recipe="r"),
        Federation.generated(100, 4, ones, recipe="s"),
        Federation.generated(100, 4, zeros, recipe="r"),
        Federation.generated(100, 4, ones, recipe="r", val=0.3),
    ]
    assert len({made, *(f.sha256 for f in others)}) == 5


# --------------------------------------------------------------------------------------------------------- other doors


def test_clients_that_are_given_keep_their_data_and_names():
    x, y = numbered(30)
    given_ = {"north": (x[:10], y[:10]), "south": Data(x=x[10:12], y=y[10:12]), "east": {"x": x[12:], "y": y[12:]}}
    fed = Federation.from_clients(given_, client_test=0.5)
    assert fed.names == ("north", "south", "east")
    assert fed.sizes().tolist() == [5, 1, 9]
    assert sorted(rows_of(fed.local(1)) + rows_of(fed.local(1).test)) == [10, 11]
    assert Federation.from_clients([(x, y), (x, y)]).names is None
    ordered = Federation.from_clients([(x, y)], ordered=True)
    assert rows_of(ordered.local(0)) == list(range(24))
    with pytest.raises(DataError, match="client 1: no samples"):
        Federation.from_clients([(x, y), (x[:0], y[:0])])
    assert Federation.from_clients([(x, y), (x[:0], y[:0])], empty=True).info["empty_clients"] == 1
    with pytest.raises(DataError, match=r"client 1.*generated"):
        Federation.from_clients([(x, y), (torch.zeros(4, 2), y[:4])])


def test_pytorch_datasets():
    x, y = numbered(40)
    a = Federation.from_torch(TensorDataset(x, y), 5, test=TensorDataset(x[:4], y[:4]), seed=1)
    b = Federation.from_arrays(x, y, 5, test=(x[:4], y[:4]), seed=1)
    assert a.sha256 == b.sha256
    assert a.name == "TensorDataset"

    class Images(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return np.full((4, 4, 3), i, dtype=np.uint8), i % 3

    fed = Federation.from_torch(Images(), 3)
    assert fed.table is not None
    assert fed.table.x.shape == (12, 4, 4, 3)
    assert fed.classes == 3
    assert float(fed.table.x.max()) == pytest.approx(11 / 255)
    three = TensorDataset(x, y, y)
    with pytest.raises(ConfigError, match="3 parts"):
        Federation.from_torch(three, 5)
    assert set(Federation.from_torch(three, 5, fields=("x", "y", "sex")).examples(1)) == {"x", "y", "sex"}


def frame(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.normal(40, 10, n),
            "visits": rng.integers(0, 9, n),
            "kind": np.array(["a", "b", "c"])[np.arange(n) % 3],
            "ward": np.array(["east", "west"])[np.arange(n) % 2],
            "ill": np.array(["no", "yes"])[np.arange(n) % 2],
        }
    )


def test_frames_are_standardised_with_train_samples_alone():
    f = frame()
    f.loc[0, "age"] = 1e6  # an outlier that must not leak if it is in no train part
    fed = Federation.from_pandas(f, "ill", "ward", seed=0, test=f.iloc[:10])
    assert fed.names == ("east", "west")
    assert fed.info["columns"] == ["age", "visits", "kind=a", "kind=b", "kind=c"]
    train = torch.cat([fed.local(i).x for i in range(2)])
    assert train[:, :2].mean(0).abs().max() < 1e-5
    assert (train[:, :2].std(0, correction=0) - 1).abs().max() < 1e-5
    assert fed.info["labels"] == ["no", "yes"]
    assert fed.classes == 2
    everyone = torch.cat([fed.local(i).test.x for i in range(2)] + [train])
    assert everyone[:, :2].mean(0).abs().max() > 1e-4
    assert fed.test is not None
    assert fed.test.x.shape == (10, 5)


def test_frames_guess_the_task_and_keep_columns():
    f = frame()
    assert Federation.from_pandas(f, "age", clients=3).classes is None
    assert Federation.from_pandas(f, "visits", clients=3).classes == f["visits"].nunique()
    assert Federation.from_pandas(f, "visits", clients=3, task="regression").classes is None
    kept = Federation.from_pandas(f, "ill", clients=3, keep=["kind"], drop=["kind"], categorical=["visits"])
    assert kept.examples(5).kind.dtype == torch.int64
    assert "visits=0" in kept.info["columns"]
    assert "kind=a" not in kept.info["columns"]


def test_missing_numbers_are_an_error_until_asked_for():
    f = frame()
    f.loc[[3, 4], "age"] = np.nan
    f.loc[5, "kind"] = None
    with pytest.raises(DataError, match=r"2 missing numbers, by column: \{'age': 2\}; missing=\"mean\""):
        Federation.from_pandas(f, "ill", clients=3)
    fed = Federation.from_pandas(f, "ill", clients=3, missing="mean", client_test=0.0)
    assert fed.table is not None
    assert int((fed.table.x[:, 0] == 0).sum()) == 2
    assert "kind=missing" in fed.info["columns"]
    f.loc[6, "age"] = np.inf
    with pytest.raises(DataError, match="1 infinite numbers"):
        Federation.from_pandas(f, "ill", clients=3, missing="mean")
    f.loc[7, "ill"] = None
    with pytest.raises(DataError, match="'ill' is missing in 1 rows"):
        Federation.from_pandas(f.drop(columns="age"), "ill", clients=3)
    with pytest.raises(ConfigError, match=r"unknown column 'wart'.*'ward'"):
        Federation.from_pandas(f, "ill", "wart")
    with pytest.raises(DataError, match="labels are none of"):
        Federation.from_pandas(frame(), "ill", clients=3, test=frame().assign(ill="maybe"))


def test_files(tmp_path):
    f = frame()
    f.to_csv(tmp_path / "wards.csv", index=False)
    f.to_csv(tmp_path / "wards.csv.gz", index=False)
    expected = Federation.from_pandas(f, "ill", "ward")
    for name in ("wards.csv", "wards.csv.gz"):
        fed = Federation.from_file(tmp_path / name, "ill", "ward")
        assert fed.name == "wards"
        assert fed.names == expected.names
        assert fed.table is not None
        assert torch.allclose(fed.table.x, expected.table.x, atol=1e-5)
    x, y = (t.numpy() for t in numbered(30))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], who=np.arange(30) % 3)
    fed = Federation.from_file(tmp_path / "a.npz", group="who")
    assert len(fed) == 3
    assert len(fed.test or ()) == 6
    assert set(fed.examples(1)) == {"x", "y"}
    with pytest.raises(DataError, match="no array 'whom'"):
        Federation.from_file(tmp_path / "a.npz", group="whom")
    with pytest.raises(DataError, match="no file"):
        Federation.from_file(tmp_path / "b.npz")
    with pytest.raises(ConfigError, match="target="):
        Federation.from_file(tmp_path / "wards.csv")
    with pytest.raises(ConfigError, match=r"one file; given list.*sites/\*\.csv"):
        Federation.from_file(["a.csv", "b.csv"], "ill")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="not a readable"):
        Federation.from_file(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not a readable"):
        Federation.from_file(tmp_path / "d.npz")
    (tmp_path / "e.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"\.csv"):
        Federation.from_file(tmp_path / "e.txt")


def test_tables_of_clients_are_told_the_call_that_reads_them():
    ward = pd.DataFrame({"age": [1.0, 2.0], "ill": ["yes", "no"]})
    with pytest.raises(DataError, match=r"client 'a'.*given DataFrame; .*from_pandas"):
        Federation.from_clients({"a": ward, "b": ward})


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    frame().to_parquet(tmp_path / "wards.parquet")
    fed = Federation.from_file(tmp_path / "wards.parquet", "ill", "ward")
    assert torch.equal(fed.table.x, Federation.from_pandas(frame(), "ill", "ward").table.x)


def test_huggingface_datasets():
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["ab", "c", "défg"] * 4, "label": [0, 1, 2] * 4, "who": ["p", "q"] * 6}
    made = datasets.Dataset.from_dict(rows)
    fed = Federation.from_huggingface(
        made, partition="natural", x="text", y="label", group="who", length=4, test=made, client_test=0.0
    )
    assert fed.names == ("p", "q")
    assert fed.classes == 3
    assert len(fed.test) == 12
    assert fed.test.x[:3].tolist() == [[97, 98, 0, 0], [99, 0, 0, 0], [100, 0xC3, 0xA9, 102]]
    with pytest.raises(ConfigError, match="unknown column 'txt'"):
        Federation.from_huggingface(made, 2, x="txt")


def test_standardise_leaves_out_what_is_not_train():
    x = torch.cat([torch.randn(100, 2) * torch.tensor([3.0, 0.0]) + 5, torch.full((1, 2), 1e6)])
    fed = Federation.from_arrays(x, clients=4, standardise=True, ordered=True, partition="iid")
    train = torch.cat([fed.local(i).x for i in range(4)])
    assert train.mean(0).abs().max() < 1e-4
    assert abs(float(train[:, 0].std(correction=0)) - 1) < 1e-4
    assert torch.equal(train[:, 1], torch.zeros(len(train)))  # constant: shifted only
    with pytest.raises(DataError, match="columns of a table"):
        Federation.from_arrays(torch.randn(10, 2, 2), clients=2, standardise=True)


# ------------------------------------------------------------------------------------------------------------ refusals

X, Y = numbered(40)


def spoiled(value: float) -> torch.Tensor:
    x = X.clone()
    x[[3, 9], 0] = value
    return x


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"x": spoiled(float("nan")), "y": Y}, r"'x' has 2 values in 2 of 40 samples \(first: sample 3\).*NaN or inf"),
        ({"x": spoiled(float("-inf")), "y": Y}, "NaN or infinite"),
        ({"x": X, "y": spoiled(float("nan")).flatten()}, "'y' has 2 values"),
        ({"x": X, "y": Y[:-1]}, "differ in length: {'x': 40, 'y': 39}"),
        ({"x": X, "y": Y - 2}, r"20 values in 20 of 40 samples \(first: sample 0\) below 0"),
        ({"x": X, "y": Y, "classes": 3}, r"outside 0\.\.2 \(largest 3\)"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"x": X, "y": Y.view(-1, 1)}, r"y\.squeeze\(1\)"),
        ({"x": np.array(["a", "b"] * 20), "y": Y}, "tensors hold numbers.*from_pandas"),
        ({"x": X, "y": Y, "test": (spoiled(float("nan")), Y)}, "test: field 'x'"),
        ({"x": X, "y": Y, "test": (X.view(20, 2), Y[:20])}, "test: samples have"),
        ({"x": X, "y": Y, "groups": [1, 2]}, "2 groups for 40 samples"),
        ({"x": X, "y": Y, "groups": [1.0, float("nan")] * 20}, "20 of 40 are NaN"),
        ({"x": X, "y": Y, "clients": 41}, "41 clients 1 or more samples, and there are 40"),
        ({"x": X, "y": Y, "test": 1e-3}, "no sample at all"),
        ({"x": torch.tensor(3.0)}, "single number"),
    ],
)
def test_bad_data_is_refused_at_the_door(given_, says):
    with pytest.raises(DataError, match=says):
        Federation.from_arrays(**{"clients": 4, **given_})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val": -0.1}, "val is a fraction.*given -0.1"),
        ({"client_test": 1.0}, "client_test is a fraction"),
        ({"val": 0.5, "client_test": 0.5}, "nothing is left"),
        ({"test": 1.5}, "test is a fraction"),
        ({"test": 0.5, "public": 0.5}, "nothing is left"),
        ({"clients": 0}, "given 0"),
        ({"partition": "shard:2"}, "Did you mean 'shards'"),
        ({"test": "sketch"}, "give groups"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        Federation.from_arrays(X, Y, **{"clients": 4, **options})


def test_fields_may_not_shadow_words_of_data():
    with pytest.raises(DataError, match="'size' is a word of Data"):
        Federation.from_data({"x": X, "size": Y}, 4)
    with pytest.raises(DataError, match="given list"):
        Federation.from_data([1, 2], 4)


def test_offsets_are_checked():
    for offsets, says in (([0, 10], "from"), ([0, 50, 40], "never fall"), ([1, 40], "from"), ([40], "from")):
        with pytest.raises(DataError, match=says):
            Federation.from_offsets({"x": X}, offsets)
    for offsets, says in (([0, 10.5, 40], "float64 of shape"), ([[0, 10], [10, 40]], r"of shape \(2, 2\)")):
        with pytest.raises(DataError, match=f"a row of whole numbers; given .*{says}"):
            Federation.from_offsets({"x": X}, offsets)
    with pytest.raises(DataError, match="1 of 3 clients have no samples"):
        Federation.from_offsets({"x": X}, [0, 20, 20, 40])
    with pytest.raises(ConfigError, match="clients already hold"):
        Federation.from_offsets({"x": X}, [0, 40], test=0.2)


def test_clients_that_do_not_exist():
    fed = Federation.from_arrays(X, Y, 4)
    for id in (-1, 4):
        with pytest.raises(DataError, match=rf"client {id} does not exist.*0\.\.3"):
            fed.local(id)
        with pytest.raises(DataError, match=rf"client {id} does not exist"):
            fed.sizes([0, id, 1])


def test_every_client_has_a_name_or_none_has():
    with pytest.raises(DataError, match="1 names for 2 clients"):
        Federation.from_offsets({"x": X}, [0, 10, 40], names=("north",))
    with pytest.raises(DataError, match="3 names for 2 clients"):
        Federation.generated(2, 4, lambda id: torch.zeros(4, 2), names=("a", "b", "c"))


def test_empty_clients_are_legal_where_the_partition_says_so():
    fed = Federation.from_arrays(X, Y, 30, Dirichlet(0.01, least=0), seed=1)
    empty = fed.info["empty_clients"]
    assert empty > 0
    assert empty == sum(fed.size(i) == 0 for i in range(30))
    i = int(np.flatnonzero(fed.sizes() == 0)[0])
    assert len(fed.local(i)) == len(fed.local(i).test) == 0
    assert fed.local(i).x.shape == (0, 1)
    assert len(fed.examples(3)) >= 1


def test_one_sample_is_for_training():
    fed = Federation.from_arrays(X, Y, 40, val=0.4, client_test=0.4)
    assert fed.sizes().tolist() == [1] * 40


def test_types_are_what_models_take():
    fed = Federation.from_data(
        {
            "x": np.zeros((8, 2)),
            "y": np.zeros(8, np.int16),
            "mask": np.zeros((8, 2), bool),
            "w": torch.zeros(8).double(),
        },
        2,
    )
    kinds = {name: t.dtype for name, t in fed.examples(1).items()}
    assert kinds == {"x": torch.float32, "y": torch.int64, "mask": torch.bool, "w": torch.float64}
    pixels = Federation.from_arrays(np.full((4, 1, 2, 2), 255, np.uint8), [True, False] * 2, 2)
    assert float(pixels.examples(1).x.max()) == 1.0
    assert pixels.classes == 2
    assert Federation.from_arrays(np.zeros((4, 9), np.uint8), clients=2).examples(1).x.dtype == torch.int64


def test_pickling_a_client_takes_its_rows_alone():
    x = torch.randn(10_000, 10)
    fed = Federation.from_arrays(x, torch.zeros(10_000, dtype=torch.int64), 1000, val=0.1)
    sent = pickle.dumps(fed.local(3))
    again = pickle.loads(sent)
    assert len(sent) < 5_000
    assert torch.equal(again.x, fed.local(3).x)
    assert torch.equal(again.test.x, fed.local(3).test.x)
    assert len(pickle.dumps(fed.local(3).test)) < 5_000
    assert pickle.loads(pickle.dumps(fed)).sha256 == fed.sha256


def test_moving_keeps_what_it_is():
    fed = Federation.from_arrays(X, Y, 4, test=0.1)
    moved = fed.to("cpu")
    assert moved.sha256 == fed.sha256
    assert moved.info == fed.info
    assert len(moved) == 4
    exact = fed.to("cpu", torch.float64)
    assert exact.info["fields"]["x"].startswith("float64")
    assert fed.info["fields"]["x"].startswith("float32")


def test_groups_are_clients_where_no_partition_is_named():
    x, groups = torch.zeros(12, 2), ["b", "a", "c"] * 4
    assert Federation.from_arrays(x, groups=groups).names == ("a", "b", "c")
    assert len(Federation.from_arrays(x, clients=4, partition="iid", groups=groups)) == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, y: Federation.from_arrays((x, x[:, :1]), y), "fields of their own"),
        (lambda x, y: Federation.from_arrays(TensorDataset(x, y), clients=2), "from_torch"),
        (lambda x, y: Federation.from_arrays(x, y, clients=2.0), "clients=2.0"),
        (lambda x, y: Federation.from_arrays(x, y, clients=2, partition=0.1), "dirichlet:0.1"),
        (lambda x, y: Federation.from_arrays(x, y, groups=np.array(["a", None] * 6, dtype=object)), "6 of 12 are miss"),
        (lambda x, y: Federation.from_pandas(pd.DataFrame({"a": [], "y": []}), "y"), "no rows"),
    ],
)
def test_a_slip_with_the_data_is_answered_with_what_to_write(make, said: str):
    with pytest.raises(FedloomError) as raised:
        make(torch.zeros(12, 2), torch.arange(12) % 3)
    assert said in str(raised.value)
