"""The secure sum of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017).

    keys      u sends the public keys of c_u (sealing) and s_u (masks), and a commitment to b_u, its self-mask
    shares    u splits s_u and b_u into shares, any t of n give them back, and seals each for its holder
    input     y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)   mod 2^k,   s_uv agreed by u and v
    unmask    of each v that sent y_v everybody shows the share of b_v, of the others that of s_v; never both

The server adds up y_u, takes off PRG(b_u) of those in the sum and the pairwise masks towards those that are not, and is
left with sum x_u. Up to n - t parties may be lost, in any phase; with one more there is no sum.

    n, t          asked, threshold > n/2             roster, alive, survivors    U_1, U_2, U_3: who came through keys,
    Party         u                                                              shares and input

Everything agreed is bound to the roster: where a server shows two parties different ones, their masks do not cancel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from fedloom.errors import FedloomError, MessageError

from . import masks
from .ring import WEIGHT, Vector
from .shamir import SECRET, combine, split

KEYS, SHARES, INPUT, UNMASK = PHASES = ("keys", "shares", "input", "unmask")
SHARE_TEXT, SEALED_TEXT = 2 * SECRET, 2 * (2 * SECRET + masks.SEALED)
"""Letters of a share that is shown, and of both shares sealed for a holder."""


class NoSum(FedloomError):
    """A secure sum that came to nothing."""


class TooFew(NoSum):
    """Too few parties are left for it; `course` says who came how far."""

    def __init__(self, phase: str, left: int, threshold: int, course: Course) -> None:
        asked = len(course.asked)
        super().__init__(
            f"no secure sum: {left} of {asked} clients came through the phase {phase!r}, and it takes {threshold}"
            + " (of one client it would be its reply)" * (asked < 2)
        )
        self.course = course


@dataclass(frozen=True)
class Keys:
    """What a party shows first: two public keys and a commitment, hexadecimal."""

    seal: str
    mask: str
    commitment: str

    @staticmethod
    def read(given: Mapping[str, object]) -> Keys:
        """Raises MessageError where it is not that, or nobody could agree on anything with a key."""
        try:
            keys = Keys(str(given["seal"]), str(given["mask"]), str(given["commitment"]))
            if all(len(bytes.fromhex(text)) == 32 for text in asdict(keys).values()):
                for public in (keys.seal, keys.mask):
                    masks.agreed(masks.key_of(bytes(32)), bytes.fromhex(public), "trial")
                return keys
        except (KeyError, ValueError):
            pass
        raise MessageError("not the keys of a secure sum: two public keys and a commitment, 32 bytes each")


Roster = Mapping[int, Keys]
"""Who takes part, by number."""


@dataclass(frozen=True)
class Circle:
    """Those who sum together, as each of them sees it.

    Attributes:
        name: of this sum; no other has it.
        threshold: shares that give a secret back, and parties every phase takes.
    """

    name: str
    threshold: int
    roster: Roster

    @cached_property
    def about(self) -> str:
        """What everything agreed here is bound to."""
        held = {str(u): asdict(keys) for u, keys in sorted(self.roster.items())}
        text = json.dumps([self.name, self.threshold, held], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def places(self) -> dict[int, int]:
        """Where on the polynomial each party's shares lie, from 1."""
        return {u: k + 1 for k, u in enumerate(sorted(self.roster))}


class Party:
    """One client in one secure sum. All its secrets follow from one; what it may do with them is its owner's to watch:
    every phase once, and the same numbers in all of them.

    Args:
        number: its own, unlike all others'.
        secret: 32 bytes of the operating system's.
        name: of the sum.
    """

    def __init__(self, number: int, secret: bytes, name: str) -> None:
        self.number, self.name = number, name
        self._seal = masks.key_of(masks.derived(secret, "seal"))
        self._mask_secret = masks.derived(secret, "mask", SECRET)
        self._self_secret = masks.derived(secret, "self", SECRET)

    def keys(self) -> Keys:
        """Phase 1."""
        seal, mask = masks.public_of(self._seal), masks.public_of(_mask_key(self._mask_secret))
        return Keys(seal.hex(), mask.hex(), _commitment(self._self_secret, self.name))

    def shares(self, circle: Circle) -> dict[int, str]:
        """Phase 2: for each of the roster, this one too, sealed shares of both secrets."""
        made = [split(s, circle.threshold, len(circle.roster)) for s in (self._mask_secret, self._self_secret)]
        return {
            v: masks.sealed(
                self._sealing(circle, v, outward=True), made[0][place - 1] + made[1][place - 1], circle.about.encode()
            ).hex()
            for v, place in circle.places.items()
        }

    def masked(self, vector: Vector, circle: Circle, alive: Collection[int]) -> Vector:
        """Phase 3: `vector` under its own mask and those with each of `alive`."""
        out = vector.copy()
        masks.add_mask(out, _stream(self._self_secret, circle), 1)
        _add_pairwise(out, self._mask_secret, self.number, circle, alive, 1)
        return out

    def unmask(
        self, circle: Circle, sealed: Mapping[int, str], alive: Collection[int], survivors: Collection[int]
    ) -> dict[int, str]:
        """Phase 4: of each of `alive` one share; what does not open is left out."""
        shown: dict[int, str] = {}
        for v in alive:
            try:
                key = self._sealing(circle, v, outward=False)
                both = masks.unsealed(key, bytes.fromhex(sealed.get(v, "")), circle.about.encode())
            except (MessageError, ValueError):
                continue
            shown[v] = (both[SECRET:] if v in survivors else both[:SECRET]).hex()
        return shown

    def _sealing(self, circle: Circle, v: int, outward: bool) -> bytes:
        u = self.number
        way = f"{u} to {v}" if outward else f"{v} to {u}"
        return masks.agreed(self._seal, bytes.fromhex(circle.roster[v].seal), f"sealed {way} {circle.about}")


