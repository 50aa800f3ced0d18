"""Client-level central differential privacy: every upload clipped, Gaussian noise added once to the sum.

    fl.run(FedAvg(...), ..., channel=DP(clip=1.0, noise=1.1))          DP-FedAvg (McMahan et al., ICLR 2018)

    x_i = message_i * min(1, S / |message_i|)            Clip(S), at the client, over all tensors of the message
    sum = x_1 + ... + x_n + N(0, (z S)^2 I)              GaussianNoise(z), at the server, once for each exchange
    mean = sum / (expected cohort)                       the realised size would itself tell who was there

What is protected is a client: all its data, in all rounds. The server is trusted with single updates (combine with a
secure sum where it is not); the noised sums, and everything computed from them, may be published. Metrics measured on
clients' data and the list of who took part are the experimenter's view and are not covered. Floating-point noise from
a keyed generator is for simulation: in a deployment the operating system draws it.

Accounting follows the law that drew the cohort, as `Exchange` tells it:

    poisson   each client on its own with chance q: the sampled Gaussian mechanism at q; neighbours differ by adding or
              removing one client, so the sum moves by at most S.
    fixed     k of n without replacement: the bound of Wang, Balle and Kasiviswanathan (AISTATS 2019) at q = k / n;
              neighbours differ by replacing one client, so the sum moves by up to 2 S and z counts half.
    all       everybody, or ids the method named: the plain Gaussian mechanism.
    other     a policy, or the first replies of more than were wanted: no chance to count on, and one client more is
              another less. The plain Gaussian mechanism for neighbours as under `fixed`, z counting half.

Several exchanges with one draw are composed inside the sampling: a client drawn once is in all of them.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fedloom.errors import ConfigError, FedloomWarning, MessageError, MissingExtra, NotSupported
from fedloom.message import At, Covered, Message, Once, Packed, Value, check_finite, leaves, opened
from fedloom.trees import like

from .compression import entries, scaled
from .peers import uploads_only
from .stage import Exchange, Sender, Stage, doubt_statistics, listed

if TYPE_CHECKING:
    from fedloom.engines.base import Plan


# ---------------------------------------------------------------- clipping


@dataclass(frozen=True)
class Clip(Stage):
    """Scale an upload down to Euclidean norm `norm`, taken over all its floating tensors together.

    Numbers are left alone, and so is a message within the bound. A message that is not finite stays so: the engine
    excludes it. Compressed entries stay compressed. `sender.notes` gets `norm` and `clipped` (0 or 1).

    Args:
        norm: the bound, > 0; infinite: measure only.
    """

    name: ClassVar[str] = "clip"
    norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise ConfigError(f"Clip(norm={self.norm}) cannot be: a Euclidean norm > 0")

    @property
    def contracts(self) -> bool:
        return True

    def check(self, plan: Plan, stages: tuple[Stage, ...]) -> None:
        self.only_once(stages)
        uploads_only(self, plan)

    def encode(self, message: Message, sender: Sender) -> Message:
        if any(isinstance(leaf, Once) for leaf in _parts(message)):
            raise NotSupported("Clip cannot bound a once(...) value in an upload; send the tensor itself")
        norm = norm_of(message)
        sender.notes.update({"norm": norm, "clipped": float(norm > self.norm)})
        if norm <= self.norm:
            return message
        # a hair below the bound, so that rounding each entry cannot lift the norm over it
        hair, factor = 1 - 2 * _coarsest(message), self.norm / norm
        while True:
            factor *= hair
            short = entries(message, lambda _, v, by=factor: scaled(v, by) if _is_float(v) else v)
            if not (over := norm_of(short) / self.norm) > 1:
                return short
            factor /= over  # entries near the smallest of their type are rounded by more than a hair


def norm_of(message: Message) -> float:
    """The Euclidean norm over every floating tensor the receiver will read, added up in double precision."""
    norms = (
        float(torch.linalg.vector_norm(t, dtype=torch.float64))
        for t in leaves(dict(opened(message)))
        if isinstance(t, Tensor) and t.is_floating_point()
    )
    return math.hypot(*norms)


def _coarsest(message: Message) -> float:
    found = (t for t in leaves(dict(opened(message))) if isinstance(t, Tensor) and t.is_floating_point())
    return max(torch.finfo(t.dtype).eps for t in found)


def _is_float(v: Value) -> bool:
    v = v.dense() if isinstance(v, Packed) and not isinstance(v, Tensor | At) else v
    return (v.values if isinstance(v, At) else v).is_floating_point()


# ---------------------------------------------------------------- noise


@dataclass(frozen=True)
class GaussianNoise(Stage):
    """Noise of standard deviation `multiplier * S` on every exchange's sum, `S` being the norm of the `Clip` before it.

    The sum is divided by the EXPECTED size of the cohort, and the server program is told that number as `count`.

    Refused, because the guarantee would not hold: no `Clip` before it, or a stage between clipping and the sum that can
    make a message longer (quantising, random-k; they go before `Clip`); methods that read single replies, talk to
    peers, or run on a clock (nothing is summed); weights that differ from client to client; and, in an upload, `At`
    (the positions would travel without noise), `once` values, integers, text, and numbers not named in `public`.

    Not refused, but worth knowing: an empty cohort gives a void exchange, which shows that nobody was drawn (chance
    `(1-q)^n` under Poisson); running statistics of normalisation layers are noised like weights.

    Args:
        multiplier: z >= 0; 0 gives no privacy and epsilon infinity.
        delta: the one that `epsilon` is stated at, in (0, 1), well below 1 / clients.
        public: names of numbers in the replies that you assert to be independent of any client's data.
    """

    name: ClassVar[str] = "noise"
    sums_only: ClassVar[bool] = True
    uniform: ClassVar[bool] = True
    multiplier: float = 1.0
    delta: float = 1e-5
    public: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.multiplier < math.inf):
            raise ConfigError(f"GaussianNoise(multiplier={self.multiplier}) cannot be: a finite number >= 0")
        _check_delta(self.delta)

    @property
    def contracts(self) -> bool:
        return True

    def check(self, plan: Plan, stages: tuple[Stage, ...]) -> None:
        """See the class.

        Raises:
            NotSupported: one of the refusals.
            MissingExtra: dp-accounting is not installed, so no epsilon could be stated.
        """
        self.only_once(stages)
        before = stages[: stages.index(self)]
        clips = [k for k, s in enumerate(before) if isinstance(s, Clip)]
        if not clips:
            raise NotSupported(
                f"GaussianNoise needs a Clip before it: without a bound on one client's influence no amount of noise "
                f"hides it. Given {listed(stages)}. Write DP(clip=1.0, noise={self.multiplier})"
            )
        if math.isinf(_clip(stages).norm) and self.multiplier > 0:
            raise NotSupported("GaussianNoise needs a finite Clip(norm): its noise is a multiple of that norm")
        for stage in stages[clips[0] + 1 :]:
            if not stage.contracts:
                raise NotSupported(
                    f"{stage} can make a message longer after Clip has bounded it, so the noise would be too small. "
                    f"Put it before Clip; given {listed(stages)}"
                )
        for need, why in _UNSUMMED.items():
            if need in plan.method.card.needs:
                raise NotSupported(f"{plan.method.card.title} {why}: GaussianNoise protects sums only. Drop that stage")
        doubt_statistics(plan, "noised")
        if importlib.util.find_spec("dp_accounting") is None:
            raise MissingExtra("dp-accounting", "privacy", "stating epsilon")

    def encode(self, message: Message, sender: Sender) -> Message:
        for name, value in message.items():
            for leaf in _parts(value):
                if (isinstance(leaf, Tensor) and leaf.is_floating_point()) or name in self.public:
                    continue
                raise NotSupported(
                    f"field {name!r} would leave without noise ({_what(leaf)}), and GaussianNoise lets only noised "
                    f"floating tensors out. Leave it out of the reply or, if no client's data can show in it, name it: "
                    f"GaussianNoise(..., public=({name!r},))"
                )
        return message

    def settle(self, total: Message, exchange: Exchange) -> Message:
        check_finite(total, "the sum to be noised")
        each = abs(exchange.weight / exchange.count) if exchange.count else 1.0
        std = self.multiplier * _clip(exchange.stages).norm * each if self.multiplier else 0.0
        if self.delta * exchange.population >= 1:
            warnings.warn(
                f"delta={self.delta} is not below 1/{exchange.population} (one client's share): releasing a whole "
                f"client would pass as private. Choose a smaller delta",
                FedloomWarning,
                stacklevel=2,
            )
        _book(exchange, self.multiplier)
        rng = exchange.rng("noise")

        def noised(name: str, value: Value) -> Value:
            if name in self.public or std == 0:
                return value
            draw = torch.randn(value.shape, generator=rng, dtype=torch.float64)
            return value + (std * draw).to(value)

        noisy = Message({k: _tensors(v, lambda t, k=k: noised(k, t)) for k, v in total.items()})
        exchange.count, exchange.weight = exchange.expected, exchange.expected * each
        return noisy

    def report(self, ledger: Mapping[str, float]) -> dict[str, Any]:
        """Epsilon so far at this stage's delta, and for which neighbours."""
        return {"epsilon": epsilon(ledger, self.delta), "delta": self.delta, "neighbours": adjacency(ledger)}


