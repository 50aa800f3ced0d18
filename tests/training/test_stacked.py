"""Clients trained as one computation give what each gives alone, worked out here with plain autograd."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedloom.data.fields import Data
from fedloom.errors import FedloomWarning
from fedloom.model import Model
from fedloom.task import Classification
from fedloom.training.plain import train_plain
from fedloom.training.request import Schedule, Trained, Training
from fedloom.training.solvers import SGD, Adam, Solver
from fedloom.training.stacked import (
    NotStackable,
    Row,
    add_rows,
    best_path,
    choose_chunk,
    lazy,
    probe,
    train_stacked,
)
from fedloom.training.stacked.batches import steps
from fedloom.training.stacked.lazy import LazyDense
from fedloom.training.stacked.twin import twin_of
from fedloom.training.trainer import Trainer, describe

torch.set_num_threads(1)
SIZES = [9, 8, 5, 1]  # partial batches, unequal numbers of steps, one sample


# ---------------------------------------------------------------- networks
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 120), nn.ReLU(), nn.Linear(120, 100), nn.GELU(), nn.Linear(100, 3))


def broad() -> nn.Module:
    """The first dense layer has many inputs: the batch as it is."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 120), nn.ReLU(), nn.Linear(120, 100), nn.Tanh(), nn.Linear(100, 3)
    )


def dimmed() -> nn.Module:
    return nn.Sequential(nn.Tanh(), *broad())


def clamped() -> nn.Module:
    """Its inputs lie where the batch lay."""
    return nn.Sequential(nn.Hardtanh(-0.5, 0.5, inplace=True), *broad())


class Along(nn.Module):
    """Large dense layers meet every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(11, 320), nn.Linear(320, 3)
        self.l = nn.Sequential(nn.Linear(320, 320), nn.Tanh(), nn.Linear(320, 320))

    def forward(self, t: Tensor) -> Tensor:
        return self.h(self.l(self.e(t)).tanh().mean(1))


def no_bias() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 120, bias=False), nn.ReLU(), nn.Linear(120, 100, bias=False), nn.Tanh(), nn.Linear(100, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def grey_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 4, padding="same", bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def cnn1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 5, 3, stride=2, padding="valid"), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3))


def cnn3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 3, 2, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.Flatten(), nn.Linear(216, 3)
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3)
    )


def bare_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))


def frozen_base() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)  # only its bias trains
    net[4].bias.requires_grad_(False)
    return net


def half_frozen() -> nn.Module:
    """Of each layer the weight or the bias trains; every norm has an eps of its own."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4, eps=0.3),
        nn.LayerNorm([4, 6, 6], eps=0.2),
        nn.InstanceNorm2d(4, eps=0.4, affine=True),
        nn.RMSNorm([6], eps=0.5),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    for frozen in (net[0].weight, net[1].weight, net[2].bias, net[3].weight):
        frozen.requires_grad_(False)
    return net


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Linear(6, 6), nn.Linear(6, 3)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.b(torch.relu(self.a(x)))) * self.scale + self.a.bias)


class Scales(nn.Module):
    """Parameters of one number, without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.scale, self.power = (
            nn.Linear(6, 3),
            nn.Parameter(torch.tensor(1.5)),
            nn.Parameter(torch.tensor(0.5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * self.scale.exp() + self.power**2 * x[:, :3]


class Still(nn.Module):
    """A layer is met as a constant before it is met as itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.l, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = self.l.weight.detach()
        return self.h(self.l(torch.relu(F.linear(self.first(x), constant))))


class Idle(nn.Module):
    """One layer meets no sample: it only decays, and goes on where it went."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.pos = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(5, 8)
        self.qkv, self.n, self.h = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        x = self.e(t) + self.pos(torch.arange(5))
        q, k, v = self.qkv(self.n(x)).view(len(t), 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(t), 5, 8)
        return self.h((x + a).mean(1))


class Encoder(nn.Module):
    """PyTorch's own transformer layers, with a causal mask and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.cross = nn.MultiheadAttention(8, 4, kdim=8, vdim=8, batch_first=True)

    def forward(self, t: Tensor) -> Tensor:
        causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
        x = self.encoder(self.e(t), mask=causal, src_key_padding_mask=(t == 0) & (torch.arange(5) > 0))
        y, weights = self.cross(x, self.e(t), x)
        return self.h((y + x).mean(1)) + weights.mean((1, 2)).unsqueeze(1)


class Prepended(nn.Module):
    """Made as many as there are samples: a class token, positions, a first state; and as many as it says: a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(2, 8))
        self.state = nn.Parameter(torch.randn(8))

    def forward(self, t: Tensor) -> Tensor:
        n = len(t)
        x = torch.cat([self.token.expand(n, -1, -1), self.places.expand((n, 2, 8)), self.e(t)], 1)
        first = self.state.repeat(n, 1) + self.places.repeat(2 * n, 1).view(n, 4, 8).mean(1)
        bias = self.places.repeat(4, 1).mean(0) + self.token.expand(1, 8, -1)[0, 0] + self.state.expand(8, 8).sum(0)
        return self.h(torch.tanh(x.mean(1) + first) + bias)


class InPlace(nn.Module):
    """What layers give back is written into, also by parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.base = nn.Embedding(11, 8), nn.Linear(8, 12).requires_grad_(False)
        self.l, self.h = nn.Linear(12, 12), nn.Linear(12, 3)
        self.shift = nn.Parameter(torch.randn(12))

    def forward(self, t: Tensor) -> Tensor:
        x = self.e(t)
        x *= 2
        z = self.l(self.base(x).relu_())
        z += self.shift
        return self.h(z.relu_().mean(1)).mul_(2)


