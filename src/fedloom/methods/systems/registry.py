"""What devices can do and what networks need, as plain data: a small registry that answers which fits where.

The words are those of the W3C Thing Description and of the TinyML neural network schema built on it (Ren, Anicic,
2022), cut down to what is asked: sensors, bytes of RAM and flash, tasks, figures of merit. A registry is a JSON file;
its facts are also triples, for joint queries over devices and networks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.checked import Checked
from fedloom.errors import ConfigError
from fedloom.model import Model


@dataclass(frozen=True)
class Thing(Checked):
    """A device: bytes of RAM and flash that are free for learning, and the sensors it has."""

    name: str
    ram: int
    flash: int
    sensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network(Checked):
    """A network: its task, the sensor it reads, bytes it needs (`learning`: RAM of one online step), and figures."""

    name: str
    task: str
    sensor: str
    ram: int
    flash: int
    learning: int = 0
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    def fits(self, device: Thing, learns: bool = False) -> bool:
        """Whether the device has the sensor and the room to run it, or with `learns` to train it one sample a step."""
        ram = self.learning if learns else self.ram
        return self.sensor in device.sensors and ram <= device.ram and self.flash <= device.flash


@dataclass(frozen=True)
class Registry:
    """Devices and networks; client i of a federation is `devices[i]`."""

    devices: tuple[Thing, ...] = ()
    networks: tuple[Network, ...] = ()

    def devices_for(self, network: Network, learns: bool = False) -> list[Thing]:
        """Those it fits on."""
        return [d for d in self.devices if network.fits(d, learns)]

    def networks_for(self, device: Thing, task: str, by: str = "accuracy", learns: bool = False) -> list[Network]:
        """Those for this task that fit, best figure first, the smaller of equals; those without the figure last."""
        found = [n for n in self.networks if n.task == task and n.fits(device, learns)]
        return sorted(found, key=lambda n: (-n.figures.get(by, float("-inf")), n.flash, n.name))

    def triples(self) -> Iterator[tuple[str, str, Any]]:
        """Every fact as (subject, predicate, object)."""
        for thing in (*self.devices, *self.networks):
            yield thing.name, "type", type(thing).__name__
            for predicate, value in asdict(thing).items():
                if isinstance(value, Mapping):
                    yield from ((thing.name, k, v) for k, v in value.items())
                elif predicate != "name":
                    many = value if isinstance(value, tuple | list) else (value,)
                    yield from ((thing.name, predicate, v) for v in many)

    def match(self, **facts: Any) -> list[str]:
        """Names of the subjects of which all these facts hold: `match(type="Thing", sensors="microphone")`."""
        held: dict[str, set[tuple[str, Any]]] = {}
        for subject, predicate, value in self.triples():
            held.setdefault(subject, set()).add((predicate, value))
        return [s for s, own in held.items() if own >= set(facts.items())]

    def write(self, path: str | Path) -> None:
        """As JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Registry:
        """Back from JSON.

        Raises:
            ConfigError: no such file, or not a registry.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            rows: list[dict[str, Any]] = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in device.items()} for device in found["devices"]
            ]
            return cls(tuple(Thing(**d) for d in rows), tuple(Network(**n) for n in found["networks"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path} is not a registry of devices and networks as Registry.write makes: {e}") from e


def described(name: str, model: Model, task: str, sensor: str, example: Tensor, **figures: float) -> Network:
    """A network's entry, its bytes measured on one sample `example` `(1, ...)`.

    Flash holds all weights. Running takes, beside them, the largest input and output of a layer at once; an online step
    takes the learning weights, their gradient, every layer's output and the sample.
    """
    module = model.to_module(model.initial()).eval()
    outputs: list[int] = []
    peak = 0

    def seen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal peak
        outputs.append(output.nbytes)
        peak = max(peak, output.nbytes + sum(x.nbytes for x in inputs))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(seen)
    with torch.no_grad():
        module(example)
    learning = 2 * sum(p.nbytes for p in module.parameters() if p.requires_grad) + sum(outputs) + example.nbytes
    return Network(name, task, sensor, peak, sum(p.nbytes for p in module.parameters()), learning, figures)


def c_source(name: str, model: Model, params: Tensor) -> str:
    """The weights `(d,)` as constant C arrays, one for each tensor, for a device's firmware.

    Whatever C allows in no name becomes an underscore.
    """
    lines = [f"/* {name}: {model.layout.size} numbers */"]
    for tensor, value in model.layout.tree(params.detach()).items():
        numbers = ", ".join(f"{v:.9e}f" for v in value.flatten().tolist())
        lines.append(f"/* shape {tuple(value.shape)} */")
        array = re.sub(r"\W|^(?=\d)", "_", f"{name}_{tensor}", flags=re.ASCII)
        lines.append(f"const float {array}[{value.numel()}] = {{{numbers}}};")
    return "\n".join(lines) + "\n"
