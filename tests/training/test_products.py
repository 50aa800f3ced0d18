"""The quicker product gives what the ordinary one gives, up to rounding; frozen layers stay differentiable."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from fedloom.training import products
from fedloom.training.products import flop_formulas, product, quicken

torch.set_num_threads(1)


@pytest.mark.parametrize(("n", "i", "o"), [(3, 4, 5), (500, 784, 200), (1, 3000, 500), (2500, 200, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product(n, i, o, dtype):
    g = torch.Generator().manual_seed(n)
    x, w, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((n, i), (o, i), (o,)))
    for bias in (b, None):
        exact = x @ w.T + (0 if bias is None else bias)
        got = product(x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype))
        torch.testing.assert_close(got.double(), exact, atol=2e-4 if dtype == torch.float32 else 1e-10, rtol=1e-5)
    back = product(exact.to(dtype), w.t().to(dtype))  # a view, the other way round
    torch.testing.assert_close(back.double(), exact @ w, atol=1.0 if dtype == torch.float32 else 1e-8, rtol=1e-4)


@pytest.mark.parametrize(("i", "o"), [(4, 5), (784, 200)])
@pytest.mark.parametrize("quick", [True, False])
def test_products_of_each_with_its_own(i, o, quick, monkeypatch):
    if not quick:
        monkeypatch.setattr(products, "_quicker", lambda: None)
    x, w = torch.randn(3, 7, i), torch.randn(3, o, i)
    got = products.products(x, w)
    torch.testing.assert_close(got, torch.einsum("nri,noi->nro", x, w), atol=2e-4, rtol=1e-5)


def test_it_gives_way(monkeypatch):
    """Where the other library is switched off, or is not there, the ordinary product is taken."""
    x, w = torch.randn(400, 300), torch.randn(200, 300)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(product(x, w), x @ w.t())
    monkeypatch.setattr(products, "_quicker", lambda: None)
    assert torch.equal(product(x, w), x @ w.t())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(96, 128).requires_grad_(False)
        self.t = nn.Linear(128, 96)
        self.b = nn.Linear(96, 96, bias=False).requires_grad_(False)

    def forward(self, x):
        return self.b(torch.tanh(self.t(torch.tanh(self.a(x)))))


@pytest.fixture(params=["as this machine has it", "always"])
def nets(request, monkeypatch):
    """A network, and its copy with frozen layers made quick; also where the processor gains nothing from it."""
    if request.param == "always":
        monkeypatch.setattr(products, "_dense", lambda m, input: products._frozen(input, m.weight, m.bias))
        monkeypatch.setattr(products, "_quicker", lambda: F.linear)
        monkeypatch.setattr(products, "product", lambda x, w, b=None: F.linear(x, w, b))
    torch.manual_seed(1)
    plain = Net()
    quick = copy.deepcopy(plain)
    quicken(quick)
    return plain, copy.deepcopy(quick), torch.randn(10, 32, 96)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_frozen_layers_under_every_kind_of_derivative(nets):
    plain, quick, x = nets
    x.requires_grad_()
    v = torch.randn_like(x)

    def first(m):
        return torch.autograd.grad(m(x).square().sum(), (x, m.t.weight))

    def second(m):
        (g,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x)

    def of(m):
        return lambda w, x: functional_call(m, {"t.weight": w, "t.bias": plain.t.bias}, (x,))

    def forward(m):
        return jvp(lambda w: of(m)(w, x.detach()), (plain.t.weight,), (torch.ones_like(plain.t.weight),))

    def mapped(m):
        one = grad(lambda w, x: of(m)(w, x).square().sum())
        return vmap(one, in_dims=(None, 0))(plain.t.weight.detach(), x.detach())

    for derivative in (first, second, forward, mapped):
        close(derivative(plain), derivative(quick))
    with torch.no_grad():
        close(plain(x[0, 0]), quick(x[0, 0]))


def test_what_a_frozen_layer_gives_may_be_written_into(nets):
    plain, quick, x = nets
    x.requires_grad_()

    def derivative(m):
        return torch.autograd.grad(torch.relu_(m.a(x)).square().sum(), x)

    close(derivative(plain), derivative(quick))


def test_flops_are_counted_as_ever():
    torch.manual_seed(1)
    plain = Net()
    quick = copy.deepcopy(plain)
    quicken(quick)
    x = torch.randn(10, 64, 96)
    counts = []
    for net in (plain, quick):
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            net(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
