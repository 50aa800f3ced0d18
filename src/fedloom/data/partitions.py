"""How samples become clients: every partition is a frozen record with one call, `partition(data, clients,
rng)`.

The call returns an int64 tensor `(n,)`: the client of each sample. It is complete (every sample has a
client), disjoint (one client each) and a function of the seed alone. A partition reads the integer key it
splits by (labels `y`, `group`, or clusters of embeddings) or nothing at all; `FeatureShift` and
`ConceptShift` wrap another partition and also change the samples of a client.

    Dirichlet(0.1)(data, clients=100, rng=0)
    parse_partition("rotation:270,groups=4/dirichlet:0.3") == FeatureShift("rotation", 270, groups=4,
    base=Dirichlet(0.3))


"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.errors import ConfigError, DataError, unknown
from fedloom.keyed import seed_of

from .fields import Data

Encoder: TypeAlias = Callable[[Tensor], Tensor]


def numbers(*key: Any) -> np.random.Generator:
    """A NumPy generator for this key (NumPy draws Dirichlet vectors of tiny alpha without underflow)."""
    return np.random.default_rng(seed_of(*key))


def integer_key(data: Data, by: str) -> np.ndarray:
    """The integer of each sample that a partition splits by: `label` is the field `label` or else `y`,
    `group` the groups given with the data, any other name a field.

    Raises:
        DataError: there is no such field, or it is not one integer per sample.
    """
    name = "y" if by == "label" and "label" not in data else by
    if name not in data:
        fields_held = ", ".join(data) or "no fields"
        raise DataError(f"the partition splits by {by!r}; these samples have {fields_held}. {_ADVICE}")
    key = data[name]
    if key.dim() != 1 or key.is_floating_point():
        raise DataError(
            f"the partition splits by {by!r}, which must be one integer per sample; the field {name!r} is "
            f"{str(key.dtype)[6:]} of shape {tuple(key.shape)}. {_ADVICE}"
        )
    return key.numpy()


_ADVICE = "Give groups=..., or use EmbeddingDirichlet(alpha), which needs no labels"


@dataclass(frozen=True)
class Partition:
    """Base of all partitions. A subclass gives `assign`; `spec` is its name on the command line."""

    spec = ""
    least = 1
    """The fewest samples a client may get; 0 allows empty clients."""

    def __call__(self, data: Data, clients: int | None = None, rng: np.random.Generator | int = 0) -> Tensor:
        """The client of each sample.

        Args:
            data: the samples, with the fields the partition reads.
            clients: how many clients; None where the data says it (`Natural`, `Domains`), otherwise 100.
            rng: a seed, or a NumPy generator.

        Returns:
            int64 `(n,)` with values in `0..clients-1`.

        Raises:
            DataError: too few samples, or a field that is missing or not an integer per sample.
            ConfigError: an impossible number of clients.
        """
        clients = self.natural(data) or 100 if clients is None else clients
        if clients < 1:
            raise ConfigError(f"a partition makes 1 or more clients; given {clients}")
        if not len(data):
            raise DataError(f"{self} was given no samples to split")
        if len(data) < clients * self.least:
            raise DataError(
                f"{self} gives each of {clients} clients {self.least} or more samples, and there are "
                f"{len(data)} (use fewer clients{', or least=0: empty ones' if 'least' in _names(self) else ''})"
            )
        rng = numbers(rng, "partition") if isinstance(rng, int) else rng
        owner = np.asarray(self.assign(data, clients, rng), dtype=np.int64)
        if owner.shape != (len(data),) or owner.min() < 0 or owner.max() >= clients:
            raise DataError(
                f"{self} must give each of {len(data)} samples one client in 0..{clients - 1}; it gave shape "
                f"{owner.shape} with values from {owner.min()} to {owner.max()}"
            )
        return torch.from_numpy(owner)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        """The client of each sample as an integer array `(n,)`."""
        raise NotImplementedError

    def natural(self, data: Data) -> int | None:
        """The number of clients the data itself asks for, if any."""
        return None

    def change(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        """The samples as their clients see them, and what the federation should record of the change."""
        return data, {}

    def __str__(self) -> str:
        """The text `parse_partition` reads: the first field by position, others by name where they are not
        the default."""
        given = []
        for i, f in enumerate(f for f in fields(self) if f.name not in ("base", "kind")):
            value = getattr(self, f.name)
            if i == 0 and (value != f.default or not isinstance(value, str)):
                given.append(_text(value))
            elif value != f.default:
                given.append(f"{f.name}={_text(value)}")
        own = self.spec + (":" + ",".join(given) if given else "")
        base = getattr(self, "base", None)
        return own if base is None else f"{own}/{base}"


def _names(partition: Partition) -> set[str]:
    return {f.name for f in fields(partition)}


def _text(value: Any) -> str:
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _positive(what: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ConfigError(f"{what} is a finite number above 0; given {value}")


def _not_negative(what: str, value: int) -> None:
    if value < 0:
        raise ConfigError(f"{what} is 0 or more; given {value}")


# ------------------------------------------------------------------------------------ who holds which sample


@dataclass(frozen=True)
class IID(Partition):
    """Every client gets a random share of equal size (sizes differ by one at most)."""

    spec = "iid"

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(np.arange(len(data)) % clients)


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: the samples of each label are split over the clients in shares drawn from Dirichlet(alpha).

    For every value v of the key: q_v ~ Dirichlet(alpha, ..., alpha) over clients, and client i gets the share
    q_v[i] of the samples with that value. Draws that leave a client below `least` are repeated up to ten
    times; then samples move, one by one, from the clients that hold most.

    Args:
        alpha: concentration, > 0; 0.1 is strong skew, 100 almost IID.
        least: the fewest samples of a client; 0 allows empty clients.
        by: "label", "group", "embedding" (k-means clusters), or the name of an integer field.
    """

    alpha: float
    least: int = 1
    by: str = "label"

    spec = "dirichlet"

    def __post_init__(self) -> None:
        _positive("alpha of a Dirichlet partition", self.alpha)
        _not_negative("least", self.least)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = _clusters(data, rng) if self.by == "embedding" else integer_key(data, self.by)
        return dirichlet_split(key, self.alpha, clients, self.least, rng)