def wide_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 120), nn.ReLU(inplace=True), nn.Linear(120, 100), nn.ELU(1.0, True), nn.Linear(100, 3)
    )


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 12).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(12, 2) * 0.1)
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(3, 12) * 0.3)])

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.base(x) + F.linear(F.linear(x, self.lora_a), self.lora_b))
        return torch.cat([(z * self.parts[0]) @ self.parts[1].T, z.new_zeros(len(z), 0)], 1)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


# ---------------------------------------------------------------- data and the reference
def fields(kind: str, n: int, g: torch.Generator, dtype: torch.dtype) -> Tensor:
    shapes = {"vector": (6,), "image": (3, 8, 8), "grey": (1, 8, 8), "signal": (3, 8), "volume": (2, 4, 4, 4)}
    if kind == "tokens":
        return torch.randint(0, 11, (n, 5), generator=g)
    return torch.randn(n, *shapes[kind], generator=g, dtype=torch.float64).to(dtype)


def cohort(
    model: Model,
    kind: str = "vector",
    sizes: list[int] = SIZES,
    solver: Solver | None = None,
    own: tuple[str, ...] = (),
    shared: dict[str, Any] | None = None,
    starts: bool = False,
    table: bool = True,
    **more: Any,
) -> list[Training]:
    """One request per size; `own` extras and, where asked, starts differ between clients."""
    g = torch.Generator().manual_seed(3)
    solver = solver or SGD(lr=0.05, epochs=2, batch_size=4)
    n, dtype = sum(sizes), model.module.parameters().__next__().dtype
    whole = Data(x=fields(kind, n, g, dtype), y=torch.randint(0, 3, (n,), generator=g))
    start, at, out = model.initial(), 0, []
    for i, size in enumerate(sizes):
        mine = torch.Generator().manual_seed(i)
        data = whole.slice(at, at + size) if table else whole.rows(torch.arange(at, at + size))
        at += size
        noise = lambda s: (torch.randn(len(start), generator=mine, dtype=torch.float64) * s).to(dtype)  # noqa: B023, E731
        extras = {**{name: noise(0.01) for name in own}, **(shared or {})}
        if "anchor" in extras:
            extras["anchor"] = start
        steps = solver.work(size)
        out.append(
            Training(
                client=i,
                model=model.train(),
                start=start + noise(0.1) if starts else start,
                solver=solver,
                steps=steps,
                data={"": data},
                schedules={"": Schedule.epochs(size, solver.batch_size, steps, mine)},
                extras=extras,
                key=("test", i),
                **more,
            )
        )
    return out


class Objective:
    """What a step hook is given, by plain autograd."""

    def __init__(self, r: Training, net: Callable[..., Any], batch: Data) -> None:
        self.r, self.net, self.batch, self.model = r, net, batch, r.model

    def losses(self, v: Tensor, hook: Any) -> Tensor:
        return self.net.losses(v, self.batch) if hook is None else hook(self.net, v, self.batch, self.r.extras)

    def __call__(self, v: Tensor, hook: Any = None) -> Tensor:
        return self.losses(v, hook or self.r.loss).mean().detach()

    def grad(self, v: Tensor, hook: Any = None) -> Tensor:
        v = v.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.losses(v, hook or self.r.loss).mean(), v)
        if self.r.only is not None:
            g = g * self.r.only
        clip = self.r.solver.clip
        return g if clip is None else g * min(1.0, clip / float(g.norm()))


class Net:
    """The network as a function of a vector, without the library's own way of calling it."""

    def __init__(self, model: Model, block: Any = None) -> None:
        self.model, self.block = model, block
        self.module = copy.deepcopy(model.module).train()

    def __call__(self, v: Tensor, x: Tensor) -> Any:
        tree = self.model.layout.tree(v)
        if self.block is not None:
            module = self.module.get_submodule(self.block)
            return functional_call(
                module, {n[len(self.block) + 1 :]: t for n, t in tree.items() if n.startswith(self.block)}, x
            )
        return functional_call(self.module, tree, x)

    def losses(self, v: Tensor, batch: Data) -> Tensor:
        return F.cross_entropy(self(v, batch.x), batch.y, reduction="none")

    def __getitem__(self, block: Any) -> Net:
        return Net(self.model, block if isinstance(block, str) else block.stop and "features")


def reference(r: Training) -> tuple[Tensor, Any, float]:
    """One client by the textbook."""
    w, carry, net, s, total = r.start.clone(), r.carry, Net(r.model), r.solver, 0.0
    m = v2 = torch.zeros_like(w)
    for k in range(r.steps):
        f = Objective(r, net, r.batch(k))
        total += float(f(w))
        d, carry = (f.grad(w), carry) if r.step is None else r.step(w, f, k, carry, r.extras)
        inside = torch.ones_like(w) if r.only is None else r.only.to(w)
        if isinstance(s, Adam):
            m, v2 = s.betas[0] * m + (1 - s.betas[0]) * d, s.betas[1] * v2 + (1 - s.betas[1]) * d * d
            a, b = m / (1 - s.betas[0] ** (k + 1)), v2 / (1 - s.betas[1] ** (k + 1))
            move = s.lr * (a / (b.sqrt() + s.eps) + s.weight_decay * w)
        else:
            m = s.momentum * m + d + s.weight_decay * w
            move = s.lr * m
        w = (w - inside * move).detach()
    return w, carry, total / max(1, r.steps)


