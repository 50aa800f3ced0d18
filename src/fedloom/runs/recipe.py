"""A run by names: everything `fedloom run` is told, complete enough to repeat it, as TOML and as objects.

Recipe(method="fedprox", data="digits", clients=20, set={"mu": 0.1}).experiment(out=Path("runs/a")).run()
Recipe.from_toml(Path("runs/a/config.toml")) == the recipe of that run
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedloom.engines.team import Cluster
from fedloom.errors import ConfigError, unknown
from fedloom.method import Method, method_named

from .options import Scalar, configure, listing, written

if TYPE_CHECKING:
    import torch

    from fedloom.channel.stage import Stage
    from fedloom.data.federation import Federation
    from fedloom.timing.world import World

    from .experiment import Experiment


class Recipe(BaseModel):
    """One run, by names. Every field is an option of `fedloom run` and a key of `config.toml`.

    Raises:
        ConfigError: a key that does not exist, or a value of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="id of a method, or module:Class, file.py:Class")
    data: str = Field("digits", description="name of a source, or FILE.csv:target=COLUMN; `fedloom data` lists them")
    clients: int | None = Field(None, ge=1, description="how many; none: natural groups, else 100 at most")
    partition: str | None = Field(None, description="who holds what: dirichlet:0.1; none: the data's own")
    val: float = Field(0.0, ge=0, lt=1, description="share of a client's samples to choose by")
    public: float = Field(0.0, ge=0, lt=1, description="share of all samples that everybody holds")
    validation: float = Field(0.0, ge=0, lt=1, description="share of all samples that the server holds")
    limit: int | None = Field(None, ge=1, description="train samples kept, at random; none: all")
    model: str | None = Field(None, description="network, file.py:Net, or several in turn: cnn+mlp:32")
    buffers: str | None = Field(None, description="running statistics: vector, batch or frozen")
    rounds: int = Field(50, ge=1)
    cohort: int | None = Field(None, ge=1, description="clients a round; none: the method's own")
    seed: int = 0
    engine: str = "auto"
    workers: int | None = Field(None, ge=1, description="processes of the engine pool; none: one a core")
    address: str | None = Field(None, description="of a Ray cluster, for engine ray; none: one on this machine")
    worker_cpus: float = Field(1.0, ge=0, description="CPUs of one worker of engine ray")
    worker_gpus: float = Field(0.0, ge=0, description="GPUs of one worker of engine ray, e.g. 0.5")
    device: str = "cpu"
    dtype: str = "float32"
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations")
    on_failure: str = Field("raise", description="clients that fail: raise or exclude")
    per_client: bool = Field(False, description="log every client's figures in every round")
    channel: tuple[str, ...] = Field((), description="stages in order, e.g. topk:0.05")
    set: dict[str, Scalar] = Field({}, description="hyperparameters by dotted name")
    devices: str | None = Field(None, description="ai-benchmark, tiers:0.2,0.5,0.3, lognormal:0.5; none: all alike")
    network: str | None = Field(None, description="ethernet, wifi, 4g, 5g; none: messages take no time")
    availability: str | None = Field(None, description="markov:0.9,0.5, diurnal, trace:FILE, ...; none: always")
    deadline: float | None = Field(None, gt=0, description="seconds after which a reply is late")
    over: float | None = Field(None, ge=1, description="clients asked for each reply that is waited for")
    world: dict[str, Scalar] = Field({}, description="the rest of the world, e.g. spread=0.5")

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as e:
            raise _explained(e, type(self)) from None

    @field_validator("set", "world", mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """Tables in tables are dotted names: `[set.solver] lr = 1` is `"solver.lr" = 1`; lists are `a,b`."""
        return _flatten(given) if isinstance(given, Mapping) else given

    # -- as text

    @classmethod
    def from_toml(cls, source: str | Path) -> Self:
        """A recipe from TOML text, or from a file; the table a finished run adds (`[run]`) is not part of it.

        Raises:
            ConfigError: not a file, not TOML, or not a recipe; the message says where.
        """
        where = str(source) if isinstance(source, Path) else "recipe"
        try:
            text = source.read_text() if isinstance(source, Path) else source
            given = tomllib.loads(text)
        except OSError as e:
            raise ConfigError(f"cannot read the recipe {where}: {e.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{where} is not TOML: {e}") from None
        given.pop("run", None)
        try:
            return cls(**given)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from None

    def to_toml(self) -> str:
        """TOML that `from_toml` reads back to an equal recipe; what is None is left out."""
        return tomli_w.dumps({k: v for k, v in self.model_dump().items() if v is not None})

    def complete(self) -> Self:
        """The same run with every hyperparameter of the method and the world written out, so that a later change
        of a default does not change it."""
        told: dict[str, Any] = dict.fromkeys(_WORLD)  # said once, in the table of the world
        world = written(self.world_object())
        return self.replace(cohort=None, set=written(self.method_object()), world=world, **told)

    def replace(self, **changes: Any) -> Self:
        """A recipe with some fields changed; checked like any other."""
        return type(self)(**{**self.model_dump(), **changes})

    def command(self) -> str:
        """The `fedloom run` line that repeats this run, without what is the default anyway."""
        from fedloom.timing.world import World

        words = ["fedloom", "run", self.method]
        for name, value in self.model_dump(exclude_defaults=True, exclude={"method"}).items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, dict):
                differ = changed(value, method_named(self.method) if name == "set" else World)
                own = _WORLD if name == "world" else ()
                for k, v in differ.items():
                    words += [f"--{k}", _text(v)] if k in own else [flag, f"{k}={_text(v)}"]
            elif value is True:
                words.append(flag)
            elif isinstance(value, tuple):
                words += [w for v in value for w in (flag, v)]
            elif value is not None:
                words += [flag, str(value)]
        return shlex.join(words)

    # -- as objects

    def method_object(self) -> Method:
        """The method with its hyperparameters.

        Raises:
            ConfigError: unknown method or option, a value that does not fit, `cohort` where it is no option.
        """
        cls = method_named(self.method)
        options: dict[str, Scalar] = dict(self.set)
        if self.cohort is not None:
            if "cohort" not in getattr(cls, "__dataclass_fields__", {}):
                raise ConfigError(
                    f"{self.method} has no option 'cohort', so --cohort {self.cohort} means nothing to it. "
                    f"It takes: {listing(cls) or 'no options'}"
                )
            if str(options.get("cohort", self.cohort)) != str(self.cohort):
                raise ConfigError(f"given both --cohort {self.cohort} and --set cohort={options['cohort']}")
            options["cohort"] = self.cohort
        return configure(cls, options, self.method)

    def world_object(self) -> World:
        """Devices, links, presence, and how long the server waits."""
        from fedloom.timing.world import World

        named = {name: value for name in _WORLD if (value := getattr(self, name)) is not None}
        for name, value in named.items():
            if str(self.world.get(name, value)) != str(value):
                raise ConfigError(f"given both --{name} {value} and --world {name}={self.world[name]}")
        return configure(World, {**self.world, **named}, "world")

    def numbers(self) -> torch.dtype:
        """The type of the weights, and of samples that are not whole numbers."""
        import torch

        dtypes = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
        if self.dtype not in dtypes:
            raise unknown("dtype", self.dtype, dtypes)
        return dtypes[self.dtype]

    def stages(self) -> tuple[Stage, ...]:
        """The channel's stages in order."""
        from fedloom.channel.parse import parse_stage

        return tuple(stage for text in self.channel for stage in parse_stage(text))

    def federation(self) -> Federation:
        """The clients and their data."""
        from fedloom.data.sources import federate

        return federate(
            self.data,
            self.clients,
            self.partition,
            self.seed,
            public=self.public or None,
            validation=self.validation or None,
            val=self.val,
            limit=self.limit,
        )

    def experiment(self, out: Path | None = None, federation: Federation | None = None, **options: Any) -> Experiment:
        """Everything put together; `.run()` starts it. What the data decided (clients, partition, network) is written
        into the experiment's own recipe.

        Args:
            out: the run directory; None keeps the run in memory.
            federation: these clients, instead of those the recipe names; `info["task"]` says what is learned.
            **options: further arguments of `Experiment` (observers, checkpoint_seconds).
        """
        from fedloom.task import task_for

        from .experiment import Experiment

        method, stages = self.method_object(), self.stages()  # refused before any data is read
        dtype = self.numbers()
        cluster = Cluster(self.address, self.worker_cpus, self.worker_gpus)
        federation = federation or self.federation().to("cpu", dtype)
        model = network_for(federation) if self.model is None else self.model
        several = {spec: spec for spec in model.split("+")}
        return Experiment(
            method,
            task_for(federation.info["task"], model=several if len(several) > 1 else model, buffers=self.buffers),
            federation,
            rounds=self.rounds,
            seed=self.seed,
            engine=self.engine,
            workers=self.workers,
            cluster=cluster if self.engine == "ray" or cluster != Cluster() else None,
            device=self.device,
            dtype=dtype,
            channel=stages,
            world=self.world_object(),
            evaluate_every=self.evaluate_every,
            per_client=self.per_client,
            on_failure=self.on_failure,
            out=out,
            recipe=self.replace(clients=len(federation), partition=str(federation.info["partition"]), model=model),
            **options,
        )