@dataclass(frozen=True)
class EmbeddingDirichlet(Partition):
    """Dirichlet over clusters of embeddings: skew for tasks without classes (embedding-based heterogeneity,
    2025).

    The samples are embedded (by `encoder`, ideally a network trained for the same task; by default the
    flattened inputs), reduced by PCA, grouped by k-means, and the clusters take the place of labels in
    `Dirichlet`.

    Args:
        alpha: concentration, > 0.
        clusters: number of k-means clusters, >= 1; compare with label skew at `clusters` = number of classes.
        components: principal components kept before clustering; 0 keeps the embedding as it is.
        least: the fewest samples of a client; 0 allows empty clients.
        encoder: function of a batch `x (b, ...)` that returns embeddings `(b, ...)`; not expressible as text.
    """

    alpha: float
    clusters: int = 10
    components: int = 32
    least: int = 1
    encoder: Encoder | None = None

    spec = "embedding"

    def __post_init__(self) -> None:
        _positive("alpha of a Dirichlet partition", self.alpha)
        _positive("clusters", self.clusters)
        _not_negative("components", self.components)
        _not_negative("least", self.least)

    def fit(self, data: Data, rng: np.random.Generator | int = 0) -> Callable[[Data], Tensor]:
        """Clusters the samples; the function returned gives the cluster `(n,)` of any samples (test data is
        assigned to these centroids, never clustered again)."""
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        rng = numbers(rng, "partition") if isinstance(rng, int) else rng
        state = int(rng.spawn(1)[0].integers(2**31))  # a child stream: the split itself draws as `Dirichlet` does
        features = embed(data, self.encoder)
        if len(features) < self.clusters:
            raise DataError(f"{self} makes {self.clusters} clusters of {len(features)} samples; use fewer clusters")
        reduce: Callable[[np.ndarray], np.ndarray] = np.asarray
        if 0 < self.components < min(features.shape):
            reduce = PCA(self.components, random_state=state).fit(features).transform
        starts: Any = 4  # the best of several starts: k-means depends much on its seed
        means = KMeans(self.clusters, n_init=starts, random_state=state).fit(reduce(features))
        return lambda other: torch.as_tensor(means.predict(reduce(embed(other, self.encoder)))).long()

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = self.fit(data, rng)(data).numpy()
        return dirichlet_split(key, self.alpha, clients, self.least, rng)


def _clusters(data: Data, rng: np.random.Generator) -> np.ndarray:
    return EmbeddingDirichlet(alpha=1.0).fit(data, rng)(data).numpy()


def embed(data: Data, encoder: Encoder | None = None, batch: int = 512) -> np.ndarray:
    """Embeddings float32 `(n, d)` of the field `x`: of the encoder, or the flattened inputs."""
    if "x" not in data:
        raise DataError(f"embeddings are made of the field 'x'; these samples have {', '.join(data)}")
    with torch.no_grad():
        parts = [part if encoder is None else encoder(part) for part in data["x"].split(batch)]
    return torch.cat([part.detach().cpu().float().flatten(1) for part in parts]).numpy()


