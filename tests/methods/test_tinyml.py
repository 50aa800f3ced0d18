"""TinyML against NumPy: serial online rounds and the error while learning; the registry against brute force."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard
from worked import SIZES, START, Softmax, X, Y, batches, cohort, federation, gradient, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.methods.systems.registry import Network, Registry, Thing, c_source, described

METHOD = fl.TinyML(lr=0.2, samples=3, anneal=6, server_lr=0.9)


def online(i: int) -> fl.SGD:
    return fl.SGD(lr=0.2, batch_size=1, steps=min(3, SIZES[i]))


def loss(w, i, k):
    z = w[:9].reshape(3, 3) @ X[i][k] + w[9:]
    return np.log(np.exp(z).sum()) - z[Y[i][k]]


def test_four_serial_rounds():
    phi, devices = START, set()
    for r in range(4):
        (i,) = cohort(r, 1)
        devices.add(i)
        phi = phi + 0.9 * (1 - r / 6) * (trained(phi, i, r, online(i)) - phi)
    same(run(METHOD, rounds=4).params, phi)
    assert len(devices) > 1


def test_the_error_is_of_samples_not_learned_yet():
    (i,) = cohort(0, 1)
    w, errors = START, []
    for (k,) in batches(i, 0, online(i)):
        errors.append(loss(w, i, k))
        w = w - 0.2 * gradient(w, i, [k])
    got = run(METHOD, rounds=1)
    assert got.rows[0]["notes"]["online_error"] == pytest.approx(np.mean(errors))


def test_one_sample_of_everybody_is_joint_training():
    phi = START
    for r in range(3):
        steps = [gradient(phi, i, batches(i, r, fl.SGD(batch_size=1, steps=1))[0]) for i in range(4)]
        phi = phi - 0.2 * np.mean(steps, axis=0)
    same(run(replace(METHOD, cohort=4, samples=1, anneal=0, server_lr=1.0), rounds=3).params, phi)


def test_it_is_reptile_with_batches_of_one():
    solver = fl.SGD(lr=0.2, batch_size=1, steps=1)
    reptile = fl.Reptile(cohort=1, solver=solver, anneal=6, server_lr=0.9)
    same(run(replace(METHOD, samples=1), rounds=4).params, run(reptile, rounds=4).params.numpy())


def test_some_layers_learn_and_travel():
    net, phi = Softmax(), START
    method = replace(METHOD, layers=("bias",))
    got, heard = overheard(method, fl.Classification(model=net), federation(), rounds=3)
    for r in range(3):
        (i,) = cohort(r, 1)
        w = phi.copy()
        for rows in batches(i, r, online(i)):
            w[9:] -= 0.2 * gradient(w, i, rows)[9:]
        phi = phi + 0.9 * (1 - r / 6) * (w - phi)
    same(got.params, phi[9:])
    assert heard[0].reply.delta.shape == heard[0].payload.params.shape == (3,)
    assert all(p.requires_grad for p in net.parameters())  # the caller's network is as it was
    with pytest.raises(fl.FedloomError, match="unknown layer"):
        overheard(replace(METHOD, layers=("head",)), fl.Classification(model=net), federation())


# ------------------------------------------------------------------------------------------------------- registry
def things(n: int, m: int) -> Registry:
    def pick(*key, most=100):
        return int(torch.randint(1, most, (), generator=generator(*key)))

    sensors = ("microphone", "accelerometer", "camera")
    devices = tuple(
        Thing(f"d{i}", pick("ram", i), pick("flash", i), sensors[: pick("sensors", i, most=4)]) for i in range(n)
    )
    networks = tuple(
        Network(
            f"n{j}", f"task{j % 3}", sensors[j % 3], pick("need", j), pick("size", j), pick("learn", j),
            {"accuracy": pick("figure", j) / 100},
        )
        for j in range(m)
    )  # fmt: skip
    return Registry(devices, networks)


def test_queries_equal_brute_force():
    registry = things(20, 30)
    fitting = 0
    for d, n in itertools.product(registry.devices, registry.networks):
        for learns in (False, True):
            fits = n.sensor in d.sensors and d.flash >= n.flash and d.ram >= (n.learning if learns else n.ram)
            assert (d in registry.devices_for(n, learns)) == fits
            assert (n in registry.networks_for(d, n.task, learns=learns)) == fits
            fitting += fits
    assert 100 < fitting < 1100
    for d in registry.devices:
        found = [n.figures["accuracy"] for n in registry.networks_for(d, "task1")]
        assert found == sorted(found, reverse=True)


def test_facts_can_be_asked_together():
    registry = things(20, 30)
    heard = [d.name for d in registry.devices if "accelerometer" in d.sensors]
    assert registry.match(type="Thing", sensors="accelerometer") == heard
    both = [n.name for n in registry.networks if n.task == "task2" and n.sensor == "camera"]
    assert registry.match(type="Network", task="task2", sensor="camera") == both
    assert registry.match(type="Thing", task="task2") == []


def test_a_registry_comes_back_from_its_file(tmp_path):
    registry = things(3, 4)
    registry.write(tmp_path / "r.json")
    assert Registry.read(tmp_path / "r.json") == registry


@pytest.mark.parametrize(
    "device",
    [
        {"nme": "d"},
        {"name": "d", "ram": "256k", "flash": 1},
        {"name": "d", "ram": 1, "flash": 1, "sensors": "camera"},
        {"name": "d", "ram": 1, "flash": 1, "sensors": [3]},
        "d",
    ],
)
def test_what_describes_no_device_is_no_registry(device, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"devices": [device], "networks": []}))
    with pytest.raises(fl.FedloomError, match="not a registry"):
        Registry.read(tmp_path / "r.json")


def test_devices_without_room_do_not_learn(tmp_path):
    """Only 1 and 3 carry an online step: 2 x 12 numbers, 3 of output, 3 of input, 8 bytes each."""
    model = fl.Model(Softmax())
    net = described("softmax", model, "toy", "camera", torch.zeros(1, 3, dtype=torch.float64))
    assert (net.ram, net.flash, net.learning) == (8 * 6, 8 * 12, 8 * (24 + 3 + 3))
    rams = (net.learning - 1, net.learning, net.ram, 10**6)
    Registry(tuple(Thing(f"d{i}", ram, 10**4, ("camera",)) for i, ram in enumerate(rams)), (net,)).write(
        tmp_path / "r.json"
    )
    method = replace(METHOD, cohort=4, registry=str(tmp_path / "r.json"))
    _, heard = overheard(method, fl.Classification(model=Softmax), federation(), rounds=2)
    assert {h.client for h in heard} == {1, 3}
    Registry((), (net,)).write(tmp_path / "r.json")
    with pytest.raises(fl.FedloomError, match="fewer than there are clients"):
        run(method)


def test_weights_as_c_source():
    model = fl.Model(Softmax())
    text = c_source("gate", model, model.initial())
    found = re.findall(r"const float (\w+)\[(\d+)\] = \{(.*?)\}", text)
    assert [(name, int(n)) for name, n, _ in found] == [("gate_weight", 9), ("gate_bias", 3)]
    numbers = [float(v.strip().rstrip("f")) for _, _, body in found for v in body.split(",")]
    np.testing.assert_allclose(numbers, START, rtol=1e-9)
    for name in ("res-mlp:8", "5 classes", "größe"):
        arrays = re.findall(r"^const float (.*)\[", c_source(name, model, model.initial()), re.MULTILINE)
        assert len(arrays) == 2
        assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", array) for array in arrays)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"server_lr": 0.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError):
        fl.TinyML(**wrong)