def check(requests: list[Training], tolerance: float = 1e-11) -> list[Trained]:
    """Stacked against the reference: vectors, carries, losses, and the weighted sum without building rows."""
    wanted = [reference(r) for r in requests]
    got = train_stacked(requests)
    weights = [0.1 + 0.2 * i for i in range(len(requests))]
    acc = torch.zeros_like(requests[0].start)
    add_rows(acc, [out.vector - r.start for out, r in zip(got, requests)], weights)
    total = sum(w * (v - r.start) for w, (v, _, _), r in zip(weights, wanted, requests))
    torch.testing.assert_close(acc, total, atol=tolerance * 10, rtol=tolerance * 10)
    for out, (vector, carry, loss), r in zip(got, wanted, requests):
        assert float((vector - r.start).abs().max()) > 1e-4 or r.steps == 0
        torch.testing.assert_close(out.vector.clone(), vector, atol=tolerance, rtol=tolerance)
        assert out.steps == r.steps
        if r.steps:
            assert out.loss == pytest.approx(loss, rel=1e-4)
        if carry is not None:
            torch.testing.assert_close(out.carry, carry, atol=tolerance, rtol=tolerance)
    return got


def model_of(net: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **options: Any) -> Model:
    torch.manual_seed(0)
    return Model(net().to(dtype), Classification(), **options)


# ---------------------------------------------------------------- step hooks
def prox(w, f, k, carry, extras):
    return f.grad(w) + 0.1 * (w - extras["anchor"]), carry


def shifted(w, f, k, carry, extras):
    return f.grad(w) + extras["shift"], carry


def dynamic(w, f, k, carry, extras):
    return f.grad(w) - extras["shift"] + 0.1 * (w - extras["anchor"]), carry


def heavy_ball(w, f, k, carry, extras):
    m = 0.9 * carry["m"] + f.grad(w)
    return m, {"m": m}


def sharpness(w, f, k, carry, extras):
    g = f.grad(w)
    return f.grad(w + 0.05 * g / (g.norm() + 1e-12)), carry


def own_adam(w, f, k, carry, extras):
    g = f.grad(w)
    m, v = 0.9 * carry[0] + 0.1 * g, 0.99 * carry[1] + 0.01 * g * g
    return m / (v.sqrt() + 1e-3), (m, v, w)


def variance_reduced(w, f, k, carry, extras):
    return f.grad(w) - f.grad(extras["anchor"]) + extras["shift"], carry


def line_search(w, f, k, carry, extras):
    g = f.grad(w)
    return g * torch.where(f(w - 0.1 * g) < f(w), 1.0, 0.5), carry


def uses_batch(w, f, k, carry, extras):
    return f.grad(w) * f.batch.x.abs().mean(), carry


# ---------------------------------------------------------------- layers
@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (mlp, "vector"),
        (wide, "vector"),
        (no_bias, "vector"),
        (cnn, "image"),
        (grey_cnn, "grey"),
        (cnn1d, "signal"),
        (cnn3d, "volume"),
        (group_norm, "image"),
        (frozen_base, "vector"),
        (half_frozen, "image"),
        (Tied, "vector"),
        (Scales, "vector"),
        (Still, "vector"),
        (Idle, "vector"),
        (Attention, "tokens"),
        (Encoder, "tokens"),
        (Prepended, "tokens"),
        (InPlace, "tokens"),
        (wide_in_place, "vector"),
        (Lora, "vector"),
    ],
)
@pytest.mark.parametrize(
    ("step", "options"),
    [
        (None, {}),
        (None, {"weight_decay": 0.1}),
        (None, {"clip": 0.3, "weight_decay": 0.1}),
        (None, {"momentum": 0.9, "weight_decay": 0.05}),
        (sharpness, {}),
    ],
    ids=["sgd", "decay", "clip", "momentum", "sam"],
)
def test_layers(net, kind, step, options):
    solver = SGD(lr=0.05, epochs=2, batch_size=4, **options)
    check(cohort(model_of(net), kind, solver=solver, step=step))


@pytest.mark.parametrize("net", [mlp, wide])
@pytest.mark.parametrize("starts", [False, True], ids=["shared", "own starts"])
@pytest.mark.parametrize(
    ("step", "own", "carry", "options"),
    [
        (prox, (), None, {}),
        (prox, (), None, {"momentum": 0.5}),
        (shifted, ("shift",), None, {}),
        (shifted, ("shift",), None, {"momentum": 0.5, "clip": 0.5}),
        (dynamic, ("shift",), None, {"weight_decay": 0.1}),
        (heavy_ball, (), "m", {}),
        (heavy_ball, (), "m", {"weight_decay": 0.1}),
        (own_adam, (), "two", {}),
        (sharpness, (), None, {"clip": 0.5, "momentum": 0.5}),
        (variance_reduced, ("shift",), None, {}),
        (line_search, (), None, {}),
    ],
    ids=[
        "prox",
        "prox momentum",
        "scaffold",
        "scaffold momentum clip",
        "feddyn",
        "heavy ball",
        "heavy ball decay",
        "own adam",
        "sam",
        "svrg",
        "search",
    ],
)
def test_steps(net, starts, step, own, carry, options):
    model = model_of(net)
    zero = torch.zeros(model.layout.size, dtype=torch.float64)
    carry = {"m": {"m": zero + 0.01}, "two": (zero, zero, zero)}.get(carry)
    solver = SGD(lr=0.05, epochs=2, batch_size=4, **options)
    check(cohort(model, solver=solver, step=step, own=own, starts=starts, carry=carry, shared={"anchor": None}))


def weighted_prox(w, f, k, carry, extras):
    return f.grad(w) + extras["mu"] * (w - extras["anchor"]), carry


