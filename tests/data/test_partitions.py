"""Partitions: complete, disjoint, seeded, and skewed the way their docstrings say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data import (
    IID,
    ConceptShift,
    Data,
    Dirichlet,
    Domains,
    EmbeddingDirichlet,
    FeatureShift,
    Federation,
    Natural,
    Partition,
    Quantity,
    Shards,
    parse_partition,
)
from fedloom.data.partitions import PARTITIONS, dirichlet_split, numbers, rotate
from fedloom.data.partitions.dirichlet import _repair
from fedloom.errors import ConfigError, DataError


def samples(n: int = 300, classes: int = 5, groups: int = 6, seed: int = 0) -> Data:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    x = torch.randn(n, 1, 6, 6, generator=g) + y.view(-1, 1, 1, 1)
    return Data(x=x, y=y, group=torch.arange(n) % groups)


EVERY = [
    IID(),
    Dirichlet(0.1),
    Dirichlet(0.3, least=0),
    Dirichlet(0.3, by="group"),
    Dirichlet(0.3, by="embedding"),
    EmbeddingDirichlet(0.2, clusters=5),
    Shards(2),
    Quantity(0.4),
    Natural(),
    Domains(),
    FeatureShift("noise", 0.5, base=Dirichlet(0.3)),
    ConceptShift(3, base=Shards(2)),
]


def clients_for(partition: Partition) -> int:
    return {"natural": 4, "domains": 9}.get(partition.spec, 10)


@pytest.mark.parametrize("partition", EVERY, ids=str)
def test_every_partition_is_complete_disjoint_and_seeded(partition):
    data, clients = samples(), clients_for(partition)
    owner = partition(data, clients, rng=3)
    assert owner.dtype == torch.int64
    assert owner.shape == (300,)
    assert int(owner.min()) >= 0
    assert int(owner.max()) < clients
    assert torch.bincount(owner, minlength=clients).min() >= partition.least
    assert torch.equal(owner, partition(data, clients, rng=3))
    if not (partition.spec == "natural" and clients == 6):
        assert not torch.equal(owner, partition(data, clients, rng=4))


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_named_partition_is_in_the_list_above(name):
    assert name in {"rotation", "colour"} or any(p.spec == name for p in EVERY)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200),
    clients=st.integers(1, 40),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 1e6]),
    least=st.integers(0, 4),
    classes=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_dirichlet_respects_least_whatever_the_numbers(n, clients, alpha, least, classes, seed):
    data = Data(y=torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed)))
    if n < clients * least:
        with pytest.raises(DataError, match="use fewer clients"):
            Dirichlet(alpha, least=least)(data, clients, rng=seed)
        return
    owner = Dirichlet(alpha, least=least)(data, clients, rng=seed)
    assert len(owner) == n
    assert int(torch.bincount(owner, minlength=clients).min()) >= least


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), clients=st.integers(1, 50))
def test_iid_sizes_differ_by_one_at_most(n, clients):
    if n < clients:
        with pytest.raises(DataError):
            IID()(Data(x=torch.zeros(n)), clients)
        return
    sizes = torch.bincount(IID()(Data(x=torch.zeros(n)), clients), minlength=clients)
    assert int(sizes.max() - sizes.min()) <= 1


def test_dirichlet_alpha_goes_from_one_class_to_the_global_shares():
    data = samples(5000, classes=5)
    shares = []
    for alpha in (0.02, 1e6):
        owner = Dirichlet(alpha, least=0)(data, 10, rng=0)
        counts = np.stack([np.bincount(data.y[owner == i], minlength=5) for i in range(10)]).astype(float)
        held = counts.sum(1) > 0
        shares.append(counts[held] / counts[held].sum(1, keepdims=True))
    assert shares[0].max(1).mean() > 0.85
    everyone = np.bincount(data.y, minlength=5) / 5000
    assert np.abs(shares[1] - everyone).max() < 0.05


def test_shares_stay_equal_as_alpha_grows_without_bound():
    for alpha in (1e100, 1e308):
        sizes = torch.bincount(Quantity(alpha)(samples(), 6))
        assert sizes.max() - sizes.min() <= 1


def test_dirichlet_over_a_key_is_the_shared_routine():
    data = samples()
    expected = dirichlet_split(data.y.numpy(), 0.3, 8, 1, numbers(7, "partition"))
    assert np.array_equal(Dirichlet(0.3)(data, 8, rng=7), expected)
    # an encoder that returns the label far apart makes clusters that are the labels, whatever their numbers
    encoder = lambda x: (x.mean((1, 2, 3)).round() * 100).unsqueeze(1)  # noqa: E731
    clean = data.replace(x=data.y.view(-1, 1, 1, 1).expand(-1, 1, 6, 6).float())
    clusters = EmbeddingDirichlet(0.3, clusters=5, encoder=encoder).fit(clean, rng=7)(clean)
    pairs = set(zip(clusters.tolist(), clean.y.tolist()))
    assert len(pairs) == 5
    owner = EmbeddingDirichlet(0.3, clusters=5, encoder=encoder)(clean, 8, rng=7)
    assert np.array_equal(owner, dirichlet_split(clusters.numpy(), 0.3, 8, 1, numbers(7, "partition")))


def test_embedding_clusters_of_other_samples_use_the_same_centroids():
    data = samples(200)
    assign = EmbeddingDirichlet(0.1, clusters=4).fit(data, rng=1)
    assert torch.equal(assign(data), assign(data))
    assert torch.equal(assign(data.rows(torch.arange(20))), assign(data)[:20])


def test_embedding_skew_separates_embeddings_more_than_iid():
    data = samples(1000)

    def spread(partition):
        owner = partition(data, 10, rng=0)
        return torch.stack([data.x[owner == i].mean() for i in range(10)]).std()

    assert spread(EmbeddingDirichlet(0.05, clusters=5)) > 3 * spread(IID())


def test_repair_takes_from_those_who_hold_most():
    owner = np.repeat([0, 1], [50, 30])
    repaired = _repair(owner, np.array([50, 30, 0, 0]), least=10, rng=numbers(0))
    assert np.bincount(repaired).tolist() == [30, 30, 10, 10]
    assert (repaired[owner == 1] == 1).all()  # the second client was never the largest


@pytest.mark.parametrize("seed", range(5))
def test_repair_leaves_the_sizes_of_taking_one_by_one_from_the_largest(seed):
    sizes = np.random.default_rng(seed).integers(0, 15, 12)
    expected, least = sizes.copy(), 3
    for taker in np.flatnonzero(sizes < least):
        while expected[taker] < least:
            expected[expected.argmax()] -= 1
            expected[taker] += 1
    owner = np.repeat(np.arange(12), sizes)
    assert np.bincount(_repair(owner, sizes, least, numbers(seed))).tolist() == expected.tolist()


def test_shards_bound_the_labels_of_a_client():
    data = Data(y=torch.arange(1000) // 100)
    owner = Shards(2)(data, 10, rng=0)
    for i in range(10):
        held = data.y[owner == i]
        assert len(held) == 100
        assert len(held.unique()) <= 2
    with pytest.raises(DataError, match="cuts 40 shards"):
        Shards(4)(data.rows(torch.arange(30)), 10)


@pytest.mark.parametrize("n", [8, 23])
def test_shards_of_samples_that_do_not_divide_differ_by_one_at_most(n):
    sizes = torch.bincount(Shards(2)(samples(n), 4, rng=0), minlength=4)
    assert sizes.sum() == n
    assert all(2 * (n // 8) <= size <= 2 * -(-n // 8) for size in sizes.tolist())


def test_quantity_skews_sizes_and_not_labels():
    data = samples(5000)
    owner = Quantity(0.3)(data, 10, rng=1)
    sizes = torch.bincount(owner, minlength=10)
    assert int(sizes.max()) > 5 * int(sizes.median())
    biggest = data.y[owner == int(sizes.argmax())]
    assert (torch.bincount(biggest, minlength=5) / len(biggest) - 0.2).abs().max() < 0.05


def test_natural_keeps_groups_whole():
    data = samples(groups=6)
    assert torch.equal(Natural()(data), data.group)
    merged = Natural()(data, 4, rng=0)
    for g in range(6):
        assert len(merged[data.group == g].unique()) == 1
    with pytest.raises(ConfigError, match=r"6 of them.*Domains"):
        Natural()(data, 7)
    assert torch.equal(Natural(by="y")(data), data.y)


def test_groups_say_how_many_clients_there_are():
    for partition in (Natural(), Domains()):
        assert partition(samples(60)).unique().tolist() == [*range(6)]


def test_domains_give_every_client_one_domain():
    data = samples(groups=3)
    owner = Domains()(data, 8, rng=0)
    for i in range(8):
        assert data.group[owner == i].unique().tolist() == [i % 3]
    with pytest.raises(ConfigError, match="Natural"):
        Domains()(data, 2)


# ----------------------------------------------------------------------------------------------- changing the samples


def grey(n: int = 64, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, side, side, generator=g), torch.arange(n) % 4


def test_rotation_by_quarters_moves_pixels_of_the_same_clients():
    x, y = grey()
    plain = Federation.from_arrays(x, y, clients=8, seed=5)
    turned = Federation.from_arrays(x, y, clients=8, seed=5, partition=FeatureShift("rotation", 270, groups=4))
    for i in range(8):
        expected = torch.rot90(plain.local(i).x, i % 4, (-2, -1))
        assert torch.equal(turned.local(i).x, expected)
        assert torch.equal(turned.local(i).y, plain.local(i).y)
    assert turned.info["rotation_groups"] == 4


def test_rotation_in_between_agrees_with_quarter_turns_and_is_anticlockwise():
    x, _ = grey(4)
    near = rotate(x, torch.full((4,), 90.001))
    assert (near - torch.rot90(x, 1, (-2, -1))).abs().max() < 1e-3
    wide = torch.zeros(1, 1, 9, 15)
    wide[0, 0, 4, 12] = 1.0  # to the right of the centre; a quarter turn anticlockwise puts it above, at the top edge
    turned = rotate(wide, torch.tensor([20.0]))
    row, column = divmod(int(turned.flatten().argmax()), 15)
    assert (row, column) == (2, 12)  # (5 cos 20, 5 sin 20) = (4.7 right, 1.7 up)


def test_images_that_are_not_square_keep_their_shape_and_turn_half_exactly():
    x = torch.zeros(2, 1, 3, 5)
    x[:, 0, 1, 3] = 1.0  # to the right of the centre; a quarter turn puts it above
    x[:, 0, 0, 0] = 0.5
    half, quarter = rotate(x, torch.tensor([180.0, 90.0]))
    assert torch.equal(half, torch.rot90(x[0], 2, (-2, -1)))
    assert divmod(int(quarter[0].argmax()), 5) == (0, 2)


def test_noise_grows_with_the_client_and_colour_scales_channels():
    x, y = torch.zeros(4000, 3, 4, 4) + 1, torch.zeros(4000, dtype=torch.int64)
    noisy = Federation.from_arrays(x, y, clients=5, partition="noise:2/iid")
    stds = [float(noisy.local(i).x.std()) for i in range(5)]
    assert stds[0] == 0
    assert np.allclose(stds, [0, 0.5, 1, 1.5, 2], rtol=0.05)
    coloured = Federation.from_arrays(x, y, clients=6, partition="colour:0.5,groups=3/iid")
    for i in range(6):
        gains = coloured.local(i).x[:, :, 0, 0].unique(dim=0)
        assert len(gains) == 1
        assert torch.equal(coloured.local(i % 3).x[0], coloured.local(i).x[0])
        assert (gains - 1).abs().max() <= 0.5
        assert ((gains - 1).abs().max() > 0) == (i % 3 > 0)


def test_concept_shift_records_the_maps_it_used():
    data = samples(200)
    plain = Federation.from_data(data, 6, "dirichlet:1", seed=2)
    shifted = Federation.from_data(data, 6, "concept:3/dirichlet:1", seed=2)
    maps = torch.tensor(shifted.info["label_maps"])
    assert maps.shape == (3, 5)
    assert torch.equal(maps[0], torch.arange(5))
    assert all(sorted(row) == list(range(5)) for row in maps.tolist())
    for i in range(6):
        assert torch.equal(shifted.local(i).x, plain.local(i).x)
        assert torch.equal(shifted.local(i).y, maps[i % 3][plain.local(i).y])
        assert torch.equal(shifted.local(i).test.y, maps[i % 3][plain.local(i).test.y])


# ------------------------------------------------------------------------------------------------------------ as text


@pytest.mark.parametrize(
    "text",
    [
        "iid",
        "dirichlet:0.1",
        "dirichlet:0.1,least=10,by=group",
        "shards:2",
        "quantity:0.5,least=0",
        "natural",
        "natural:speaker",
        "domains",
        "embedding:0.05,clusters=20",
        "rotation:270,groups=4/dirichlet:0.3",
        "noise:0.5/iid",
        "colour:0.25/shards:2",
        "concept:4/rotation:45/iid",
    ],
)
def test_text_round_trips(text):
    assert str(parse_partition(text)) == text
    assert parse_partition(str(parse_partition(text))) == parse_partition(text)


@pytest.mark.parametrize("partition", EVERY, ids=str)
def test_str_parses_back(partition):
    assert parse_partition(str(partition)) == partition


@settings(max_examples=50, deadline=None)
@given(alpha=st.floats(1e-6, 1e6), least=st.integers(0, 100), by=st.sampled_from(["label", "group", "x1"]))
def test_dirichlet_text_round_trips_for_any_number(alpha, least, by):
    partition = Dirichlet(alpha, least, by)
    assert parse_partition(str(partition)) == partition


def test_parsing_is_forgiving_where_it_is_clear():
    assert parse_partition(" Dirichlet: 0.1 ") == Dirichlet(0.1)
    assert parse_partition("dirichlet:alpha=0.1") == Dirichlet(0.1)
    assert parse_partition("dirichlet: 0.1, least = 3, by = group") == Dirichlet(0.1, least=3, by="group")
    assert parse_partition("rotation:45") == FeatureShift("rotation", 45.0)
    assert parse_partition("color:1").spec == "colour"
    assert parse_partition(IID()) == IID()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dirchlet:0.1", "Did you mean 'dirichlet'"),
        ("dirichlet", "dirichlet:0.1"),
        ("dirichlet:abc", "is a number; given 'abc'"),
        ("dirichlet:0.1,leest=3", "Did you mean 'least'"),
        ("dirichlet:0.1,alpha=0.2", "gives alpha twice"),
        ("dirichlet:-1", "above 0"),
        ("dirichlet:nan", "alpha takes a number"),
        ("dirichlet:0.1/iid", "no base partition"),
        ("shards:0", "above 0"),
        ("shards:2.5", "is a whole number"),
        ("iid:3", "takes no values"),
        ("rotation:inf", "finite"),
        ("embedding:0.1,encoder=x", "encoder"),
        ("", "unknown partition"),
    ],
)
def test_wrong_text_says_what_is_right(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_partition(text)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_partitions_refuse_what_they_cannot_split():
    data = samples(20)
    with pytest.raises(ConfigError, match="1 or more clients; given 0"):
        IID()(data, 0)
    for partition in (Dirichlet, Quantity, EmbeddingDirichlet):
        with pytest.raises(ConfigError, match="least is 0 or more; given -1"):
            partition(0.1, least=-1)
    with pytest.raises(DataError, match="no samples"):
        IID()(Data(y=torch.zeros(0, dtype=torch.int64)), 3)
    with pytest.raises(DataError, match="splits by 'group'"):
        Natural()(Data(x=torch.zeros(5)))
    with pytest.raises(DataError, match="one integer per sample"):
        Dirichlet(0.1)(Data(y=torch.rand(30)), 3)
    with pytest.raises(DataError, match="one integer per sample"):
        Dirichlet(0.1)(Data(y=torch.zeros(30, 4, dtype=torch.int64)), 3)
    with pytest.raises(DataError, match="30 clusters of 20"):
        EmbeddingDirichlet(0.1, clusters=30)(data, 3)
    with pytest.raises(DataError, match="encoder gave some that are NaN"):
        EmbeddingDirichlet(0.1, clusters=3, encoder=lambda x: x / 0)(data.replace(x=torch.zeros(20, 2)), 3)
    with pytest.raises(DataError, match="float images"):
        Federation.from_arrays(torch.rand(20, 4), clients=2, partition="rotation:10/iid")
    with pytest.raises(DataError, match=r"noise changes floats .* 'x' of int64"):
        Federation.from_arrays(torch.ones(20, 4, dtype=torch.int64), clients=2, partition="noise:1")
    with pytest.raises(ConfigError, match="groups is 0 or more; given -1"):
        FeatureShift("noise", 1.0, groups=-1)
    with pytest.raises(DataError, match="one integer label"):
        Federation.from_arrays(torch.rand(20, 4), torch.rand(20), clients=2, partition="concept:2")
    with pytest.raises(ConfigError, match="unknown kind"):
        FeatureShift("blur", 1.0)  # type: ignore[arg-type]


def test_a_seed_may_be_a_number_of_numpy():
    seeds = np.arange(3)
    for partition in (Dirichlet(0.1), EmbeddingDirichlet(0.1, clusters=3)):
        assert torch.equal(partition(samples(20), 3, seeds[2]), partition(samples(20), 3, 2))


@pytest.mark.parametrize("owner", [np.full(10, 3), np.full(10, -1), np.zeros(9), np.zeros((10, 1))])
def test_a_partition_of_ones_own_is_checked(owner):
    class Broken(Partition):
        def assign(self, data, clients, rng):
            return owner

    with pytest.raises(DataError, match=r"each of 10 samples one client in 0\.\.2"):
        Broken()(samples(10), 3)
