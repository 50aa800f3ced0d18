"""What both sides agree on before anything is sent: an offer, what the sites hold, and one hash over both.

The coordinator offers a recipe. A site looks at it against its own policy, declares its data (sizes, shapes, a hash;
no sample), and is given the plan: the offer and what all sites declared. Each side works out the hash of the plan from
what it has itself, versions and source of the method included, and every later request names it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedloom.channel import Channel, Secure
from fedloom.data import Data, Federation
from fedloom.data.convert import label_count
from fedloom.data.population import Elsewhere
from fedloom.engines.base import Plan
from fedloom.errors import ConfigError, FedloomError, NotSupported
from fedloom.method import Method
from fedloom.models.registry import spec_of
from fedloom.named import is_own, own
from fedloom.runs import Recipe
from fedloom.runs.describe import versions
from fedloom.timing.world import World

from .addresses import Declared, read_said
from .tables import Table
from .wire import digest, reading

PROTOCOL = 2


class Refused(FedloomError):
    """One side will not go on with the other; says why."""


class Terms(BaseModel):
    """How a federation of sites works: the table `[sites]` of a recipe file.

    Raises:
        ConfigError: a key that does not exist, or a value of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: dict[str, int] = Field(description="site -> how many clients it is; their numbers follow this order")
    task: str = Field("classification", description="classification, regression or language")
    deadline: float | None = Field(
        None, gt=0, lt=math.inf, description="seconds after which an exchange goes on without the late"
    )
    quorum: int = Field(1, ge=1, description="replies an exchange needs before it goes on without the late")
    table: Table | None = Field(None, description="how every site reads its table; none: samples come as .npz")
    largest: float = Field(
        1024.0, gt=0, lt=math.inf, description="MB a message may take, on the wire or when it is read"
    )
    piece: float = Field(4.0, ge=1e-4, le=64, description="MB of a message sent in one request")

    @field_validator("names", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """A list of names is one client each."""
        if isinstance(given, list) and (twice := [site for site in given if given.count(site) > 1]):
            raise ValueError(f"{twice[0]!r} is there twice; a site of two clients is {{ {twice[0]} = 2 }}")
        return dict.fromkeys(given, 1) if isinstance(given, list) else given

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as e:
            first = e.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"[sites] {name}: {first['msg']}; given {first['input']!r}") from None
        from .certs import check_site

        for site, clients in self.names.items():
            check_site(site)
            if clients < 1:
                raise ConfigError(f"[sites] {site} = {clients}: a site is 1 client or more")
        if not self.names:
            raise ConfigError('[sites] names nobody: names = ["cleveland", "budapest"]')

    @cached_property
    def clients(self) -> dict[str, range]:
        """site -> the numbers of its clients."""
        found, first = dict[str, range](), 0
        for site, n in self.names.items():
            found[site] = range(first, first + n)
            first += n
        return found

    def site_of(self, client: int) -> str:
        return next(site for site, ids in self.clients.items() if client in ids)

    @property
    def bytes_largest(self) -> int:
        return int(self.largest * 1e6)


def read_deployment(path: Path) -> tuple[Recipe, Terms]:
    """A recipe file with a table `[sites]`.

    Raises:
        ConfigError: not such a file; says what is missing.
    """
    try:
        given = tomllib.loads(path.read_text())
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not TOML: {e}") from None
    given.pop("run", None)
    sites = given.pop("sites", None)
    if sites is None:
        raise ConfigError(f'{path} names no sites. Add a table: [sites] names = ["cleveland", "budapest"]')
    return Recipe(**given), Terms(**sites)


# ---------------------------------------------------------------- the offer


@dataclass(frozen=True)
class Offer:
    """What the coordinator wants to run, and with whom.

    Attributes:
        recipe: complete, as TOML. `public`: the name of the bytes of the public data, "" without any.
    """

    recipe: str
    terms: Terms
    public: str = ""

    @staticmethod
    def of(recipe: Recipe, terms: Terms, public: str = "") -> Offer:
        """Raises NotSupported for a method that sites cannot run."""
        check_method(recipe)
        # a site that fails is counted and left out; it does not end the others' work
        return Offer(recipe.complete().replace(on_failure="exclude").to_toml(), terms, public)

    @staticmethod
    def read(given: Mapping[str, Any]) -> Offer:
        """Of whatever was sent.

        Raises:
            MessageError: it is none.
        """
        with reading("offer"):
            return Offer(str(given["recipe"]), Terms(**given["terms"]), str(given["public"]))

    def content(self) -> dict[str, Any]:
        """As JSON: what crosses the wire."""
        return {"recipe": self.recipe, "terms": self.terms.model_dump(mode="json"), "public": self.public}

    @cached_property
    def made(self) -> Recipe:
        return Recipe.from_toml(self.recipe)

    @property
    def mine(self) -> dict[str, str]:
        """Versions as they are on this side: of what computes, and the source of the method and of own networks."""
        found = versions()
        code = [type(self.made.method_object()), *(own(name, "network") for name in own_networks(self.made))]
        source = "".join(inspect.getsource(inspect.getmodule(one)) for one in code)  # pyright: ignore[reportArgumentType]
        return {
            "protocol": str(PROTOCOL),
            "fedloom": found["fedloom"],
            "torch": found["torch"].partition("+")[0],
            "method source": hashlib.sha256(source.encode()).hexdigest()[:16],
        }