def test_a_number_that_is_a_tensor_may_differ():
    requests = cohort(model_of(wide), step=weighted_prox, shared={"anchor": None})
    for r in requests:
        r.extras = {**r.extras, "mu": torch.tensor(0.1 * r.client, dtype=torch.float64)}
    check(requests)


@pytest.mark.parametrize("step", [None, prox, sharpness])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "clip": 0.2}], ids=["plain", "decay clip"])
def test_adam(step, options):
    solver = Adam(lr=0.01, epochs=2, batch_size=4, **options)
    check(cohort(model_of(mlp), solver=solver, step=step, shared={"anchor": None}), 1e-9)


# ---------------------------------------------------------------- losses
def on_features(model, w, batch, extras):
    z = model[:"head"](w, batch.x)
    far = (z - extras["prototypes"][batch.y]).square().mean(1)
    return F.cross_entropy(model["head"](w, z), batch.y, reduction="none") + 0.5 * far


def distilled(model, w, batch, extras):
    with torch.no_grad():
        t = F.softmax(model(extras["teacher"], batch.x), -1)
    return model.losses(w, batch) - (t * F.log_softmax(model(w, batch.x + 0.1), -1)).sum(1)


def pulled(model, w, batch, extras):
    return model.losses(w, batch) + 0.05 * (w - extras["anchor"]).square().sum()


def squared(model, w, batch, extras):
    return (model(w, batch.x).sum(1) - batch.y).square()


def scalar(model, w, batch, extras):
    return model.losses(w, batch).mean()


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("step", [None, sharpness])
def test_losses(own, step):
    model = model_of(TwoHeads)
    g = torch.Generator().manual_seed(5)
    prototypes, teacher = torch.randn(3, 16, generator=g, dtype=torch.float64), model.initial() + 0.1
    requests = cohort(model, shared={"prototypes": prototypes}, loss=on_features, step=step)
    if own:
        for r in requests:
            r.extras = {"prototypes": prototypes + r.client}
    check(requests)
    requests = cohort(model, shared={"teacher": teacher}, loss=distilled, step=step)
    if own:
        for r in requests:
            r.extras = {"teacher": teacher * (1 + r.client)}
    check(requests)
    check(cohort(model, shared={"anchor": None}, loss=pulled, step=step))


def two_streams(model, w, batch, extras):
    far = (model[:"head"](w, batch["public"].x)).square().mean(1)
    return model.losses(w, batch["own"]) + far


@pytest.mark.parametrize("step", [None, sharpness])
def test_several_streams(step):
    """Each client's samples beside batches of public data, the same table for all."""
    requests = cohort(model_of(TwoHeads), sizes=[8, 8, 8], loss=two_streams, step=step)
    public = Data(x=torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    for r in requests:
        rng = torch.Generator().manual_seed(r.client + 50)
        r.data = {"own": r.data[""], "public": public}
        r.schedules = {"own": r.schedules[""], "public": Schedule.epochs(30, 4, r.steps, rng)}
    for a, b in zip(train_stacked(requests), train_plain(requests)):
        torch.testing.assert_close(a.vector.clone(), b.vector, atol=1e-11, rtol=1e-11)


def test_scalar_loss_is_refused():
    with pytest.raises(NotStackable, match="one value per sample"):
        train_stacked(cohort(model_of(TwoHeads), loss=scalar))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.r = nn.LSTM(8, 8, batch_first=True)

    def forward(self, t: Tensor) -> Tensor:
        return self.h(self.r(self.e(t))[0].mean(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) if self.l.weight.sum() > 0 else -self.l(x)


@pytest.mark.parametrize(
    ("net", "kind", "blame"),
    [
        (Recurrent, "tokens", "LSTM"),
        (Branching, "vector", "branch"),
    ],
)
def test_refusals_name_the_operator(net, kind, blame):
    with pytest.raises(NotStackable, match=blame):
        train_stacked(cohort(model_of(net), kind))


# ---------------------------------------------------------------- masks, statistics, sizes
@pytest.mark.parametrize("step", [None, prox, sharpness])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"momentum": 0.9, "clip": 0.2}])
def test_only(step, starts, options):
    model = model_of(mlp)
    whole = model.layout.where("3.*")
    part = torch.rand(model.layout.size, generator=torch.Generator().manual_seed(1)) < 0.5
    for only in (whole, part):
        solver = SGD(lr=0.05, epochs=2, batch_size=4, **options)
        requests = cohort(model, solver=solver, step=step, starts=starts, only=only, shared={"anchor": None})
        for out, r in zip(check(requests), requests):
            assert torch.equal(out.vector[~only], r.start[~only])


@pytest.mark.parametrize("step", [None, prox])
def test_only_differs_between_clients(step):
    model = model_of(mlp)
    requests = cohort(
        model, step=step, shared={"anchor": None}, solver=SGD(lr=0.05, epochs=2, batch_size=4, momentum=0.5)
    )
    for r in requests:
        r.only = torch.rand(model.layout.size, generator=torch.Generator().manual_seed(r.client)) < 0.5
    check(requests)
    for r in requests:  # equal masks that are not one object
        r.only = model.layout.where("3.*")
    check(requests)