_WORLD = ("devices", "network", "availability", "deadline", "over")
"""Fields of a world that have names of their own in a recipe."""


def network_for(federation: Federation) -> str:
    """A small network for samples of this shape, where a recipe names none."""
    x, language = federation.examples(1)["x"], federation.info.get("task") == "language"
    if not x.is_floating_point():
        return "char-transformer" if language else "text-transformer"
    if x.dim() == 4:
        return "cnn" if min(x.shape[-2:]) >= 16 else "mlp"
    return "har-cnn" if x.dim() == 3 else "mlp"


def pairs(given: list[str], flag: str = "--set") -> dict[str, Scalar]:
    """`["mu=0.1", "solver.lr=0.05"]` as a mapping.

    Raises:
        ConfigError: an entry without `=`, or a name given twice.
    """
    found: dict[str, Scalar] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            example = "spread=0.5" if flag == "--world" else "solver.lr=0.05"
            raise ConfigError(f"{flag} takes name=value, for example {flag} {example}; given {text!r}")
        if name.strip() in found:
            raise ConfigError(f"{flag} {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def _flatten(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inside = _flatten(value, f"{path}.")
        else:
            inside = {path: ",".join(map(_text, value)) if isinstance(value, list | tuple) else value}
        if twice := flat.keys() & inside:
            raise ConfigError(f"{min(twice)} is given twice, as a dotted name and in a table: leave one out")
        flat |= inside
    return flat


def changed(options: Mapping[str, Scalar], cls: type[Any]) -> dict[str, Scalar]:
    """What differs from the defaults; all of a record whose kind was changed, as its defaults are others."""
    try:
        default = written(configure(cls, {}))
    except ConfigError:  # some fields are required
        return dict(options)
    found: dict[str, Scalar] = {}
    for name, value in options.items():
        parents = [name[:i] for i, c in enumerate(name) if c == "."]
        if str(default.get(name)) != str(value) or any(parent in found for parent in parents):
            found[name] = value
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explained(error: ValidationError, recipe: type[Recipe]) -> ConfigError:
    """The first thing that is wrong, in our words."""
    first = error.errors()[0]
    if isinstance(said := first.get("ctx", {}).get("error"), ConfigError):
        return said
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return unknown("key of a recipe", name, recipe.model_fields)
    if first["type"] == "missing":
        return ConfigError(f"a recipe needs {name!r}, for example {name} = 'fedavg'")
    about = recipe.model_fields[name].description or ""
    where = ".".join(map(str, first["loc"][:2]))  # what follows is a kind it was tried as
    return ConfigError(
        f"{where}={first['input']!r} cannot be: {first['msg'][0].lower()}{first['msg'][1:]}"
        + (f" ({about})" if about else "")
    )
