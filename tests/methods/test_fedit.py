"""FedIT against peft and torch's own AdamW: two means, a base that is one object and in no message."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from orders import overheard, rows

import fedloom as fl
from fedloom.models import build

peft = pytest.importorskip("peft")

ADAM = fl.Adam(lr=0.02, epochs=2, batch_size=3, weight_decay=0.1)
IT = fl.FedIT(cohort=3, solver=ADAM, rank=2, alpha=3.0)
SIZES = (7, 3, 5)
WIDTH, LENGTH, LETTERS = 8, 6, 5


def base() -> torch.nn.Module:
    return build("char-transformer:width=8,depth=1,heads=2", (LENGTH,), LETTERS, seed=4).double()


def federation() -> fl.Federation:
    rng = torch.Generator().manual_seed(1)
    parts = []
    for k, n in enumerate(SIZES):
        text = torch.randint(0, LETTERS - k, (n, LENGTH + 1), generator=rng)
        parts.append((text[:, :-1], text[:, 1:]))
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=LETTERS)


def adapted(net):
    """What FedIT trains, by peft itself: every dense layer but the head."""
    dense = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n != "head"]
    return peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=dense))


def test_rounds_against_peft_and_adamw():
    net, data = base(), federation()
    got, _ = overheard(IT, fl.NextToken(model=net), data, rounds=2)
    mine = adapted(base())
    trainable = {n: p for n, p in mine.named_parameters() if p.requires_grad}
    assert list(trainable) == got.plan.model.layout.names
    w = got.plan.model.layout.tree(got.plan.model.initial())
    for r in range(2):
        models = []
        for i, n in enumerate(SIZES):
            for name, p in trainable.items():
                p.data.copy_(w[name])
            local = data.local(i).train
            optimizer = torch.optim.AdamW(trainable.values(), lr=0.02, weight_decay=0.1)  # anew each round
            for index in rows(n, ADAM, i, r, 0):
                logits = mine(local.x[index])
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), local.y[index].flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            models.append({name: p.detach().clone() for name, p in trainable.items()})
        w = {name: sum(n * m[name] for n, m in zip(SIZES, models)) / sum(SIZES) for name in w}
    torch.testing.assert_close(got.params, torch.cat([p.flatten() for p in w.values()]), rtol=0, atol=1e-9)
    product = sum(n * m[k.replace("lora_A", "lora_B")] @ m[k] for n, m in zip(SIZES, models) for k in [next(iter(w))])
    k = next(iter(w))
    assert not torch.allclose(product / sum(SIZES), w[k.replace("lora_A", "lora_B")] @ w[k])  # not the mean of B A


def test_the_base_is_one_object_and_never_travels():
    net = base()
    before = copy.deepcopy(net.state_dict())
    places = {p.data_ptr() for p in net.parameters()}
    got, heard = overheard(IT, fl.NextToken(model=net), federation(), rounds=2)
    model = got.plan.model
    dense = [m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n != "head"]
    q = sum(2 * (m.in_features + m.out_features) for m in dense)
    assert model.layout.size == q
    assert all("lora_" in n for n in model.layout.names)
    for h in heard:
        assert [tuple(v.shape) for v in (*h.payload.values(), *h.reply.values())] == [(q,), (q,)]
        assert h.payload.nbytes == h.reply.nbytes == 8 * q
    frozen = {p.data_ptr() for p in model.module.parameters() if not p.requires_grad}
    skeletons = [model._shared.skeleton(False), model._shared.skeleton(True)]
    from fedloom.training.live import live_of

    for other in (*skeletons, live_of(model, model.initial()).module):
        assert {p.data_ptr() for p in other.parameters() if not p.requires_grad} == frozen
    assert frozen == places
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_users_network_is_left_alone_and_runs_repeat():
    net, task = base(), fl.NextToken
    runs = [overheard(IT, task(model=net), federation(), rounds=1)[0].params for _ in range(2)]
    assert torch.equal(*runs)
    assert all(p.requires_grad for p in net.parameters())
    assert not any("lora" in n for n, _ in net.named_modules())


def test_one_client_gets_back_what_it_sent():
    got, heard = overheard(replace(IT, cohort=1), fl.NextToken(model=base()), federation(), rounds=1)
    torch.testing.assert_close(got.params, heard[0].payload.params + heard[0].reply.delta, rtol=0, atol=1e-15)
    begun = got.plan.model.layout.tree(heard[0].payload.params)
    assert not any(bool(t.any()) for n, t in begun.items() if "lora_B" in n)  # at first the network is the base


def test_a_new_head_is_trained_and_sent_whole():
    got, heard = overheard(replace(IT, train=("head",), targets=("qkv",)), fl.NextToken(model=base()), federation(), 1)
    names = got.plan.model.layout.names
    assert sum(n.endswith(("head.weight", "head.bias")) for n in names) == 2
    assert sum("qkv" in n for n in names) == 2 == len(names) - 2
    assert heard[0].reply.delta.shape == (2 * (WIDTH + 3 * WIDTH) + LETTERS * (WIDTH + 1),)


@pytest.mark.parametrize(("wrong", "words"), [({"rank": 0}, "rank"), ({"targets": ("nowhere",)}, "nowhere")])
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(fl.FedloomError, match=words):
        overheard(replace(IT, **wrong), fl.NextToken(model=base()), federation())