@pytest.mark.parametrize("net", [batch_norm, bare_norm])
@pytest.mark.parametrize("rule", ["vector", "batch", "frozen"])
@pytest.mark.parametrize("step", [None, sharpness])
@pytest.mark.parametrize("sizes", [[8, 8, 4], [9, 7, 6]], ids=["full", "partial"])
def test_batch_norm(net, rule, step, sizes):
    """Against the sequential path, itself tested elsewhere: statistics are per client and padding never enters them."""
    sizes = [s for s in sizes if s % 4 != 1]  # batch norm cannot train on one sample
    requests = cohort(model_of(net, buffers=rule), "image" if net is batch_norm else "vector", sizes, step=step)
    for a, b in zip(train_stacked(requests), train_plain(requests)):
        torch.testing.assert_close(a.vector.clone(), b.vector, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("sizes", [[7], [1], [4, 4, 4], [3, 12, 0 + 2]])
@pytest.mark.parametrize("table", [True, False])
def test_sizes(sizes, table):
    check(cohort(model_of(wide), sizes=sizes, table=table))


def test_single_precision():
    check(cohort(model_of(wide, torch.float32)), 2e-6)


def test_lengths_are_not_confused():
    """A table of positions as long as the folded batch (four clients of five samples, twenty positions)."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.h = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.h(x + self.table(torch.arange(20)).mean(0))

    check(cohort(model_of(Positions), sizes=[5, 5, 5, 5], solver=SGD(lr=0.05, epochs=2, batch_size=5)))


def test_lengths_are_not_confused_where_they_follow_the_data():
    """As many positions as tokens: three at first, then twenty, as long as the folded batch."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.p, self.h = nn.Embedding(11, 6), nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, t: Tensor) -> Tensor:
            return self.h(torch.tanh(self.e(t) + self.p(torch.arange(t.shape[1]))).mean(1))

    model = model_of(Positions)
    for length in (3, 20):
        requests = cohort(model, "tokens", sizes=[5, 5, 5, 5], solver=SGD(lr=0.05, epochs=2, batch_size=5), table=False)
        for r in requests:
            r.data = {"": r.data[""].replace(x=r.data[""].x.repeat(1, 4)[:, :length])}
        check(requests)


def test_hooks_that_look_at_the_batch():
    check(cohort(model_of(mlp), sizes=[8, 8, 4], step=uses_batch))
    check(cohort(model_of(mlp), step=uses_batch))


def test_samples_left_out_do_not_matter():
    """One without a label, which no order names, beside batches of other sizes."""
    requests = cohort(model_of(lambda: nn.Linear(6, 3)), sizes=[9, 9], loss=squared)
    for r, batch in zip(requests, (4, 2)):
        y = torch.arange(9.0, dtype=torch.float64).masked_fill(torch.arange(9) == 0, float("nan"))
        r.data = {"": r.data[""].replace(y=y)}
        r.schedules, r.steps = {"": Schedule.given(torch.arange(1, 1 + batch).repeat(3, 1))}, 3
    check(requests)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_sample_counts_in_short_floats(dtype):
    """Of whole numbers above 256 a bfloat16 knows every second one at most."""
    requests = cohort(model_of(mlp), sizes=[301, 299], solver=SGD(lr=0.1, epochs=1, batch_size=301))
    (step,) = steps(requests, dtype, lambda *_: False)
    (seed,) = step.seeds.values()
    assert (seed.view(2, -1) > 0).sum(1).tolist() == [301, 299]


def test_no_steps():
    requests = cohort(model_of(mlp))
    requests[2].steps = 0
    check(requests)


# ---------------------------------------------------------------- rows
def test_rows_outlive_their_chunk():
    model = model_of(wide)
    first = cohort(model)
    kept = train_stacked(first)
    held = [out.vector for out in kept]
    deltas = [(r.start - v) / 2 for v, r in zip(held, first)]
    wanted = [reference(r)[0] for r in first]
    train_stacked(cohort(model, sizes=[12, 11]))  # the same memory
    for v, d, w, r in zip(held, deltas, wanted, first):
        assert isinstance(v, Row)
        assert isinstance(d, Row)
        torch.testing.assert_close(v.build(), w)
        torch.testing.assert_close(d + 0, (r.start - w) / 2)


def test_short_vectors_are_not_deferred():
    """And neither the chunk's memory nor the vector of anybody else is kept with one."""
    model = model_of(mlp)
    first = cohort(model)
    kept = [out.vector for out in train_stacked(first)]
    wanted = [reference(r)[0] for r in first]
    train_stacked(cohort(model, sizes=[12, 11]))  # the same memory
    for v, w in zip(kept, wanted):
        assert type(v) is Tensor
        assert v.untyped_storage().nbytes() == w.nbytes
        torch.testing.assert_close(v, w)


def test_training_goes_on_from_a_row():
    requests = cohort(model_of(wide))
    first = train_stacked(requests)
    again = cohort(model_of(wide))
    for r, s, out in zip(again, requests, first):
        r.model, r.start, r.extras = s.model, out.vector, {"anchor": out.vector}
        r.step = prox
    wanted = []
    for r in again:
        r.start = r.start.clone()
        r.extras = {"anchor": r.start}
        wanted.append(reference(r)[0])
    for r, out in zip(again, first):
        r.start, r.extras = out.vector, {"anchor": out.vector}
    for out, w in zip(train_stacked(again), wanted):
        torch.testing.assert_close(out.vector.clone(), w, atol=1e-11, rtol=1e-11)


def test_rows_are_tensors():
    requests = cohort(model_of(wide))
    out, start = train_stacked(requests)[0], requests[0].start
    v = out.vector
    assert isinstance(v, Tensor)
    assert v.shape == start.shape
    assert v.dtype == start.dtype
    delta = 2 * -(v - start)
    assert isinstance(delta, Row)
    assert bool(torch.isfinite(delta).all())
    assert v.deferred()
    w = v.build().clone()
    torch.testing.assert_close(delta.clone(), 2 * (start - w))
    torch.testing.assert_close(torch.stack([v, start]).sum(0), w + start)
    torch.testing.assert_close(start.clone().add_(v), start + w)
    torch.testing.assert_close(v[3:5], w[3:5])
    for copied in (copy.deepcopy(v), pickle.loads(pickle.dumps(v)), torch.from_numpy(v.numpy()), v.detach() + 0):
        torch.testing.assert_close(copied, w)
    v.mul_(2)
    torch.testing.assert_close(v.clone(), 2 * w)
    torch.testing.assert_close((out.vector - start).clone(), 2 * w - start)
    gc.collect()


def correct(w, f, k, carry, extras):
    return f.grad(w) - extras["own"] + extras["control"], carry


def given(requests: list[Training]) -> list[Training]:
    """What the step reads is of the payload or the memory of each job."""
    for r in requests:
        r.given = (r.start, *r.extras.values())
    return requests


@pytest.mark.parametrize("epochs", [1, 2])  # with lazy layers, and without
@pytest.mark.parametrize("known", [True, False])
def test_sums_with_what_a_job_was_given_stay_rows(epochs, known):
    control = torch.randn(model_of(wide).layout.size, dtype=torch.float64) * 0.01
    solver = SGD(lr=0.05, epochs=epochs, batch_size=4)
    options = {"solver": solver, "step": correct, "own": ("own",), "shared": {"control": control}}
    requests = cohort(model_of(wide), sizes=[30, 30, 17, 3], **options)
    if known:
        given(requests)
    rows, wanted = [], []
    for r, out in zip(requests, train_stacked(requests)):
        x, own = r.start, r.extras["own"]
        w = reference(r)[0]
        delta, change = w - x, (w - x) / (-r.steps * 0.05) - control
        wanted.append((delta, change, own + change, control - w, w + 2 * x - own))
        mine = out.vector - x
        ours = mine / (-out.steps * out.lr) - control
        rows.append((mine, ours, own + ours, control - out.vector, out.vector + (x + x) - own))
        assert isinstance(ours, Row) == known
        assert isinstance(rows[-1][2], Row) == known
    for which in (2, 0, 1, 3, 4):  # what is kept is built first; the others are had from it, or built anew
        for mine, its in zip(rows, wanted):
            torch.testing.assert_close(mine[which].clone(), its[which], atol=1e-11, rtol=1e-11)
    rows = [(out.vector - r.start, out.vector) for r, out in zip(requests, train_stacked(requests))]
    for which in (0, 1):
        acc = torch.ones_like(control)
        add_rows(acc, [row[which] for row in rows], [0.5, 1.0, -2.0, 3.0])
        its = [r.start * 0 if which == 0 else r.start for r in requests]
        total = sum(f * (w[0] + x) for f, w, x in zip([0.5, 1.0, -2.0, 3.0], wanted, its))
        torch.testing.assert_close(acc, 1 + total, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("options", [{"step": shifted}, {"step": dynamic, "shared": {"anchor": None}}])
@pytest.mark.parametrize("net", [broad, dimmed, clamped])
def test_a_vector_of_each_client_meets_the_inputs_of_all_steps_at_once(net, options, monkeypatch):
    solver = SGD(lr=0.05, epochs=1, batch_size=4)
    requests = cohort(model_of(net), kind="image", sizes=[30, 30, 17, 3], solver=solver, own=("shift",), **options)
    shapes = []
    honest = lazy._add_shift
    monkeypatch.setattr(lazy, "_add_shift", lambda z, x, *args: (shapes.append(x.shape[-1]), honest(z, x, *args)))
    for r, out in zip(requests, train_stacked(requests), strict=True):
        torch.testing.assert_close(out.vector.clone(), reference(r)[0], atol=1e-11, rtol=1e-11)
    assert 100 in shapes
    assert (192 in shapes) == (net is not broad)  # their inputs are made at each step


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_layer_that_meets_the_batch_and_more_does_not_look_ahead(factor):
    def both(model, w, batch, extras):
        return model.losses(w, batch) + model(w, factor * batch.x).square().mean(1)

    solver = SGD(lr=0.05, epochs=1, batch_size=4)
    options = {"step": shifted, "own": ("shift",), "loss": both}
    requests = cohort(model_of(broad), kind="image", sizes=[30, 30, 17, 3], solver=solver, **options)
    for r, out in zip(requests, train_stacked(requests), strict=True):
        torch.testing.assert_close(out.vector.clone(), reference(r)[0], atol=1e-11, rtol=1e-11)


def test_layers_kept_as_products_meet_sequences():
    requests = cohort(model_of(Along), "tokens", solver=SGD(lr=0.05, epochs=1, batch_size=4))
    check(requests)
    assert set(twin_of(requests[0].model, requests[0].start).lazies) == {"l.0.weight", "l.2.weight"}


def test_what_cancels_is_not_computed(monkeypatch):
    """SCAFFOLD's new control variate is the mean gradient: a product without the old one, the start, the server's."""
    control = torch.randn(model_of(wide).layout.size, dtype=torch.float64) * 0.01
    solver = SGD(lr=0.05, epochs=1, batch_size=4)
    requests = given(
        cohort(model_of(wide), sizes=[30, 30], solver=solver, step=correct, own=("own",), shared={"control": control})
    )
    terms = []
    honest = LazyDense.copy
    monkeypatch.setattr(LazyDense, "copy", lambda *args: (terms.append(len(args[-1])), honest(*args))[1])
    for r, out in zip(requests, train_stacked(requests)):
        change = (out.vector - r.start) / (-out.steps * out.lr) - control
        new = r.extras["own"] + change
        assert isinstance(new, Row)
        new.build()
    assert terms == [0, 0]


def test_sums_of_rows_need_no_second_product(monkeypatch):
    requests = given(cohort(model_of(wide), sizes=[30, 30], own=("own",)))
    out = [t.vector - r.start for t, r in zip(train_stacked(requests), requests)]
    kept = [r.extras["own"] + 3 * row for r, row in zip(requests, out)]
    built = [k.build() for k in kept]
    monkeypatch.setattr(LazyDense, "add", None)
    acc = torch.zeros_like(built[0])
    add_rows(acc, out, [1.0, 1.0])
    wanted = sum((b - r.extras["own"]) / 3 for b, r in zip(built, requests))
    torch.testing.assert_close(acc, wanted, atol=1e-12, rtol=1e-12)


def test_a_row_is_not_had_from_what_was_overwritten():
    requests = cohort(model_of(wide))
    start = requests[0].start
    wanted = train_stacked(requests)[0].vector.clone() - start
    out = train_stacked(requests)[0]
    twice = 2 * out.vector
    assert isinstance(twice, Row)
    twice.build().zero_()
    torch.testing.assert_close((out.vector - start).clone(), wanted)


@pytest.mark.parametrize("later", [False, True], ids=["in its chunk", "after its chunk"])
def test_writing_into_a_part_of_one_row_leaves_the_others_as_they_were(later):
    requests = cohort(model_of(wide))
    start = requests[0].start
    wanted = train_stacked(requests)[0].vector.clone()
    out = train_stacked(requests)[0]
    first, second = out.vector - start, out.vector - start
    assert isinstance(second, Row)
    if later:
        train_stacked(requests)
    first[:3].zero_()
    out.vector[3:6].zero_()
    torch.testing.assert_close(second.clone(), wanted - start)
    torch.testing.assert_close((first + start)[3:], wanted[3:])
    torch.testing.assert_close(out.vector[:3].clone(), wanted[:3])


def test_a_row_is_not_had_from_what_is_too_small():
    """0.001 * w + own holds fewer digits of w than the chunk does."""
    requests = given(cohort(model_of(wide, torch.float32), own=("own",)))
    wanted = train_stacked(given(cohort(requests[0].model, own=("own",))))[0].vector.clone()
    out, own = train_stacked(requests)[0], requests[0].extras["own"]
    (own + 1e-6 * out.vector).build()
    assert torch.equal(out.vector.clone(), wanted)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e30])