@dataclass(frozen=True)
class Shards(Partition):
    """Pathological label skew (FedAvg paper): sort by label, cut into equal shards, deal `per_client` to each
    client."""

    per_client: int = 2
    by: str = "label"

    spec = "shards"

    def __post_init__(self) -> None:
        _positive("shards per client", self.per_client)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = integer_key(data, self.by)
        shards = clients * self.per_client
        if len(key) < shards:
            raise DataError(f"{self} cuts {shards} shards for {clients} clients out of {len(key)} samples")
        mixed = rng.permutation(len(key))
        by_label = mixed[np.argsort(key[mixed], kind="stable")]
        holder = rng.permutation(np.arange(shards) % clients)
        owner = np.empty(len(key), dtype=np.int64)
        owner[by_label] = np.repeat(holder, _even(len(key), shards))
        return owner


@dataclass(frozen=True)
class Quantity(Partition):
    """Quantity skew: random samples, sizes in shares drawn from Dirichlet(alpha) over the clients."""

    alpha: float
    least: int = 1

    spec = "quantity"

    def __post_init__(self) -> None:
        _positive("alpha of a quantity partition", self.alpha)
        _not_negative("least", self.least)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return dirichlet_split(np.zeros(len(data), dtype=np.int64), self.alpha, clients, self.least, rng)


@dataclass(frozen=True)
class Natural(Partition):
    """Groups stay whole: a speaker, subject, hospital or shop is a client.

    With fewer clients than groups each client gets several whole groups; more clients than groups is refused
    (use `Domains`, which shares a group among clients).

    Args:
        by: the integer field that names the group; default: the groups given with the data.
    """

    by: str = "group"

    spec = "natural"

    def natural(self, data: Data) -> int | None:
        return len(np.unique(integer_key(data, self.by)))

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        names, group = np.unique(integer_key(data, self.by), return_inverse=True)
        if clients > len(names):
            raise ConfigError(
                f"natural clients are whole groups, and the data has {len(names)} of them; given {clients} "
                f"clients. Use clients={len(names)}, or Domains() to share each group among several clients"
            )
        if clients == len(names):
            return group
        return rng.permutation(np.arange(len(names)) % clients)[group]


@dataclass(frozen=True)
class Domains(Partition):
    """One domain per client: client i belongs to domain i % D, whose samples its clients share equally."""

    by: str = "group"

    spec = "domains"

    def natural(self, data: Data) -> int | None:
        return len(np.unique(integer_key(data, self.by)))

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        names, group = np.unique(integer_key(data, self.by), return_inverse=True)
        if clients < len(names):
            raise ConfigError(
                f"one domain per client needs a client for each of {len(names)} domains; given {clients} "
                f"clients. Use Natural() to give a client several domains"
            )
        owner = np.empty(len(group), dtype=np.int64)
        for domain in range(len(names)):
            rows, holders = np.flatnonzero(group == domain), np.arange(domain, clients, len(names))
            if len(rows) < len(holders):
                raise DataError(
                    f"domain {names[domain]} has {len(rows)} samples for {len(holders)} clients; use fewer clients"
                )
            owner[rng.permutation(rows)] = holders[np.arange(len(rows)) % len(holders)]
        return owner


# ------------------------------------------------------------------------- what a client's samples look like