def unmasked(
    total: Vector,
    circle: Circle,
    alive: Collection[int],
    survivors: Collection[int],
    shown: Mapping[int, Mapping[int, str]],
) -> Vector:
    """The server's part: the sum of the survivors' masked vectors, without masks. In place.

    Args:
        shown: by holder, the shares it showed.

    Raises:
        NoSum: too few shares of somebody's secret, or shares that do not give what was committed to.
    """
    for v in alive:
        held = {circle.places[u]: share for u, by in shown.items() if (share := _share(by.get(v))) is not None}
        if len(held) < circle.threshold:
            raise NoSum(f"no secure sum: {len(held)} shares of the secret of party {v}, and {circle.threshold} open it")
        secret, keys = combine(held, circle.threshold), circle.roster[v]
        if v in survivors:
            fits = _commitment(secret, circle.name) == keys.commitment
        else:
            fits = masks.public_of(_mask_key(secret)).hex() == keys.mask
        if not fits:
            raise NoSum(f"no secure sum: the shares of the secret of party {v} do not give what it committed to")
        if v in survivors:
            masks.add_mask(total, _stream(secret, circle), -1)
        else:
            _add_pairwise(total, secret, v, circle, survivors, 1)  # it would have cancelled theirs
    return total


def _share(text: str | None) -> bytes | None:
    try:
        share = bytes.fromhex(text or "")
    except ValueError:
        return None
    return share if len(share) == SECRET else None


def _mask_key(secret: bytes):
    return masks.key_of(masks.derived(secret, "private key of masks"))


def _commitment(secret: bytes, name: str) -> str:
    return masks.derived(secret, f"commitment {name}").hex()


def _stream(secret: bytes, circle: Circle) -> bytes:
    return masks.derived(secret, f"self-mask {circle.about}")


def _add_pairwise(vector: Vector, secret: bytes, u: int, circle: Circle, others: Collection[int], sign: int) -> None:
    """What u adds for each of the others: towards those above it with a plus, below with a minus."""
    key = _mask_key(secret)
    for v in others:
        if v != u:
            low, high = sorted((u, v))
            pair = masks.agreed(key, bytes.fromhex(circle.roster[v].mask), f"mask {low} {high} {circle.about}")
            masks.add_mask(vector, pair, sign if v > u else -sign)


# ---------------------------------------------------------------- a whole sum


@dataclass(frozen=True)
class Course:
    """Who came how far, and what of the payload each sent and was sent."""

    asked: Collection[int]
    roster: Collection[int] = ()
    alive: Collection[int] = ()
    survivors: Collection[int] = ()
    shown: Collection[int] = ()

    def through(self, phase: str, left: list[int], threshold: int) -> Course:
        """After a phase.

        Raises:
            TooFew: fewer than `threshold` came through.
        """
        names = {KEYS: "roster", SHARES: "alive", INPUT: "survivors", UNMASK: "shown"}
        course = replace(self, **{names[phase]: left})
        if len(left) < threshold:
            raise TooFew(phase, len(left), threshold, course)
        return course

    def nbytes(self, u: int) -> tuple[int, int]:
        """Bytes up and down of one party, beyond its message: keys, shares, the weight, lists of who is there."""
        share = 2 * SECRET + masks.SEALED
        up = 96 * (u in self.roster) + share * len(self.roster) * (u in self.alive)
        up += WEIGHT * (u in self.survivors) + SECRET * len(self.alive) * (u in self.shown)
        down = 96 * len(self.roster) * (u in self.roster) + 8 * len(self.alive) * (u in self.alive)
        down += (share * len(self.alive) + 8 * len(self.survivors)) * (u in self.survivors)
        return up, down


@dataclass
class Gone:
    """Who is lost in which phase: it does what the phases before ask, and nothing from that phase on."""

    phases: Mapping[str, Collection[int]] = field(default_factory=dict[str, Collection[int]])

    def left(self, phase: str, there: Collection[int]) -> list[int]:
        return [u for u in there if u not in self.phases.get(phase, ())]


def secure_sum(
    vectors: Mapping[int, Vector], secrets: Mapping[int, bytes], name: str, threshold: int, gone: Gone
) -> tuple[Vector, Course]:
    """Every phase of every party and of the server, in one process.

    Args:
        vectors: what the parties would add; one without is lost in the phase `input`, at the latest.
        secrets: of all that were asked.

    Raises:
        TooFew: a phase was left with fewer than `threshold`.
    """
    course = Course(list(secrets))

    def came(phase: str, there: Collection[int]) -> list[int]:
        nonlocal course
        left = gone.left(phase, there)
        course = course.through(phase, left, threshold)
        return left

    parties = {u: Party(u, secret, name) for u, secret in secrets.items()}
    circle = Circle(name, threshold, {u: parties[u].keys() for u in came(KEYS, course.asked)})
    alive = came(SHARES, circle.roster)
    sealed = {u: parties[u].shares(circle) for u in alive}
    survivors = came(INPUT, [u for u in alive if u in vectors])
    total = np.zeros_like(vectors[survivors[0]])
    for u in survivors:
        total += parties[u].masked(vectors[u], circle, alive)
    shown = {
        u: parties[u].unmask(circle, {v: sealed[v][u] for v in alive}, alive, survivors)
        for u in came(UNMASK, survivors)
    }
    return unmasked(total, circle, alive, survivors, shown), course
