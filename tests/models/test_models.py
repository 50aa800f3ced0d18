"""The reference networks: sizes known from the literature, initialisation, features and head, specs."""

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedloom import models
from fedloom.errors import ConfigError
from fedloom.models.images import Residual
from fedloom.models.text import Block

IMAGES = ("softmax", "mlp:64,64", "res-mlp:16", "2nn", "cnn", "leaf-cnn:64", "cnn-bn", "resnet8", "resnet8:norm=batch")
SAMPLES = {
    **dict.fromkeys(IMAGES, (3, 16, 16)),
    "har-cnn": (9, 128),
    "char-gru:16": (12,),
    "char-lstm:16": (12,),
    "char-transformer:32": (12,),
    "text-transformer:vocab=7": (12,),
    "speech-transformer:width=8": (1, 6, 20),
}
CLASSES = 7


def batch(shape: tuple[int, ...], n: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if len(shape) == 1:
        return torch.randint(1, CLASSES, (n, *shape), generator=draw)
    return torch.randn(n, *shape, generator=draw)


def size(spec: str, shape: tuple[int, ...], classes: int) -> int:
    return sum(p.numel() for p in models.build(spec, shape, classes).parameters())


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "parameters"),
    [
        ("softmax", (60,), 10, 610),
        ("2nn", (1, 28, 28), 10, 199_210),  # McMahan et al., section 3
        ("cnn", (1, 28, 28), 10, 20_490),
        ("leaf-cnn", (1, 28, 28), 10, 1_663_370),  # McMahan et al., section 3
        ("leaf-cnn:2048", (1, 28, 28), 62, 6_603_710),  # LEAF, FEMNIST
        ("char-lstm", (80,), 80, 819_920),  # LEAF, Shakespeare
        ("resnet8", (3, 32, 32), 10, 464 + 4_672 + 14_528 + 57_728 + 650),  # stem, three blocks, head
        ("resnet8:batch", (3, 32, 32), 10, 464 + 4_672 + 14_528 + 57_728 + 650),
        ("resnet8:none", (3, 32, 32), 10, 448 + 4_640 + 14_432 + 57_440 + 650),  # biases for scales and shifts
        ("har-cnn", (9, 16), 6, 1_472 + 10_304 + 390),  # the shortest window
    ],
)
def test_number_of_parameters(spec, shape, classes, parameters):
    assert size(spec, shape, classes) == parameters


def test_every_name_is_tried_here():
    assert {spec.partition(":")[0] for spec in SAMPLES} == set(models.names())
    assert all(models.describe(name).summary for name in models.names())


@pytest.mark.parametrize(("spec", "shape"), SAMPLES.items())
def test_output_is_the_head_of_the_features(spec, shape):
    net = models.build(spec, shape, CLASSES).eval()
    x = batch(shape)
    logits = net(x)
    expected = {"char": (5, *shape, CLASSES), "spee": (5, 5, CLASSES + 1)}  # of every fourth frame, and the blank
    assert logits.shape == expected.get(spec[:4], (5, CLASSES))
    assert torch.equal(net.head(net.features(x)), logits)
    assert torch.allclose(net(x[:2]), logits[:2], atol=1e-5), "samples must not mix"
    logits.sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize(("spec", "shape"), SAMPLES.items())