def test_a_row_is_not_had_from_what_lost_it(factor):
    requests = cohort(model_of(wide, torch.float32))
    wanted = train_stacked(requests)[0].vector.clone()
    out = train_stacked(requests)[0]
    (factor * out.vector).build()
    assert torch.equal(out.vector.clone(), wanted)


@pytest.mark.parametrize("given", [0.5, torch.tensor(0.5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
def test_what_a_job_was_given_need_not_be_a_vector(given):
    requests = cohort(model_of(wide))
    requests[0].given = (given,)
    vector = train_stacked(requests)[0].vector
    torch.testing.assert_close(vector + given, vector.clone() + given)


def test_vectors_that_are_nobodys_are_not_waited_with():
    requests = given(cohort(model_of(wide), own=("own",)))
    out = train_stacked(requests)[0]
    mine = torch.ones_like(requests[0].start)
    difference = out.vector - mine
    mine.zero_()
    assert not isinstance(difference, Row)
    torch.testing.assert_close(difference, out.vector.clone() - 1)


def test_not_finite_is_seen():
    requests = cohort(model_of(wide))
    bad = requests[1]
    bad.data = {"": bad.data[""].replace(x=bad.data[""].x * float("nan"))}
    out = train_stacked(requests)
    assert [bool(torch.isfinite(o.vector).all()) for o in out] == [True, False, True, True]


# ---------------------------------------------------------------- the choice
class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x - x.mean(0))


class Sideways(nn.Module):
    """The batch is not the first axis where the weights are met."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.l = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, t: Tensor) -> Tensor:
        return self.l(self.e(t).transpose(0, 1)).mean(0)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def between(w, f, k, carry, extras):
    """Along the gradient; the carry is by how much it and the loss differ when they are taken again."""
    g, value = f.grad(w), f(w)
    return g, carry + (f.grad(w.clone()) - g).abs().sum() + (f(w.clone()) - value).abs()


def test_all_evaluations_of_a_step_see_one_dropout():
    for out in train_stacked(cohort(model_of(dropping), step=between, carry=torch.zeros((), dtype=torch.float64))):
        assert float(out.carry) == 0.0


@pytest.mark.parametrize(("net", "kind"), [(mlp, "vector"), (wide, "vector"), (cnn, "image"), (Attention, "tokens")])
@pytest.mark.parametrize("step", [None, prox, sharpness])
def test_probe_lets_pass(net, kind, step):
    assert probe(cohort(model_of(net, torch.float32), kind, step=step, shared={"anchor": None})) is None
    solver = Adam(lr=0.01, batch_size=4)
    assert probe(cohort(model_of(net, torch.float32), kind, solver=solver, step=step, shared={"anchor": None})) is None


def test_probe_lets_dropout_and_norms_pass():
    assert probe(cohort(model_of(dropping, torch.float32))) is None
    assert probe(cohort(model_of(batch_norm, torch.float32, buffers="vector"), "image")) is None


@pytest.mark.parametrize(
    ("net", "kind", "reason"),
    [
        (Mixing, "vector", "samples mix"),
        (Sideways, "tokens", ""),
        (Branching, "vector", "branch"),
        (Recurrent, "tokens", "LSTM"),
    ],
)
def test_probe_finds(net, kind, reason):
    found = probe(cohort(model_of(net, torch.float32), kind))
    assert found is not None
    assert reason in found


class Remembering(nn.Module):
    """Takes away a mean of all samples there were: of its own client's, or of whoever is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.l = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        z = self.n(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(z.mean(0), alpha=0.1)
        return self.l(z - self.mean)


def test_probe_finds_what_only_clients_that_differ_show():
    """After a normalisation the means of all clients are its bias, which begins at zero."""
    found = probe(cohort(model_of(Remembering, buffers="vector"), sizes=[8, 8, 8]))
    assert found is not None
    assert "samples mix" in found


class Counting(nn.Module):
    """A network that looks at how long its batch is."""

    def __init__(self, limit: int, below: bool = False) -> None:
        super().__init__()
        self.l, self.limit, self.below = nn.Linear(6, 3), limit, below

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * (0.5 if (len(x) > self.limit) != self.below else 1.0)


@pytest.mark.parametrize(
    ("net", "size"), [(lambda: Counting(20), 8), (lambda: Counting(1, below=True), 9)], ids=["many", "one left over"]
)
def test_probe_finds_what_looks_at_the_length_of_real_batches(net, size):
    """No client has more than four samples in a batch, all of them together have."""
    found = probe(cohort(model_of(net, torch.float32), sizes=[size] * 8))
    assert found is not None
    assert "length of a batch" in found


@pytest.mark.parametrize(
    ("net", "first", "later"),
    [
        (lambda: Counting(20), [8] * 4, [8] * 8),
        (lambda: Counting(1, below=True), [8] * 4, [9] * 4),
        (lambda: Counting(14), [3] * 4, [4] * 4),
    ],
    ids=["more clients", "one sample left over", "longer batches"],
)
def test_what_is_longer_or_shorter_than_before_is_compared_again(net, first, later):
    model = model_of(net, torch.float32)
    trainer = Trainer("stacked")
    usual = trainer.train(cohort(model, sizes=first))
    assert [v[:7] for v in trainer.choices().values()] == ["stacked"]
    assert len(usual) == len(first)
    requests = cohort(model, sizes=later)
    with pytest.warns(FedloomWarning, match="length of a batch"):
        got = trainer.train(requests)
    for mine, alone in zip(got, train_plain(requests)):
        assert torch.equal(mine.vector, alone.vector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 1e-4])
def test_probe_finds_what_differs_where_steps_are_short_or_rounded(dtype, clip):
    solver = SGD(lr=0.05, batch_size=4, clip=clip)
    assert probe(cohort(model_of(Mixing, dtype), solver=solver)) is not None
    assert probe(cohort(model_of(wide, dtype), solver=solver)) is None
    if clip is None:
        assert probe(cohort(model_of(lambda: Counting(20), dtype), sizes=[8] * 8, solver=solver)) is not None


def adversarial(model, w, batch, extras):
    """Cross-entropy of samples moved to where it is worse."""
    with torch.enable_grad():
        x = batch.x.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(w, x), batch.y, reduction="sum"), x)
    return F.cross_entropy(model(w, batch.x + 0.1 * g.sign()), batch.y, reduction="none")


