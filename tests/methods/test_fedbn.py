"""FedBN against plain torch modules; normalisation layers are found by type and never travel."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from orders import overheard, rows
from torch import nn

import fedloom as fl

SIZES = (9, 5, 6)
SGD = fl.SGD(lr=0.3, epochs=2, batch_size=3)


class Named(nn.Module):
    """Norm layers under names that do not say so; a layer called bn that is none."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.bn = nn.Linear(3, 4, dtype=torch.float64)
        self.squeeze = nn.GroupNorm(2, 4, dtype=torch.float64) if norm is nn.GroupNorm else norm(4, dtype=torch.float64)
        self.out = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        return self.out(torch.tanh(self.squeeze(self.bn(x))))


def federation() -> fl.Federation:
    rng = torch.Generator().manual_seed(3)
    x = [torch.randn(n, 3, generator=rng, dtype=torch.float64) * (1 + i) + i for i, n in enumerate(SIZES)]
    y = [torch.arange(n) % 3 for n in SIZES]
    return fl.Federation.from_clients(list(zip(x, y)), client_test=0.0, ordered=True, classes=3)


def task(norm: type[nn.Module] = nn.BatchNorm1d, buffers: str | None = "vector") -> fl.Classification:
    return fl.Classification(model=lambda: Named(norm), buffers=buffers)


def test_two_rounds_against_torch_modules():
    got, _ = overheard(fl.FedBN(cohort=3, solver=SGD), task(), federation())
    data = got.plan.federation
    nets = [copy.deepcopy(got.plan.model.to_module(got.plan.model.initial())).train() for _ in SIZES]
    for r in range(2):
        for i, net in enumerate(nets):
            d = data.local(i).train
            for index in rows(len(d), SGD, i, r, 0):
                loss = F.cross_entropy(net(d.x[index]), d.y[index])
                for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
                    p.data -= SGD.lr * g
        for name in ("bn.weight", "bn.bias", "out.weight", "out.bias"):
            mean = sum(n * net.get_parameter(name).data for n, net in zip(SIZES, nets)) / sum(SIZES)
            for net in nets:
                net.get_parameter(name).data.copy_(mean)
    layout = got.plan.model.layout
    kept = torch.cat(
        [torch.full((p.numel(),), n.startswith("squeeze")) for n, p in layout.tree(got.plan.model.initial()).items()]
    )
    assert kept.sum() == 4 * 4  # scale, shift, running mean, running variance
    for i, net in enumerate(nets):
        state = net.state_dict()
        own = torch.cat([state[n].flatten() for n in layout.names if n.startswith("squeeze")])
        shared = torch.cat([state[n].flatten() for n in layout.names if not n.startswith("squeeze")])
        torch.testing.assert_close(got.memories[i]["own"], own, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.state.shared, shared, rtol=0, atol=1e-12)
    assert not torch.allclose(got.memories[0]["own"], got.memories[1]["own"])


def test_norm_layers_are_in_no_message():
    got, heard = overheard(fl.FedBN(cohort=3, solver=SGD), task(), federation())
    travels = sum(p.numel() for n, p in Named().named_parameters() if not n.startswith("squeeze"))
    layout = got.plan.model.layout
    assert "squeeze.num_batches_tracked" not in layout.names
    assert layout.size == travels + 4 * 4
    for h in heard:
        assert [tuple(v.shape) for v in (*h.payload.values(), *h.reply.values())] == [(travels,), (travels,)]
    norms = [m["own"] for m in got.memories.values()]
    sent = torch.cat([v for h in heard for v in (*h.payload.values(), *h.reply.values())])
    for value in torch.cat(norms):
        assert not bool((sent == value).any())


@pytest.mark.parametrize(
    ("norm", "entries"),
    [(nn.BatchNorm1d, 16), (nn.LayerNorm, 8), (nn.GroupNorm, 8), (nn.RMSNorm, 4)],
)
def test_every_kind_of_norm_stays(norm, entries):
    buffers = "vector" if norm is nn.BatchNorm1d else None
    got, _ = overheard(fl.FedBN(cohort=3, solver=SGD), task(norm, buffers), federation(), rounds=1)
    assert [len(m["own"]) for m in got.memories.values()] == [entries] * 3
    assert torch.equal(got.plan.method.private(got.plan.model), got.plan.model.layout.where("squeeze.*"))


def test_with_batch_statistics_only_scale_and_shift_stay():
    got, _ = overheard(fl.FedBN(cohort=3, solver=SGD), task(buffers="batch"), federation(), rounds=1)
    assert len(got.memories[0]["own"]) == 8


def test_a_network_without_norms_is_refused():
    with pytest.raises(fl.FedloomError, match="normalisation layers"):
        overheard(fl.FedBN(), fl.Classification(model="softmax"), federation())