@dataclass(frozen=True)
class FeatureShift(Partition):
    """Feature skew: the inputs of client i are changed by a level of its own, the labels stay.

    Client i is in shift group g = i % groups at level g / (groups - 1): the first group sees the data as it
    is, the last the full `strength`. `rotation` turns images `(n, c, h, w)` by level * strength degrees (270
    with 4 groups is the rotated MNIST of clustered federated learning; multiples of 90 degrees are exact on
    square images); `noise` adds level * strength * N(0, 1); `colour` multiplies channel c by 1 + level *
    strength * u, u ~ U(-1, 1) once per group and channel. A client's own test samples are changed as its train
    samples are; the federation's global test set stays as it is.

    Args:
        kind: "rotation", "noise" or "colour".
        strength: degrees, standard deviation, or largest relative change; finite.
        groups: number of shift groups; 0 gives every client a level of its own.
        base: who holds which sample.
    """

    kind: Literal["rotation", "noise", "colour"]
    strength: float
    groups: int = 0
    base: Partition = field(default_factory=IID)

    def __post_init__(self) -> None:
        if self.kind not in _SHIFTS:
            raise unknown("feature shift", self.kind, _SHIFTS)
        if not np.isfinite(self.strength):
            raise ConfigError(f"the strength of a feature shift is a finite number; given {self.strength}")
        _not_negative("groups", self.groups)

    @property
    def spec(self) -> str:
        return self.kind

    @property
    def least(self) -> int:
        return self.base.least

    def natural(self, data: Data) -> int | None:
        return self.base.natural(data)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return self.base(data, clients, rng).numpy()

    def change(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        data, record = self.base.change(data, owner, clients, rng)
        x = data.get("x")
        if x is None or not x.is_floating_point() or (x.dim() != 4 and self.kind != "noise"):
            held = "no field 'x'" if x is None else f"'x' of {str(x.dtype)[6:]} {tuple(x.shape)}"
            wanted = "floats" if self.kind == "noise" else "float images (n, channels, height, width)"
            raise DataError(f"{self.kind} changes {wanted} in the field 'x'; this data has {held}")
        groups = min(self.groups or clients, clients)
        group = owner % groups
        level = self.strength * group.to(x.dtype) / max(groups - 1, 1)
        shape = (-1,) + (1,) * (x.dim() - 1)
        if self.kind == "rotation":
            x = rotate(x, level)
        elif self.kind == "noise":
            draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
            x = x + level.view(shape) * torch.randn(x.shape, generator=draw, dtype=x.dtype)
        else:
            gain = torch.from_numpy(rng.uniform(-1, 1, (groups, x.shape[1]))).to(x.dtype)
            x = x * (1 + level.view(shape) * gain[group].view(len(x), -1, 1, 1))
        return data.replace(x=x), {**record, f"{self.kind}_groups": groups}


_SHIFTS = ("rotation", "noise", "colour")


def rotate(x: Tensor, degrees: Tensor, chunk: int = 4096) -> Tensor:
    """Images `(n, c, h, w)` turned anticlockwise, each by its own angle `(n,)`; corners that turn in are 0.
    Quarter turns of square images and half turns of any are exact; other angles are interpolated bilinearly."""
    out, quarter, square = x.clone(), degrees.remainder(360) / 90, x.shape[-1] == x.shape[-2]
    exact = (quarter == quarter.round()) & (square | (quarter % 2 == 0))
    for turns in (1, 2, 3):
        if (rows := exact & (quarter == turns)).any():
            out[rows] = torch.rot90(x[rows], turns, (-2, -1))
    h, w = x.shape[-2:]
    for rows in torch.nonzero(~exact).view(-1).split(chunk):
        if not len(rows):
            break
        a = torch.deg2rad(degrees[rows])
        zero = torch.zeros_like(a)
        # grid_sample reads coordinates scaled to -1..1 by the image's own height and width
        theta = torch.stack([a.cos(), -a.sin() * h / w, zero, a.sin() * w / h, a.cos(), zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(rows), *x.shape[1:]], align_corners=False)
        out[rows] = F.grid_sample(x[rows], grid, align_corners=False)
    return out


@dataclass(frozen=True)
class ConceptShift(Partition):
    """Concept shift: the same input means another label. Client i is in group i % groups, and every group but
    the first has its own permutation of the labels (its test samples too). The maps are recorded as
    `federation.info["label_maps"]`, one list of new labels per group.

    Args:
        groups: number of concepts, >= 1; 1 changes nothing.
        base: who holds which sample.
    """

    groups: int = 2
    base: Partition = field(default_factory=IID)

    spec = "concept"

    def __post_init__(self) -> None:
        _positive("groups of a concept shift", self.groups)

    @property
    def least(self) -> int:
        return self.base.least

    def natural(self, data: Data) -> int | None:
        return self.base.natural(data)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return self.base(data, clients, rng).numpy()

    def change(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        data, record = self.base.change(data, owner, clients, rng)
        y = data.get("y")
        if y is None or y.dim() != 1 or y.is_floating_point():
            held = "no field 'y'" if y is None else f"'y' of {str(y.dtype)[6:]} {tuple(y.shape)}"
            raise DataError(f"a concept shift permutes one integer label per sample; this data has {held}")
        classes = int(y.max()) + 1
        maps = torch.arange(classes).repeat(self.groups, 1)
        for g in range(1, self.groups):
            maps[g] = torch.from_numpy(rng.permutation(classes))
        return data.replace(y=maps[owner % self.groups, y]), {**record, "label_maps": maps.tolist()}


# --------------------------------------------------------------------------------------------- shared pieces


def dirichlet_split(key: np.ndarray, alpha: float, clients: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """The samples `(n,)` of each key value split over clients in Dirichlet(alpha) shares; see `Dirichlet`."""
    rows_of = [np.flatnonzero(key == value) for value in np.unique(key)]
    owner, counts = np.empty(len(key), dtype=np.int64), np.zeros(0)
    for _ in range(10):
        for rows in rows_of:
            share = rng.dirichlet(np.full(clients, alpha))
            cuts = np.floor(np.cumsum(share)[:-1] * len(rows))
            owner[rng.permutation(rows)] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        counts = np.bincount(owner, minlength=clients)
        if counts.min() >= least:
            return owner
    return _repair(owner, counts, least, rng)


def _repair(owner: np.ndarray, counts: np.ndarray, least: int, rng: np.random.Generator) -> np.ndarray:
    """Moves random samples from the clients that hold most until everyone has `least`."""
    owner, counts = owner.copy(), counts.copy()
    mixed = rng.permutation(len(owner))
    by_owner = mixed[np.argsort(owner[mixed], kind="stable")]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    donors = [(-int(c), i) for i, c in enumerate(counts) if c > least]
    heapq.heapify(donors)
    for taker in np.flatnonzero(counts < least):
        while counts[taker] < least:
            held, donor = heapq.heappop(donors)
            owner[by_owner[first[donor] - held - 1]] = taker  # the donor's last sample
            counts[taker] += 1
            if -held - 1 > least:
                heapq.heappush(donors, (held + 1, donor))
    return owner


def _even(n: int, parts: int) -> np.ndarray:
    """Sizes of `parts` parts of n that differ by one at most."""
    return np.full(parts, n // parts) + (np.arange(parts) < n % parts)


# --------------------------------------------------------------------------------------------------- as text

PARTITIONS: dict[str, tuple[type[Partition], dict[str, Any]]] = {
    **{kind.spec: (kind, {}) for kind in (IID, Dirichlet, EmbeddingDirichlet, Shards, Quantity, Natural, Domains)},
    **{kind: (FeatureShift, {"kind": kind}) for kind in _SHIFTS},
    "concept": (ConceptShift, {}),
}


def parse_partition(text: str | Partition) -> Partition:
    """A partition from its text form: `name[:value,...,key=value][/base]`.

    `"iid"`, `"dirichlet:0.1"`, `"dirichlet:0.1,least=10,by=group"`, `"shards:2"`, `"natural"`,
    `"rotation:45/dirichlet:0.3"`; `str(partition)` gives the text back.

    Raises:
        ConfigError: an unknown name or option (with the nearest known one), or a value that does not fit.
    """
    if isinstance(text, Partition):
        return text
    own, _, base = text.strip().partition("/")
    name, _, rest = own.partition(":")
    name = name.strip().lower().replace("color", "colour")
    if name not in PARTITIONS:
        raise unknown("partition", name, PARTITIONS, 'For example "dirichlet:0.1" or "rotation:45/iid".')
    kind, preset = PARTITIONS[name]
    options = dict(preset)
    settable = [f.name for f in fields(kind) if f.name not in ("base", "encoder", *preset)]
    for i, item in enumerate(part.strip() for part in rest.split(",") if part.strip()):
        key, equals, value = item.partition("=")
        if not equals:
            if i >= len(settable):
                raise ConfigError(f"{name} takes {', '.join(settable) or 'no values'}; given {rest!r}")
            key, value = settable[i], item
        if key not in settable:
            raise unknown(f"option of the partition {name!r}", key, settable)
        options[key] = _value(kind, name, key, value)
    if base:
        if "base" not in {f.name for f in fields(kind)}:
            raise ConfigError(
                f"{name!r} has no base partition; only {', '.join((*_SHIFTS, 'concept'))} wrap another. Given {text!r}"
            )
        options["base"] = parse_partition(base)
    missing = [
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name not in options
    ]
    if missing:
        raise ConfigError(f"the partition {name!r} needs {missing[0]}: for example {name}:{_EXAMPLES[name]}")
    return kind(**options)


_EXAMPLES = {
    "dirichlet": "0.1",
    "embedding": "0.1",
    "quantity": "0.5",
    "rotation": "45",
    "noise": "0.3",
    "colour": "0.5",
}


def _value(kind: type[Partition], name: str, key: str, text: str) -> Any:
    wanted = get_type_hints(kind)[key]
    try:
        return wanted(text)
    except ValueError:
        raise ConfigError(f"{key} of the partition {name!r} is a {wanted.__name__}; given {text!r}") from None