def adversarial_as_written(model, w, batch, extras):
    x = batch.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(w, x), batch.y, reduction="sum"), x)
    return F.cross_entropy(model(w, batch.x + 0.1 * g.sign()), batch.y, reduction="none")


@pytest.mark.parametrize("loss", [adversarial, adversarial_as_written])
@pytest.mark.parametrize(("net", "kind"), [(mlp, "vector"), (wide, "vector"), (cnn, "image")])
def test_a_loss_that_takes_a_gradient_is_refused_in_words(net, kind, loss):
    requests = cohort(model_of(net), kind, loss=loss)
    for _ in range(2):
        with pytest.raises(NotStackable, match="takes a gradient of its own"):
            train_stacked(requests)
        train_stacked(cohort(requests[0].model, kind))  # weights that have been trained know where gradients go


def test_what_is_told_is_compared_all_the_same():
    """Networks of one name and size: a choice of one may meet the other."""
    told = {describe(cohort(model_of(lambda: nn.Linear(6, 3), torch.float32))[0]): "stacked: 3x as fast"}
    fine, mixing = (cohort(model_of(net, torch.float32)) for net in (lambda: nn.Linear(6, 3), Mixing))
    for known in (Trainer("auto", told), Trainer("auto")):
        known.adopt(told)
        known.train(fine)
        assert known.choices() == told
        with pytest.warns(FedloomWarning, match="samples mix"):
            out = known.train(mixing)
        for a, b in zip(out, train_plain(mixing)):
            assert torch.equal(a.vector, b.vector)


def test_best_path_says_why():
    path, why = best_path(cohort(model_of(mlp, torch.float32), sizes=[20] * 40))
    assert path in ("stacked", "plain")
    assert "chunk of 40" in why


def test_chunks_fit_the_cache():
    small, large = cohort(model_of(mlp, torch.float32))[0], cohort(model_of(wide, torch.float32))[0]
    assert choose_chunk(small, 100) == 100
    assert 1 <= choose_chunk(large, 100) <= 100
    assert choose_chunk(cohort(model_of(cnn), "image")[0], 11) in (4, 5)
    assert choose_chunk(small, 1) == 1


@pytest.mark.parametrize("rule", ["vector", "batch"])
def test_batch_norm_of_a_single_image(rule):
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)
        )

    requests = cohort(model_of(net, buffers=rule), "grey", [5, 1, 2], starts=True)
    for a, b in zip(train_stacked(requests), train_plain(requests)):
        torch.testing.assert_close(a.vector.clone(), b.vector, atol=1e-11, rtol=1e-11)