def test_weights_are_a_function_of_the_seed(spec, shape):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = models.build(spec, shape, CLASSES, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "global state must not move"
    torch.manual_seed(6)
    again = models.build(spec, shape, CLASSES, seed=3).state_dict()
    other = models.build(spec, shape, CLASSES, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_generator_is_a_seed():
    def draw(seed: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(seed)
        return models.build("softmax", (4,), 3, seed=source).head.weight

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_threads_do_not_share_draws():
    alone = models.build("mlp", (8,), 3, seed=1).head.weight
    built: list[torch.Tensor] = []

    def work(seed: int) -> None:
        built.append(models.build("mlp", (8,), 3, seed=seed).head.weight)

    threads = [threading.Thread(target=work, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(weight, alone) for weight in built)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("spec", ["cnn", "cnn-bn", "leaf-cnn:32", "resnet8", "mlp"])
def test_image_networks_adapt_to_the_input(spec, shape):
    assert models.build(spec, shape, 10)(batch(shape)).shape == (5, 10)


@pytest.mark.parametrize("causal", [False, True])
def test_a_transformer_block_is_that_of_torch(causal):
    torch.manual_seed(0)
    block = Block(8, 2, causal)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    for ours, name in (
        (block.norm1, "norm1"),
        (block.norm2, "norm2"),
        (block.attention.out, "self_attn.out_proj"),
        (block.mlp[0], "linear1"),
        (block.mlp[2], "linear2"),
    ):
        theirs.get_submodule(name).load_state_dict(ours.state_dict())
    qkv = {f"in_proj_{name}": p for name, p in block.attention.qkv.named_parameters()}
    theirs.self_attn.load_state_dict(qkv, strict=False)
    ahead = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(block(x), theirs(x, src_mask=ahead))


@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (4, 2), (3, 1)])
def test_a_residual_block_adds_its_input_itself_where_shapes_allow(inputs, stride):
    torch.manual_seed(0)
    block, x = Residual(inputs, 4, stride, "none"), torch.randn(2, inputs, 6, 6)
    inner = block.conv2(block.conv1(x).clamp(min=0))
    same = inputs == 4 and stride == 1
    beside = x if same else nn.functional.conv2d(x, block.shortcut[0].weight, stride=stride)
    assert same == (not list(block.shortcut.parameters()))
    torch.testing.assert_close(block(x), (inner + beside).clamp(min=0))


def test_width_and_depth_change_the_layers():
    half = models.build("cnn:width=0.5,depth=3", (1, 16, 16), 10)
    channels = [layer.out_channels for layer in half.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert channels == [8, 16, 32]
    assert models.build("cnn:width=0.01", (1, 8, 8), 10)(batch((1, 8, 8))).shape == (5, 10)


@pytest.mark.parametrize("family", ["different", "depths"])
def test_a_family_agrees_on_the_features(family):
    nets = [models.build(spec, (1, 8, 8), 10) for spec in models.family(family, dim=24)]
    assert len({tuple(name for name, _ in net.named_parameters()) for net in nets}) == 4
    assert {net.features(batch((1, 8, 8))).shape for net in nets} == {(5, 24)}


def test_widths_shrink():
    sizes = [size(spec, (1, 8, 8), 10) for spec in models.family("widths")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_a_spec_and_keywords_say_the_same():
    assert models.parse("mlp:64,32,dim=8") == ("mlp", {"hidden": (64, 32), "dim": 8})
    assert models.parse("mlp:hidden=64x32,dim=8") == models.parse(" mlp : 64, 32, dim = 8")
    assert models.parse("char-gru:last=true") == ("char-gru", {"last": True})
    by_spec = models.build("mlp:32,dim=8", (4,), 3).state_dict()
    by_name = models.build("mlp", (4,), 3, hidden=(32,), dim=8).state_dict()
    assert all(torch.equal(by_spec[name], by_name[name]) for name in by_spec)


@pytest.mark.parametrize(
    ("spec", "shape", "says"),
    [
        ("cmn", (1, 8, 8), "Did you mean 'cnn'"),
        ("cnn:widht=0.5", (1, 8, 8), "Did you mean 'width'"),
        ("cnn:width=wide", (1, 8, 8), "takes a number, not 'wide'"),
        ("cnn:width=-1", (1, 8, 8), "width must be above 0"),
        ("cnn:depth=2,depth=3", (1, 8, 8), "given twice"),
        ("cnn:0.5,0.25", (1, 8, 8), "takes a number, not '0.5,0.25'"),
        ("char-gru:last=yes", (12,), "takes true or false"),
        ("softmax:3", (4,), "unknown option of the model softmax: '3'"),
        ("cnn:width=inf", (1, 8, 8), "width must be above 0 and finite"),
        ("speech-transformer", (2, 6, 20), "reads one channel"),
        ("softmax", (2.5,), "shape of one sample"),
        ("softmax", 4, "shape of one sample"),
        ("resnet8:norm=layer", (1, 8, 8), "group"),
        ("cnn", (64,), "(channels, height, width)"),
        ("leaf-cnn", (64,), "(channels, height, width)"),
        ("cnn", (8, 8), "one channel of grey is x[:, None]"),
        ("resnet8", (32, 32, 3), "the channels come last here: give x.transpose(0, 3, 1, 2)"),
        ("char-gru", (12, 4), "(tokens)"),
        ("cnn:depth=4", (1, 8, 8), "too small"),
        ("har-cnn", (9, 8), "at least 16"),
        ("char-transformer:30", (12,), "multiple of heads"),
        ("cnn", (0, 8, 8), "shape of one sample"),
    ],
)
def test_impossible_specs_are_refused(spec, shape, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        models.build(spec, shape, CLASSES)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("mlp", {"hidden": 32}, "'hidden' of model 'mlp' takes whole numbers such as 64x64, not 32"),
        ("mlp", {"hidden": (32.0,)}, "takes whole numbers"),
        ("mlp", {"width": "2"}, "takes a number, not '2'"),
        ("mlp", {"dim": 2.5}, "takes a whole number, not 2.5"),
        ("cnn", {"depth": True}, "takes a whole number, not True"),
        ("char-gru", {"last": 1}, "takes true or false, not 1"),
        ("resnet8", {"norm": None}, "takes one value, not None"),
        ("mlp", {"hiden": (32,)}, "Did you mean 'hidden'"),
    ],
)
def test_a_wrong_option_is_refused_as_in_a_spec(spec, options, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        models.build(spec, (1, 8, 8), CLASSES, **options)


def test_numbers_of_numpy_are_numbers():
    shape = tuple(np.array([1, 8, 8]))
    net = models.build("mlp", shape, np.int64(3), hidden=[np.int64(4)], width=np.float32(0.5), dim=None)
    assert [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)] == [(64, 2), (2, 3)]


@pytest.mark.parametrize("classes", [0, -1, 2.0, True])
def test_impossible_classes_are_refused(classes):
    with pytest.raises(ConfigError, match="classes"):
        models.build("softmax", (4,), classes)


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="already registered"):
        models.register("cnn")(lambda input_shape, classes: torch.nn.Identity())


def test_the_decoder_does_not_look_ahead():
    net = models.build("char-transformer", (12,), CLASSES)
    x = batch((12,))
    changed = x.clone()
    changed[:, 7:] = 0
    assert torch.allclose(net(x)[:, :7], net(changed)[:, :7], atol=1e-6)
    assert not torch.allclose(net(x)[:, 7:], net(changed)[:, 7:], atol=1e-3)
    assert net(x[:, :4]).shape == (5, 4, CLASSES)
    with pytest.raises(ConfigError, match="12 positions"):
        net(torch.zeros(1, 13, dtype=torch.long))


def test_padding_does_not_change_the_features():
    net = models.build("text-transformer", (12,), 3)
    short = batch((12,))[:, :6]
    padded = torch.cat([short, torch.zeros(5, 6, dtype=torch.long)], 1)
    assert torch.allclose(net(short), net(padded), atol=1e-5)
    assert net(torch.zeros(2, 12, dtype=torch.long)).isfinite().all()


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, classes, width: int = 4, drop: "float | None" = None, rate=1):
        super().__init__()
        self.body = nn.Linear(input_shape[0], width)
        self.head = nn.Linear(width, classes)
        self.told = (drop, rate)

def bare():
    return nn.Linear(8, 2)

class Needs(nn.Module):
    def __init__(self, width, depth: int):
        super().__init__()

def failing():
    raise RuntimeError("by the user's own fault")

def number():
    return 3

made = nn.Linear(8, 2)
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "own_networks.py"
    path.write_text(OWN)
    yield str(path)
    sys.modules.pop("own_networks", None)


def test_a_network_of_ones_own_is_named_by_its_file_or_module(own_file: str):
    net = models.build(f"{own_file}:Net:width=6,drop=0.5,rate=0.25", (8,), 3)
    assert (net.body.in_features, net.body.out_features, net.head.out_features) == (8, 6, 3)
    assert net.told == (0.5, 0.25)
    again = models.build("own_networks:Net:width=6", (8,), 3)
    assert torch.equal(net.body.weight, again.body.weight), "weights are drawn from the seed"
    assert type(net) is type(again)
    assert models.build(f"{own_file}:bare", (8,), 3).out_features == 2


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("Needs", "needs width and depth: {file}:Needs:width=VALUE,depth=VALUE"),
        ("Needs:width=1", "needs depth: {file}:Needs:depth=VALUE"),
        ("Net:widht=3", "Did you mean 'width'"),
        ("Net:width=wide", "takes a whole number, not 'wide'"),
        (
            "Net:16",
            "settings of {file}:Net are written name=value: {file}:Net:width=5; given '{file}:Net:16' with '16'",
        ),
        ("failing", "cannot be made: RuntimeError: by the user's own fault"),
        ("number", "makes no network, an nn.Module: it gave 3"),
        ("made", "is no class or function that makes a network"),
        ("Nett", "cannot load the network '{file}:Nett': AttributeError"),
    ],
)
def test_a_network_of_ones_own_that_cannot_be_says_why(own_file: str, what: str, said: str):
    with pytest.raises(ConfigError, match=re.escape(said.format(file=own_file))):
        models.build(f"{own_file}:{what}", (8,), 3)


def test_two_files_of_one_name_are_not_taken_for_each_other(own_file: str, tmp_path: Path):
    models.build(f"{own_file}:bare", (8,), 3)
    other = tmp_path / "there" / "own_networks.py"
    other.parent.mkdir()
    other.write_text(OWN)
    with pytest.raises(ConfigError, match="another module is called 'own_networks'"):
        models.build(f"{other}:bare", (8,), 3)