def own_networks(recipe: Recipe) -> list[str]:
    """The networks of a recipe that are code of one's own, `module:Class`, unread."""
    return [name for spec in (recipe.model or "").split("+") if is_own(name := spec_of(spec)[0])]


def check_method(recipe: Recipe) -> None:
    """Refuse what cannot be done between organisations.

    Raises:
        NotSupported: a method whose clients talk to each other, or that reads single replies where sums are secure; a
            world of virtual devices.
    """
    card = recipe.method_object().card
    Channel.of(recipe.channel).check_method(card)
    if recipe.world_object() != World():
        raise NotSupported(
            "devices, links and deadlines of a [world] are for simulation; between sites they are what they are. Leave "
            "it out; a deadline of the federation's own is [sites] deadline = 600"
        )
    if "peers" in card.needs:
        raise NotSupported(
            f"{card.title} averages what clients hold along a graph, and sites connect to the coordinator alone. Run "
            f"it in simulation, or use a method with a server (`fedloom methods`)"
        )


# ---------------------------------------------------------------- what sites hold


def declaration(federation: Federation) -> dict[str, Any]:
    """What a site says of its data: sizes, the shape of a sample, classes, and a hash. No sample, no statistic."""
    sample = federation.local(0)
    table = federation.table
    assert table is not None
    return {
        "sizes": [federation.population.total(i) for i in federation.ids],
        "fields": {k: [list(t.shape[1:]), str(t.dtype).removeprefix("torch.")] for k, t in sorted(sample.items())},
        "classes": federation.classes or label_count([table]) or 0,
        "sha256": federation.sha256,
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> str:
    """What two mappings do not have in common, in words: in mappings inside by entry, in texts by line."""
    found: list[str] = []
    for name in sorted(set(one) | set(other)):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += filter(None, [differing(a, b, f"{within}{name}.")])
        elif a != b:
            a, b = _lines_apart(a, b) if isinstance(a, str) and isinstance(b, str) else (a, b)
            found.append(f"{within}{name}: {a!r} here, {b!r} there")
    return "; ".join(found)


def _lines_apart(one: str, other: str) -> tuple[str, str]:
    mine, theirs = one.splitlines(), other.splitlines()
    return ", ".join(x for x in mine if x not in theirs) or one, ", ".join(x for x in theirs if x not in mine) or other


@dataclass(frozen=True)
class Agreement:
    """The plan in full: the offer, and what every site declared."""

    offer: Offer
    held: Mapping[str, Mapping[str, Any]]

    def content(self) -> dict[str, Any]:
        return {"offer": self.offer.content(), "held": {k: dict(v) for k, v in self.held.items()}}

    @staticmethod
    def read(given: Mapping[str, Any]) -> Agreement:
        """Of whatever was sent.

        Raises:
            MessageError: it is none, or somebody's data are missing.
        """
        with reading("plan"):
            offer = Offer.read(given["offer"])
            held = {site: dict(given["held"][site]) for site in offer.terms.names}
            for said in held.values():
                read_said(Declared, json.dumps(said).encode())
            return Agreement(offer, held)

    @cached_property
    def hash(self) -> str:
        """Over all of it and this side's versions: equal where both sides would do the same."""
        return digest({**self.content(), "versions": self.offer.mine})

    @cached_property
    def identity(self) -> str:
        return digest({k: v["sha256"] for k, v in self.held.items()})

    def federation(
        self,
        here: Mapping[int, Data] | None = None,
        *,
        test: Data | None = None,
        public: Data | None = None,
        validation: Data | None = None,
    ) -> Federation:
        """The clients as this side sees them: sizes and shapes of all, samples of those that lie here."""
        terms, first = self.offer.terms, next(iter(self.held.values()))
        schema = {k: (tuple(shape), getattr(torch, kind)) for k, (shape, kind) in first["fields"].items()}
        sizes = [n for site in terms.names for n in self.held[site]["sizes"]]
        names = [s if len(ids) == 1 else f"{s}/{k}" for s, ids in terms.clients.items() for k in range(len(ids))]
        return Federation(
            Elsewhere(sizes, schema, here, self.identity),
            val=self.offer.made.val,
            test=test,
            public=public,
            validation=validation,
            name=self.offer.made.data,
            classes=max(int(v["classes"]) for v in self.held.values()) or None,
            names=tuple(names),
            info={"task": terms.task, "partition": "natural", "sites": list(terms.names)},
        )

    def plan(self, federation: Federation) -> Plan:
        return self.offer.made.experiment(federation=federation).plan()


def compatible(mine: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why this declaration does not go with those of the others; None where it does."""
    for site, theirs in others.items():
        if mine["fields"] != theirs["fields"]:
            return f"its samples are unlike those of {site}: {differing(mine['fields'], theirs['fields'])}"
    return None


# ---------------------------------------------------------------- a site's own policy


def asked_of(method: Method, clients: int) -> int:
    """How many of so many clients a round asks: the method, or one inside it. Where each has a chance, on average."""

    def of(one: Method) -> int:
        own = getattr(one, "cohort", None)
        return clients if own is None else int(own * clients) if isinstance(own, float) else min(own, clients)

    return min(map(of, _nested(method)))


def unbounded(method: Method) -> str:
    """Why a round may come to a single client, whatever is asked on average; "" where it cannot."""
    for one in _nested(method):
        if "clock" in one.card.needs:
            return f"{one.card.title} takes replies up as they arrive, and may do with a single one"
        if isinstance(own := getattr(one, "cohort", None), float):
            return f"cohort = {own} draws every client by chance, and may draw a single one"
    return ""


def _nested(method: Method) -> list[Method]:
    """A method and all those inside it."""
    inside = (getattr(method, f.name) for f in fields(method))  # pyright: ignore[reportArgumentType]
    return [method, *(one for inner in inside if isinstance(inner, Method) for one in _nested(inner))]


class Policy(BaseModel):
    """What a site takes part in: a TOML file of the site's own.

    Raises:
        ConfigError: a key that does not exist, or a value of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: list[str] | None = Field(None, description="ids of methods it runs; none: all that are built in")
    modules: list[str] = Field([], description="packages of one's own whose code may be named")
    least_clients: int = Field(1, ge=1, description="clients a federation must have")
    least_cohort: int = Field(1, ge=1, description="clients every round must ask; 1: any number")
    most_rounds: int | None = Field(None, ge=1, description="rounds of one run")
    privacy: bool = Field(False, description="whether the channel must hold differential privacy")
    least_partners: int = Field(0, ge=0, description="other sites a secure sum must hold; 0: sums need not be secure")

    @staticmethod
    def read(path: Path | None) -> Policy:
        if path is None:
            return Policy(**{})
        try:
            return Policy(**tomllib.loads(path.read_text()))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as e:
            raise ConfigError(f"the policy {path} cannot be read: {e}") from None

    def check(self, offer: Offer) -> None:
        """Look at an offer before anything is said of the data.

        Raises:
            Refused: what is asked for, and what this site's policy says.
        """
        recipe = Recipe.from_toml(offer.recipe)
        self._check_names(recipe)  # nothing is imported by a name from outside before this
        if self.methods is not None and recipe.method not in self.methods:
            raise Refused(f"the method {recipe.method!r} is not one this site runs: {', '.join(self.methods)}")
        if self.most_rounds is not None and recipe.rounds > self.most_rounds:
            raise Refused(f"{recipe.rounds} rounds, and this site's policy is {self.most_rounds} at most")
        clients = sum(offer.terms.names.values())
        if clients < self.least_clients:
            raise Refused(f"a federation of {clients} clients, and this site's policy is {self.least_clients} at least")
        method = recipe.method_object()
        if self.least_cohort > 1 and (why := unbounded(method)):
            raise Refused(f"{why}; this site's policy is {self.least_cohort} clients a round at least (least_cohort)")
        cohort = asked_of(method, clients)
        if cohort < self.least_cohort:
            raise Refused(f"cohorts of {cohort} clients, and this site's policy is {self.least_cohort} at least")
        if self.privacy and not any(stage.startswith(("dp", "noise")) for stage in recipe.channel):
            raise Refused(
                "no differential privacy in the channel, and this site's policy demands it: channel = ['dp:...']"
            )
        self._check_partners(offer, Channel.of(recipe.channel).secure, cohort)

    def _check_partners(self, offer: Offer, secure: Secure | None, cohort: int) -> None:
        """Whether this site's replies would be hidden among enough others'; in every phase the site looks again."""
        if not self.least_partners:
            return
        if secure is None:
            raise Refused(
                f"no secure sums in the channel, and this site's policy demands them, with {self.least_partners} other "
                f"sites at least (least_partners): channel = ['secure']"
            )
        others = min(len(offer.terms.names), secure.least(cohort)) - 1
        if others < self.least_partners:
            raise Refused(
                f"secure sums that may hold no more than {others} other sites, and this site's policy is "
                f"{self.least_partners} at least (least_partners): a larger cohort or threshold"
            )

    def _check_names(self, recipe: Recipe) -> None:
        """A recipe names methods, functions and networks as `module:name`; only what is listed is ever imported, and no
        file by its path."""
        allowed = ("fedloom.methods", "fedloom.training", *self.modules)
        for text in (recipe.method, *map(str, recipe.set.values()), *own_networks(recipe)):
            for module in re.findall(r"([^\s,=]+?)\s*:\s*[^\W\d]", text):
                if module.endswith(".py") or not any(module == m or module.startswith(m + ".") for m in allowed):
                    raise Refused(
                        f"the recipe names {text!r}, code outside of Fedloom; a site runs it only if its policy lists "
                        f"the package: modules = [{module.partition('.')[0]!r}]"
                    )
