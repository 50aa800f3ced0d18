"""How `units` finds tied units: a probe with NaN, then the connected components of what it reached.

Every layer is silenced (it answers zeros) and one output unit of one layer answers NaN. The input positions
of other layers at which NaN arrives are those this unit reaches. Units and positions are nodes of a graph,
"reaches" its edges; units in one component arrive somewhere together and can only stay or go together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedloom.errors import ConfigError

PROBES = 31
"""Units probed per forward pass, one per sample; a prime: another axis is hardly taken for the batch."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
OVER_UNITS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Normalisations whose moments are taken over units."""


@dataclass(frozen=True)
class Role:
    """How a layer meets units: where they lie in its activations and in its tensors."""

    axis: int  # of its activations
    makes: int  # output units; 0 for a layer that passes its inputs on one by one
    reads: int  # input positions; 0 for an embedding
    tensors: dict[str, dict[int, str]]  # name -> {axis: "made" or "read"}
    groups: int = 1
    sized: bool = True  # False: it stores its size but has no weights from which a narrow copy could learn it


_PER_UNIT = {name: {0: "read"} for name in ("weight", "bias", "running_mean", "running_var")}


def role_of(layer: nn.Module) -> Role | None:
    """The role of a layer; None for modules that are simply run."""
    if isinstance(layer, nn.Linear):
        tensors = {"weight": {0: "made", 1: "read"}, "bias": {0: "made"}}
        return Role(-1, layer.out_features, layer.in_features, tensors)
    if isinstance(layer, nn.Embedding):
        return Role(-1, layer.embedding_dim, 0, {"weight": {1: "made"}})
    if isinstance(layer, CONVOLUTIONS):
        weight = {0: "made", 1: "read"} if layer.groups == 1 else {0: "made"}
        return Role(1, layer.out_channels, layer.in_channels, {"weight": weight, "bias": {0: "made"}}, layer.groups)
    if isinstance(layer, TRANSPOSED) and layer.groups == 1:
        tensors = {"weight": {0: "read", 1: "made"}, "bias": {0: "made"}}
        return Role(1, layer.out_channels, layer.in_channels, tensors)
    if isinstance(layer, BATCH):
        return Role(1, 0, layer.num_features, _PER_UNIT, sized=layer.affine or layer.running_mean is None)
    if isinstance(layer, nn.GroupNorm):
        return Role(1, 0, layer.num_channels, _PER_UNIT, sized=layer.affine)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) == 1:
        return Role(-1, 0, layer.normalized_shape[0], _PER_UNIT, sized=layer.elementwise_affine)
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return Role(1, 0, layer.num_parameters, {"weight": {0: "read"}})
    return None


def resize(layer: nn.Module) -> None:
    """Bring the sizes a layer stores in line with its tensors."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, CONVOLUTIONS):
        out, per_group = layer.weight.shape[:2]
        if layer.groups > 1:  # whole groups stay or go
            layer.groups = layer.groups * out // layer.out_channels
        layer.out_channels, layer.in_channels = out, per_group * layer.groups
    elif isinstance(layer, TRANSPOSED) and layer.groups == 1:
        layer.in_channels, layer.out_channels = layer.weight.shape[:2]
    elif isinstance(layer, BATCH) and layer.weight is not None:
        layer.num_features = layer.weight.shape[0]
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        layer.num_channels = layer.weight.shape[0]
        layer.num_groups = math.gcd(layer.num_groups, layer.num_channels)
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()


