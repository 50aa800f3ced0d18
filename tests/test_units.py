"""Sub-models as index sets: a narrow copy answers as the full module does with the left-out entries at zero."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedloom import models
from fedloom.errors import ConfigError, NotSupported
from fedloom.units import Units, find_units, narrow


def draw(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(key) % (1 << 31))


def vector_of(net: nn.Module) -> tuple[Tensor, dict[str, torch.Size]]:
    """Random values for all trainable parameters and float buffers, and their shapes in order."""
    pieces, shapes = [], {}
    for name, old in (*net.named_parameters(), *net.named_buffers()):
        if old.is_floating_point() and (old.requires_grad or not isinstance(old, nn.Parameter)):
            new = torch.randn(old.shape, generator=draw(1, len(pieces)), dtype=torch.float64) * 0.3
            pieces.append(new.abs() + 0.5 if "running_var" in name else new)
            shapes[name] = old.shape
    return torch.cat([piece.flatten() for piece in pieces]), shapes


def call(net: nn.Module, vector: Tensor, shapes: dict[str, torch.Size], *x: Tensor) -> Tensor:
    pieces = vector.split([math.prod(shape) for shape in shapes.values()])
    tensors = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces)}
    return functional_call(net, {n: t.detach() if "running" in n else t for n, t in tensors.items()}, x)


def choices(units: Units) -> dict[str, dict[str, Tensor]]:
    """Prefix, rolling, random subsets of every group, a single unit of each, and random subsets of some groups."""
    items = units.sizes.items()
    return {
        "prefix": {g: torch.arange(math.ceil(n / 2)) for g, n in items},
        "rolling": {g: (3 + torch.arange(math.ceil(n / 4))) % n for g, n in items},
        "random": {g: torch.randperm(n, generator=draw(n))[: math.ceil(0.7 * n)] for g, n in items},
        "one": {g: torch.tensor([n - 1]) for g, n in items},
        "some": {g: torch.randperm(n, generator=draw(n, 2))[: n - 1] for g, n in list(items)[::2]},
        "all": {},
    }


class Plain(nn.Module):
    """Convolutions, and a flatten that is not pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc, self.out = nn.Linear(8 * 16, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2, 1, 1)
        x = F.gelu(self.two(x))[:, :, :4, :4]
        return self.out(torch.sigmoid(self.fc(x.flatten(1))))