_UNSUMMED = {
    "peers": "sends messages from client to client",
    "clock": "takes replies one by one as they arrive",
    "replies": "reads single replies",
}


def DP(clip: float, noise: float, delta: float = 1e-5, public: tuple[str, ...] = ()) -> tuple[Clip, GaussianNoise]:
    """The two stages of client-level central DP: `Clip(clip)`, then `GaussianNoise(noise, delta, public)`."""
    return Clip(clip), GaussianNoise(noise, delta, public)


def _clip(stages: tuple[Stage, ...]) -> Clip:
    found = [s for s in stages if isinstance(s, Clip)]
    if not found:
        raise NotSupported("GaussianNoise needs a Clip before it: DP(clip=1.0, noise=1.1)")
    return found[0]


def _parts(value: Value) -> Iterator[Value]:
    """As `leaves`, with compressed entries as the receiver reads them; `At` and `once` whole."""
    if isinstance(value, Mapping):
        for v in value.values():
            yield from _parts(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _parts(v)
    elif isinstance(value, Packed) and not isinstance(value, Tensor | At):
        yield value.dense()
    else:
        yield value


def _what(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"a tensor of {str(leaf.dtype)[6:]}"
    return {At: "At, whose positions are not noised", Covered: "a partial sum"}.get(type(leaf), repr(leaf))


def _tensors(value: Value, change: Any) -> Value:
    """The same structure with every floating tensor changed."""
    if isinstance(value, Mapping):
        return {k: _tensors(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return like(value, (_tensors(v, change) for v in value))
    if isinstance(value, Covered):
        raise MessageError("a sum of At pieces cannot be noised: who sent which element would show")
    return change(value) if isinstance(value, Tensor) else value


# ---------------------------------------------------------------- accounting


def _book(exchange: Exchange, multiplier: float) -> None:
    """Enter one release: `gaussian LAW q=.. z=.. use=..` -> how many times. Only numbers, and they only grow."""
    law, q = exchange.law, exchange.probability
    if law not in ("poisson", "fixed", "all"):
        law, q = "fixed", 1.0  # whoever is chosen takes the place of another
    elif q is None or q >= 1:
        law, q = "all", 1.0
    key = f"gaussian {law} q={q!r} z={multiplier!r} use={exchange.use}"
    exchange.ledger[key] = exchange.ledger.get(key, 0.0) + 1


@dataclass(frozen=True)
class Release:
    """`count` draws of a cohort, each used for `uses` noised sums."""

    law: str
    q: float
    multiplier: float
    uses: int
    count: int


def releases(ledger: Mapping[str, float]) -> list[Release]:
    """What a ledger says was released. A draw used three times stands in it under use 1, 2 and 3."""
    times: dict[tuple[str, float, float], dict[int, int]] = {}
    for key, count in ledger.items():
        kind, _, rest = key.partition(" ")
        if kind == "gaussian":
            law, *pairs = rest.split()
            q, z, use = (pair.partition("=")[2] for pair in pairs)
            times.setdefault((law, float(q), float(z)), {})[int(use)] = int(count)
    return [
        Release(*mechanism, uses, count - by_use.get(uses + 1, 0))
        for mechanism, by_use in times.items()
        for uses, count in sorted(by_use.items())
        if count > by_use.get(uses + 1, 0)
    ]


def adjacency(ledger: Mapping[str, float]) -> str:
    """Which neighbours the guarantee is about: "add or remove one client", or "replace one client" once a cohort of
    fixed size was drawn."""
    return "replace one client" if any(r.law == "fixed" for r in releases(ledger)) else "add or remove one client"


def epsilon(ledger: Mapping[str, float], delta: float = 1e-5) -> float:
    """Epsilon of everything in the ledger at `delta`, for the neighbours that `adjacency` names.

    Renyi accounting by dp-accounting; infinity where something was released without noise, 0 where nothing was.

    Raises:
        ConfigError: delta not in (0, 1).
        NotSupported: Poisson and fixed-size draws in one run: their guarantees are about different neighbours.
        MissingExtra: dp-accounting is not installed.
    """
    _check_delta(delta)
    events = releases(ledger)
    if not events:
        return 0.0
    if any(e.multiplier == 0 for e in events):
        return math.inf
    laws = {e.law for e in events}
    if {"poisson", "fixed"} <= laws:
        raise NotSupported(
            "this run drew cohorts both by Poisson sampling and of fixed size; their guarantees are about different "
            "neighbours and do not add up. Use one: sample(0.1) or sample(10)"
        )
    dp, rdp = _library()
    replace_one = "fixed" in laws
    relation = dp.NeighboringRelation.REPLACE_ONE if replace_one else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    for e in events:
        # the library reads z as noise over sensitivity, and replacing a client moves the sum by 2 norms
        gaussian = dp.GaussianDpEvent(e.multiplier / 2 if replace_one else e.multiplier)
        event: Any = dp.SelfComposedDpEvent(gaussian, e.uses)
        if e.law == "poisson":
            event = dp.PoissonSampledDpEvent(e.q, event)
        elif e.law == "fixed":
            event = _fixed_size(dp, e.q, event)
        accountant.compose(event, e.count)
    return float(accountant.get_epsilon(delta))


def _fixed_size(dp: Any, q: float, event: Any) -> Any:
    """Only the ratio of sizes matters to the bound."""
    whole = 10**9
    return dp.SampledWithoutReplacementDpEvent(whole, math.ceil(q * whole), event)


_LEAST_NOISE = 0.01


def noise_for(target: float, delta: float, probability: float, rounds: int) -> float:
    """The smallest noise multiplier that keeps `rounds` Poisson exchanges within epsilon `target`.

    Args:
        target: epsilon, > 0, at `delta`.
        probability: each client's chance to be drawn, in (0, 1]; 1: everybody.

    Raises:
        ConfigError: target <= 0, or so large that almost no noise keeps it; probability not in (0, 1], rounds no whole
            number from 1, or delta not in (0, 1).
        MissingExtra: dp-accounting is not installed.
    """
    _check_delta(delta)
    if not (target > 0 and 0 < probability <= 1 and rounds >= 1 and rounds % 1 == 0):
        raise ConfigError(
            f"noise_for takes target > 0, a probability in (0, 1] and a whole number of rounds >= 1; "
            f"given {target}, {probability}, {rounds}"
        )
    dp, rdp = _library()

    def event(z: float) -> Any:
        return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(z)), int(rounds))

    bracket = dp.LowerEndpointAndGuess(_LEAST_NOISE, 1.0)
    try:
        return float(dp.calibrate_dp_mechanism(rdp.RdpAccountant, event, target, delta, bracket))
    except dp.mechanism_calibration.NoBracketIntervalFoundError:
        raise ConfigError(
            f"noise_for(target={target:g}): even a multiplier of {_LEAST_NOISE} stays below, so this epsilon promises "
            f"nothing; targets are near 1"
        ) from None


def _library() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise MissingExtra("dp-accounting", "privacy", "stating epsilon") from None
    return dp_accounting, rdp


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} cannot be: a probability in (0, 1), well below 1 / clients")
