"""Hugging Face transformers and peft LoRA as plain modules (extra `llm`).

    net = from_pretrained("path/to/a/model")                 # tokens (n, t) -> logits (n, t, vocabulary)
    net = lora(net, rank=8, targets=["q_proj", "v_proj"])    # only the adapters are trainable

Parameters that are not trainable are outside a model's vector: they are one object for all clients and never sent.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedloom.errors import ConfigError, MissingExtra, unknown

from .net import Net, positive
from .registry import seeded


class LanguageModel(nn.Module):
    """A causal transformer as a function of tokens (n, t) alone; answers logits (n, t, vocabulary).

    `features` are the last hidden states (n, t, dim), `head` the layer that makes logits of them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def head(self) -> nn.Module:
        """The output layer; its weight may be that of the token embedding."""
        return self.model.get_output_embeddings()

    def features(self, tokens: Tensor) -> Tensor:
        return self.model.base_model(tokens, attention_mask=_mask(self.model, tokens)).last_hidden_state

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, attention_mask=_mask(self.model, tokens)).logits


class Encoder(nn.Module):
    """A transformer whose last hidden states are averaged over a text: tokens (n, t) -> (n, dim).

    The token `pad_token_id` of the model's configuration counts as padding and is left out of the average.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        mask = _mask(self.model, tokens)
        hidden = self.model(tokens, attention_mask=mask).last_hidden_state
        weight = mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def _mask(model: Any, tokens: Tensor) -> Tensor:
    """1 for tokens, 0 for padding, (n, t)."""
    pad = model.config.pad_token_id
    return torch.ones_like(tokens) if pad is None else (tokens != pad).long()


def from_pretrained(
    source: str | os.PathLike[str] | Any,
    task: Literal["language", "encode", "classify"] = "language",
    *,
    classes: int | None = None,
    seed: int | torch.Generator = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A transformer as a module from tokens to logits.

    source: a folder written by `save_pretrained`, a name transformers can resolve, or a transformers
        configuration, which gives random weights.
    task: "language" is a LanguageModel, logits per token; "encode" an Encoder, one vector per text; "classify" a
        Net of that encoder and a new linear head of `classes` outputs.
    seed: new weights are a function of this alone.
    dtype: of the weights, whatever the file holds.

    Raises MissingExtra without transformers, ConfigError for an unknown task or a source that cannot be read.
    """
    if task not in ("language", "encode", "classify"):
        raise unknown("task of a transformer", task, ("language", "encode", "classify"))
    if (task == "classify") != (classes is not None):
        raise ConfigError(f"classes belongs to task 'classify' and is needed there; given {task=}, {classes=}")
    transformers = _require("transformers", "from_pretrained")
    auto = transformers.AutoModelForCausalLM if task == "language" else transformers.AutoModel
    with seeded(seed):
        try:
            if isinstance(source, str | os.PathLike):
                model = auto.from_pretrained(source, dtype=dtype)
            else:
                model = auto.from_config(source, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ConfigError(f"transformers cannot build a model for {task=} from {source!r}: {error}") from error
        model.config.use_cache = False
        if task == "language":
            return LanguageModel(model)
        if classes is None:
            return Encoder(model)
        head = nn.Linear(model.config.hidden_size, positive("classes", classes), dtype=dtype)
        return Net(Encoder(model), head)


def lora(
    module: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | None = None,
    *,
    dropout: float = 0.0,
    train: Sequence[str] = (),
    seed: int | torch.Generator = 0,
) -> nn.Module:
    """Low-rank adapters W + (alpha / rank) B A beside dense layers; A (rank, in) is random, B (out, rank) zero.

    module: becomes the frozen base of the result (it is not copied: a base may be large).
    targets: layers by name or by the end of their name, as in peft, which also takes convolutions and
        embeddings; None is every dense layer except the head.
    dropout: of the adapters' input, in [0, 1).
    train: names of modules that stay trainable beside the adapters, such as a new "head".
    seed: the A are a function of this alone.

    Returns a `peft.PeftModel`, called as `module` is. Raises MissingExtra without peft, ConfigError for targets or
    modules that do not exist.
    """
    peft = _require("peft", "lora")
    layers = {name: layer for name, layer in module.named_modules() if _takes_lora(layer)}
    chosen = _dense_but_head(module) if targets is None else list(targets)
    for target in chosen:
        if not any(_named(name, target) for name in layers):
            raise unknown("target of lora", target, {name.rpartition(".")[2] for name in layers} | set(layers))
    if not chosen:
        raise ConfigError(f"{type(module).__name__} has no dense layer for lora; name targets or another module")
    config = peft.LoraConfig(
        r=positive("rank", rank),
        lora_alpha=positive("alpha", alpha),
        target_modules=chosen,
        lora_dropout=dropout,
        fan_in_fan_out=all(_is_transposed(layers[n]) for n in layers if any(_named(n, t) for t in chosen)),
    )
    kept = [_submodule(module, name) for name in train]
    with seeded(seed):
        adapted = peft.get_peft_model(module, config)
    for part in kept:
        part.requires_grad_(True)
    return adapted


def _is_transposed(layer: nn.Module) -> bool:
    """A dense layer that stores (in, out): transformers' Conv1D, which GPT-2 is made of."""
    return type(layer).__name__ == "Conv1D"


def _takes_lora(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or _is_transposed(layer)


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _dense_but_head(module: nn.Module) -> list[str]:
    head = getattr(module, "head", None)
    inside = set(head.modules()) if isinstance(head, nn.Module) else set()
    dense = {n: m for n, m in module.named_modules() if n and (isinstance(m, nn.Linear) or _is_transposed(m))}
    return [name for name, layer in dense.items() if layer not in inside]


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise unknown("module to train", name, [n for n, _ in module.named_modules() if n]) from None


def _require(package: str, purpose: str) -> Any:
    """The package, or an error that names the extra."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, "llm", purpose) from None