class Mixed(nn.Module):
    """Stem, identity and projected residuals, depthwise (also strided and widening), concatenation, flatten."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, 1, 1), norm(8)
        self.same, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), norm(8)
        self.down, self.bn2 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), norm(12)
        self.skip = nn.Conv2d(8, 12, 1, 2)
        self.dw, self.wide = nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.Conv2d(12, 24, 3, 1, 1, groups=12)
        self.side = nn.Conv2d(24, 6, 1)
        self.fc, self.out = nn.Linear((24 + 6) * 4, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn1(self.same(x)) + x)
        x = F.relu(self.bn2(self.down(x)) + self.skip(x))
        x = self.wide(self.dw(x))
        x = torch.cat([x, F.relu(self.side(x))], 1)
        return self.out(F.relu(self.fc(x.flatten(1))))


class Gated(nn.Module):
    """Squeeze and excitation, PReLU with a slope per channel, a grouped convolution, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slope = nn.Conv2d(2, 12, 3, padding=1), nn.PReLU(12)
        self.squeeze, self.excite = nn.Linear(12, 5), nn.Linear(5, 12)
        self.grouped, self.up = nn.Conv2d(12, 6, 3, groups=3), nn.ConvTranspose2d(6, 7, 2, 2)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.conv(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return self.out(F.relu(self.up(self.grouped(x))).amax((2, 3)))


class Bag(nn.Module):
    """Embeddings, averaged; two of them added; one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind = nn.Embedding(11, 8), nn.Embedding(3, 8)
        self.twice, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.word(tokens) + self.kind(tokens % 3)
        return self.out(torch.tanh(self.twice(torch.tanh(self.twice(x)))).mean(1))


IMAGES = torch.randn(5, 2, 8, 8, generator=draw(7), dtype=torch.float64)
TOKENS = torch.randint(0, 11, (5, 6), generator=draw(8))
VECTORS = torch.randn(5, 6, generator=draw(9), dtype=torch.float64)
NETS = {
    "mlp": (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)),
        VECTORS,
        "0 2",
    ),
    "cnn": (Plain(), IMAGES, "fc one two"),
    "mixed": (Mixed(), IMAGES, "down fc side stem"),
    "gated": (Gated(), IMAGES, "conv squeeze up"),
    "embedding": (Bag(), TOKENS, "word"),
    "batch statistics": (
        Mixed(lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
        IMAGES,
        "down fc side stem",
    ),
    "instance norm": (Mixed(lambda n: nn.InstanceNorm2d(n, affine=True)), IMAGES, "down fc side stem"),
    "resnet8": (models.build("resnet8:norm=batch,width=0.5", (2, 8, 8), 3), IMAGES, None),
    "cnn-bn": (models.build("cnn-bn:width=0.5", (2, 8, 8), 3), IMAGES, None),
    "leaf-cnn": (models.build("leaf-cnn:9,width=0.2", (2, 8, 8), 3), IMAGES, None),
    "transformer": (models.build("char-transformer:8,depth=1", (6,), 11), TOKENS, None),
}
CASES = {name: (net.double().eval(), x) for name, (net, x, _) in NETS.items()}
FOUND = {name: find_units(net, x) for name, (net, x) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("choice", ["prefix", "rolling", "random", "one", "some", "all"])
def test_a_sub_model_equals_the_masked_model(name, choice):
    net, x = CASES[name]
    vector, shapes = vector_of(net)
    index, small = FOUND[name].index(shapes, choices(FOUND[name])[choice])
    assert len(index) == len(index.unique()) == sum(map(math.prod, small.values()))
    assert (len(index) == len(vector)) == (choice == "all")

    mask = torch.zeros_like(vector)
    mask[index] = 1
    part = vector[index].requires_grad_()
    full = (vector * mask).requires_grad_()
    got, wanted = call(narrow(net, small), part, small, x), call(net, full, shapes, x)
    assert torch.allclose(got, wanted, atol=1e-10)

    # Gradients scatter: the sub-model's are the full model's at its entries.
    (inner,), (outer,) = (
        torch.autograd.grad(got.square().sum(), part),
        torch.autograd.grad(wanted.square().sum(), full),
    )
    assert torch.allclose(inner, outer[index], atol=1e-9)
    assert inner.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name, case in NETS.items() if case[2]])
def test_the_groups_found(name):
    assert sorted(FOUND[name].sizes) == NETS[name][2].split()
    assert not set(FOUND[name].sizes) & set(FOUND[name].whole)


def test_ties():
    mixed, gated, transformer = FOUND["mixed"], FOUND["gated"], FOUND["transformer"]
    # same is tied to stem, and skip, dw and wide (two channels each) to down
    assert mixed.sizes == {"stem": 8, "down": 12, "side": 6, "fc": 9}
    assert mixed.whole == {"out": "it reaches the output"}
    assert gated.sizes == {"conv": 3, "squeeze": 5, "up": 7}, "three groups of four channels, tied to the excitation"
    assert transformer.sizes == {"features.blocks.0.mlp.0": 32}
    assert "features.blocks.0.attention.qkv" in transformer.whole


def test_a_prefix_is_the_slice_one_would_write_by_hand():
    net, _ = CASES["mixed"]
    vector, shapes = vector_of(net)
    index, small = FOUND["mixed"].index(shapes, choices(FOUND["mixed"])["prefix"])
    full = dict(zip(shapes, vector.split([math.prod(s) for s in shapes.values()])))
    part = dict(zip(small, vector[index].split([math.prod(s) for s in small.values()])))
    assert torch.equal(part["down.weight"].view(small["down.weight"]), full["down.weight"].view(12, 8, 3, 3)[:6, :4])
    assert torch.equal(part["bn2.running_mean"], full["bn2.running_mean"][:6])
    columns = torch.cat(
        [torch.arange(12), 24 + torch.arange(3)]
    )  # two channels of `wide` for each of 6 units, and side
    fc = full["fc.weight"].view(9, 30, 4)[:5][:, columns]
    assert torch.equal(part["fc.weight"], fc.flatten())
    assert narrow(net, small).wide.groups == 6


def test_running_statistics_need_not_be_in_the_vector():
    net, x = CASES["cnn-bn"]
    shapes = {name: p.shape for name, p in net.named_parameters()}
    index, small = FOUND["cnn-bn"].index(shapes, choices(FOUND["cnn-bn"])["random"])
    copy = narrow(net, small)
    statistics = {name: b for name, b in copy.named_buffers() if "running" in name}
    assert statistics
    for name, value in statistics.items():
        assert value.shape == small[name.rpartition(".")[0] + ".weight"]
        assert torch.equal(value, torch.full_like(value, float("var" in name)))
    was = {name: b.clone() for name, b in net.named_buffers()}
    vector = torch.cat([p.detach().flatten() for p in net.parameters()])
    call(copy.train(), vector[index], small, x)
    assert all(torch.equal(b, was[name]) for name, b in net.named_buffers()), "statistics are not shared"


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_normalisation_over_units_runs_on_those_there_are(norm):
    if norm == "group":
        net, x = models.build("resnet8:width=0.5", (2, 8, 8), 3).double(), IMAGES
    else:
        net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).double()
        x = VECTORS
    units = find_units(net, x)
    assert units.sizes
    vector, shapes = vector_of(net)
    index, small = units.index(shapes, choices(units)["random"])
    got = call(narrow(net, small), vector[index], small, x)
    assert got.shape == (5, 3)
    assert got.isfinite().all()
    if norm == "layer":
        keep = choices(units)["random"]["0"].sort().values
        w = dict(zip(shapes, vector.split([math.prod(s) for s in shapes.values()])))
        hidden = x @ w["0.weight"].view(8, 6)[keep].T + w["0.bias"][keep]
        hidden = F.layer_norm(hidden, hidden.shape[1:], w["1.weight"][keep], w["1.bias"][keep]).relu()
        assert torch.allclose(got, hidden @ w["3.weight"].view(3, 8)[:, keep].T + w["3.bias"])


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.softmax(self.a(x), -1) * self.b(x) + torch.relu(self.c(x)))


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.free, self.out = (
            *(nn.Embedding(11, 4), nn.GRU(4, 6, batch_first=True)),
            *(nn.Linear(6, 5), nn.Linear(5, 3)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.free(self.gru(self.embed(tokens))[0][:, -1])))


class Shuffles(nn.Module):
    """Halves change places: the probe sees a clean permutation, but a narrow copy would cut elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.out(torch.relu(self.b(torch.cat([right, left], 1))))


class Fixed(nn.Module):
    """Sizes written into forward, a bare parameter per unit, and a layer nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale, self.idle = nn.Parameter(torch.ones(4)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x)).view(-1, 8)
        return self.out(torch.relu(self.c(self.b(x) * self.scale)))


class Reports(nn.Module):
    """Returns its features as well: they are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.b(torch.relu(self.a(x)))
        return {"features": features, "logits": self.out(features)}


class Pools(nn.Module):
    """The samples of a batch meet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(x - x.mean(0))


@pytest.mark.parametrize(
    ("net", "x", "sizes", "whole"),
    [
        (Attends(), VECTORS, {}, {"a": "mixed", "b": "mixed", "c": "mixed", "out": "output"}),
        (Recurs(), TOKENS, {"free": 5}, {"embed": "mixed", "out": "output"}),
        (Shuffles(), VECTORS, {"b": 5}, {"a": "answers otherwise", "out": "output"}),
        (Fixed(), VECTORS, {"c": 5}, {"a": "fails", "b": "fails", "idle": "no layer was seen", "out": "output"}),
        (Reports(), VECTORS, {"a": 8}, {"b": "output", "out": "output"}),
        (Pools(), VECTORS, {}, {"a": "mixed", "out": "mixed"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_units_that_cannot_be_told_apart_stay_whole(net, x, sizes, whole):
    units = find_units(net.double(), x)
    assert units.sizes == sizes
    assert units.whole.keys() == whole.keys()
    assert all(reason in units.whole[name] for name, reason in whole.items())


def test_frozen_layers_stay_whole_and_shared():
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    net[2].requires_grad_(False)
    units = find_units(net, VECTORS.float())
    assert units.sizes == {"4": 5}
    assert units.whole == {
        "0": "it feeds '2', whose weights are frozen",
        "2": "its weights are frozen",
        "6": "it reaches the output",
    }
    shapes = {name: p.shape for name, p in net.named_parameters() if p.requires_grad}
    _, small = units.index(shapes, {"4": torch.tensor([1, 2])})
    assert narrow(net, small)[2].weight is net[2].weight
    assert narrow(net, small)[0].weight is not net[0].weight


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(torch.relu(self.embed(tokens)))

    net = Tied().double()
    units = find_units(net, TOKENS)
    assert units.sizes == {"embed": 8}
    vector, shapes = vector_of(net)
    index, small = units.index(shapes, {"embed": torch.tensor([6, 1, 3])})
    part = narrow(net, small)
    assert part.out.weight is part.embed.weight
    mask = torch.zeros_like(vector)
    mask[index] = 1
    assert torch.allclose(call(part, vector[index], small, TOKENS), call(net, vector * mask, shapes, TOKENS))


def test_parts_of_one_layer_may_be_tied_to_different_partners():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(6, 7)
            self.out = nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.both(x)))

    net = Split().double()
    units = find_units(net, VECTORS)
    assert units.sizes == {"a": 4, "b": 3}
    vector, shapes = vector_of(net)
    index, small = units.index(shapes, {"a": torch.tensor([2]), "b": torch.tensor([0, 2])})
    assert small["both.weight"] == (3, 6)
    mask = torch.zeros_like(vector)
    mask[index] = 1
    assert torch.allclose(
        call(narrow(net, small), vector[index], small, VECTORS), call(net, vector * mask, shapes, VECTORS)
    )


def test_finding_units_leaves_no_trace():
    net = models.build("cnn-bn:width=0.5", (2, 8, 8), 3)
    was, mode = {name: t.clone() for name, t in net.state_dict().items()}, net.training
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = find_units(net, IMAGES.float())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training is mode
    assert all(torch.equal(t, was[name]) for name, t in net.state_dict().items())
    assert all("forward" not in vars(layer) for layer in net.modules())
    again = find_units(net, (IMAGES.float(),))
    assert first.sizes == again.sizes
    assert list(first.sizes) == ["features.0", "features.4"]


def test_every_unit_is_trained_equally_often_by_rolling():
    units = FOUND["mixed"]
    shapes = {name: p.shape for name, p in CASES["mixed"][0].named_parameters()}
    rounds = math.lcm(*units.sizes.values())
    count = torch.zeros(math.prod(shapes["fc.bias"]))
    for t in range(rounds):
        keep = {g: (t + torch.arange(math.ceil(n / 3))) % n for g, n in units.sizes.items()}
        index, _ = units.index({"fc.bias": shapes["fc.bias"]}, keep)
        count[index] += 1
    assert (count == count[0]).all()


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"stem2": [0]}, "unknown group of units 'stem2'"),
        ({"out": [0]}, "'out' cannot be cut: it reaches the output"),
        ({"fc": []}, "at least one unit"),
        ({"fc": [9]}, "from 0 to 8"),
        ({"fc": [-1]}, "from 0 to 8"),
        ({"fc": torch.ones(9, dtype=torch.bool)}, "mask.nonzero()"),
    ],
)
def test_impossible_choices_are_refused(keep, says):
    shapes = {name: p.shape for name, p in CASES["mixed"][0].named_parameters()}
    with pytest.raises(ConfigError, match=re.escape(says)):
        FOUND["mixed"].index(shapes, keep)


def test_other_tensors_are_refused():
    with pytest.raises(ConfigError, match="unknown tensor"):
        FOUND["mixed"].index({"fc.wait": torch.Size([9])}, {})
    with pytest.raises(ConfigError, match="not that of the module"):
        FOUND["mixed"].index({"fc.bias": torch.Size([8])}, {"fc": torch.tensor([0])})
    with pytest.raises(ConfigError, match="unknown tensor"):
        narrow(CASES["mixed"][0], {"fc.wait": torch.Size([9])})


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), nn.ReLU()])
def test_a_module_without_hidden_units_stays_whole(net):
    units = find_units(net, VECTORS.float())
    shapes = {name: p.shape for name, p in net.named_parameters()}
    index, small = units.index(shapes, {})
    assert units.sizes == {}
    assert small == shapes
    assert torch.equal(index, torch.arange(sum(map(math.prod, shapes.values()))))


def test_inputs_the_module_does_not_take_are_refused():
    with pytest.raises(NotSupported, match="could not run Plain"):
        find_units(Plain(), VECTORS)
    with pytest.raises(ConfigError, match="at least one sample"):
        find_units(Plain(), IMAGES[:0])