def skeleton(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares every tensor with the module."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}).eval()


def replace_forward(layer: nn.Module, forward: Callable[..., Any]) -> None:
    """Let one layer object answer with another function."""
    layer.forward = forward


def repeat(value: Any, n: int) -> Any:
    """n copies of the first sample; what is no tensor, or has no batch axis, is passed on."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if not len(value):
        raise ConfigError("example_inputs must hold at least one sample")
    return value[:1].repeat(n, *[1] * (value.dim() - 1))


@dataclass(frozen=True)
class Group:
    """Units that can be left out: the layers that make them, and one component of the graph per unit."""

    makers: tuple[str, ...]
    components: list[int]


@dataclass
class Probe:
    """What reaches what in one module.

    Nodes of the graph: the output units of every layer, then the input positions of every layer, then the
    groups of grouped convolutions, each of which ties what it reads and what it makes.
    """

    roles: dict[str, Role]
    frozen: set[str]
    made: dict[str, range] = field(default_factory=dict)  # layer -> nodes of its output units
    read: dict[str, range] = field(default_factory=dict)  # layer -> nodes of its input positions
    edges: list[Tensor] = field(default_factory=list)  # each (2, k): unit, position it arrived at
    reason: dict[int, str] = field(default_factory=dict)  # unit -> why it stays
    whole: dict[str, str] = field(default_factory=dict)  # layer -> why units it makes stay
    component: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # of every node

    @classmethod
    def of(cls, module: nn.Module) -> Probe:
        """A probe of this module, not yet run."""
        layers = {name: layer for name, layer in module.named_modules() if role_of(layer) is not None}
        roles = {name: role for name, layer in layers.items() if (role := role_of(layer)) is not None}
        fixed = {n for n, layer in layers.items() if not all(p.requires_grad for p in layer.parameters(recurse=False))}
        probe, start = cls(roles, fixed), 0
        for name, role in roles.items():
            probe.made[name] = range(start, start := start + role.makes)
        for name, role in roles.items():
            probe.read[name] = range(start, start := start + role.reads)
        return probe

    @property
    def count(self) -> int:
        """Number of output units of all layers; they are the first nodes."""
        return sum(len(span) for span in self.made.values())

    def run(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Mark every unit of the module in turn, and find out which units are tied."""
        module = skeleton(module)
        walk = _Pass(self, torch.empty(0))
        for name, layer in module.named_modules():
            if name in self.roles:
                replace_forward(layer, partial(walk.layer, name, layer.forward))
        inputs = tuple(repeat(value, PROBES) for value in inputs)
        with torch.no_grad():
            for start in range(0, self.count, PROBES):
                units = torch.arange(start, start + PROBES)
                walk.units = torch.where(units < self.count, units, -1)
                walk.output(module(*inputs))
        reached = torch.cat([torch.empty(2, 0, dtype=torch.long), *self.edges], 1).unique(dim=1)
        self._refuse(*reached)
        self._tie(*reached)

    def stay(self, units: Tensor, reason: str) -> None:
        """Note why these units cannot be left out; the first reason is kept."""
        for unit in units.unique().tolist():
            if unit >= 0:
                self.reason.setdefault(unit, reason)

    def _refuse(self, unit: Tensor, place: Tensor) -> None:
        """Find the units that must stay, from the edges (unit, place) of the graph."""
        maker = torch.repeat_interleave(torch.tensor([len(span) for span in self.made.values()], dtype=torch.long))
        meeting = place * len(self.made) + maker[unit]
        _, inverse, times = meeting.unique(return_inverse=True, return_counts=True)
        mixed = times[inverse] > 1 if len(unit) else torch.empty(0, dtype=torch.bool)
        for name, role in self.roles.items():
            made, read = self.made[name], self.read[name]
            here = (place >= read.start) & (place < read.stop)
            if name in self.frozen:
                self.stay(torch.arange(made.start, made.stop), "its weights are frozen")
                self.stay(unit[here], f"it feeds {name!r}, whose weights are frozen")
            if not role.sized:
                self.stay(unit[here], f"it feeds {name!r}, which has no weights that could become narrower")
            if role.groups > 1:
                positions = torch.arange(role.reads)
                fixed = positions[~torch.isin(read.start + positions, place)] * role.groups // role.reads
                group = torch.arange(role.makes) * role.groups // role.makes
                self.stay(made.start + torch.isin(group, fixed).nonzero(), "it reads the input in groups")
            self.stay(unit[here & mixed], f"its units are mixed on the way to {name!r}")
        units = torch.arange(self.count)
        self.stay(units[~torch.isin(units, unit)], "no layer was seen to read it")

    def _tie(self, unit: Tensor, place: Tensor) -> None:
        """The components of the graph."""
        nodes = self.count + sum(len(span) for span in self.read.values())
        rows, cols = [unit], [place]
        for name, role in self.roles.items():
            if role.groups > 1:
                for span in (self.made[name], self.read[name]):
                    rows.append(torch.arange(span.start, span.stop))
                    cols.append(nodes + torch.arange(len(span)) * role.groups // len(span))
                nodes += role.groups
        row, col = torch.cat(rows).numpy(), torch.cat(cols).numpy()
        graph = coo_matrix((np.ones(len(row)), (row, col)), shape=(nodes, nodes))
        self.component = torch.from_numpy(connected_components(graph, directed=False)[1]).long()

    def groups(self) -> dict[str, Group]:
        """The groups of units that can be left out, in the module's order; says in `whole` why others stay."""
        makers: dict[int, dict[str, None]] = {}
        reasons: dict[int, str] = {}
        for name, span in self.made.items():
            for unit in span:
                component = int(self.component[unit])
                makers.setdefault(component, {})[name] = None
                if unit in self.reason:
                    reasons.setdefault(component, self.reason[unit])
                    self.keep_whole((name,), self.reason[unit])
        found: dict[tuple[str, ...], list[int]] = {}
        for component, names in makers.items():
            if component in reasons:
                self.keep_whole(tuple(names), reasons[component])
            else:
                found.setdefault(tuple(names), []).append(component)
        groups: dict[str, Group] = {}
        for names, components in found.items():
            if len(components) == 1:
                self.keep_whole(names, "its units are all tied together")
            else:
                # Parts of a layer may be tied to different partners: then its name is not enough.
                groups["+".join(names) if names[0] in groups else names[0]] = Group(names, components)
        return groups

    def keep_whole(self, makers: tuple[str, ...], reason: str) -> None:
        """Note why units of these layers stay."""
        for name in makers:
            self.whole.setdefault(name, reason)

    def axes(self, groups: dict[str, Group]) -> dict[str, dict[int, Tensor]]:
        """Tensor -> {axis: the unit at each position}; units are numbered through these groups, -1 is none."""
        unit = torch.full((int(self.component.max()) + 1 if len(self.component) else 0,), -1)
        start = 0
        for group in groups.values():
            unit[group.components] = torch.arange(start, start := start + len(group.components))
        node = unit[self.component]
        axes: dict[str, dict[int, Tensor]] = {}
        for name, role in self.roles.items():
            spans = {"made": self.made[name], "read": self.read[name]}
            for leaf, sides in role.tensors.items():
                units = {axis: node[spans[side].start : spans[side].stop] for axis, side in sides.items()}
                axes[f"{name}.{leaf}".lstrip(".")] = {a: ids for a, ids in units.items() if (ids >= 0).any()}
        return axes


@dataclass
class _Pass:
    """One forward pass of silenced layers: sample i carries NaN for unit `units[i]` (-1: none)."""

    probe: Probe
    units: Tensor
    empty: dict[tuple[str, torch.Size], Tensor] = field(default_factory=dict)

    def layer(self, name: str, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for a forward: notes what arrives, answers zeros and the marks of the layer's own units."""
        role = self.probe.roles[name]
        if role.reads:
            self._arrive(name, torch.isnan(x).movedim(role.axis, -1))
        if not role.makes:
            return x
        key = (name, x.shape)
        if key not in self.empty:
            self.empty[key] = torch.zeros_like(forward(torch.zeros_like(x), *args, **kwargs))
        return self._mark(name, self.empty[key].movedim(role.axis, -1)).movedim(-1, role.axis)

    def _arrive(self, name: str, nan: Tensor) -> None:
        """nan: (batch, ..., positions); axes may be folded into the batch, as (samples * tokens)."""
        if nan.shape[0] % PROBES:
            if nan.any():
                self.probe.stay(self.units, f"it reaches {name!r} outside of the batch axis")
            return
        sample, position = nan.reshape(PROBES, -1, nan.shape[-1]).any(1).nonzero().cpu().T
        edges = torch.stack([self.units[sample], self.probe.read[name].start + position])
        self.probe.edges.append(edges[:, edges[0] >= 0])

    def _mark(self, name: str, zeros: Tensor) -> Tensor:
        """zeros: (batch, ..., units)."""
        made = self.probe.made[name]
        mine = (self.units >= made.start) & (self.units < made.stop)
        if zeros.shape[0] % PROBES:
            self.probe.stay(self.units[mine], "its inputs have no batch axis")
            return zeros
        marks = torch.zeros(PROBES, len(made))
        marks[mine, self.units[mine] - made.start] = math.nan
        marks = marks.to(zeros).repeat_interleave(zeros.shape[0] // PROBES, 0)
        return zeros + marks.view(len(zeros), *[1] * (zeros.dim() - 2), len(made))

    def output(self, outputs: Any) -> None:
        """Units seen in what the module returns stay."""
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and (nan := torch.isnan(leaf)).any():
                per_sample = leaf.dim() > 0 and leaf.shape[0] % PROBES == 0
                seen = nan.reshape(PROBES, -1).any(1).cpu() if per_sample else torch.ones(PROBES, dtype=torch.bool)
                self.probe.stay(self.units[seen], "it reaches the output")
