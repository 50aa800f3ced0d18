"""A method is a frozen record of hyperparameters with a client program and a server loop you can read."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from torch import Tensor, nn

from .card import Card
from .checked import Checked
from .errors import ConfigError, unknown
from .named import own
from .written import record

if TYPE_CHECKING:
    from .client import Client
    from .clients import Clients
    from .replies import Evaluation


@dataclass_transform(frozen_default=True)
class State:
    """What lasts between rounds: subclass it as a frozen dataclass of tensors, numbers, lists and dicts by client id.

    A state goes into `round` and a new one comes out; `dataclasses.replace` keeps what did not change. No tensor of a
    state is changed in place: jobs under way and older versions share it (the run checks).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        record(cls)


M = TypeVar("M", bound="type[Method]")


class Method(Checked):
    """Base of every method. Subclass it as `@register @dataclass(frozen=True)`; the fields are the hyperparameters.

    A client program is an `async def program(self, client, **payload) -> Message | None`: ordinary Python for ONE
    client whose heavy work is awaited. `round` is the server: sample, ask, combine, return a new state.
    """

    card: ClassVar[Card]
    such: ClassVar[str] = "fl.FedAvg(cohort=10)"

    @classmethod
    def spelled(cls) -> str:
        """What an option that takes a method is called."""
        return "the name of a method"

    def module(self, net: nn.Module) -> nn.Module:
        """What is trained: by default the network itself; a `ModuleDict` names parts that are trained together."""
        return net

    def start(self, clients: Clients, before: Any = None) -> Any:
        """The state before round 1. `before` is an earlier run's state, for methods that start from one."""
        raise NotImplementedError

    def round(self, state: Any, clients: Clients) -> Any:
        """One server step."""
        raise NotImplementedError

    def finish(self, state: Any, clients: Clients) -> Any:
        """Once, after the last round."""
        return state

    def down(self, state: Any, id: int) -> dict[str, Any]:
        """What client `id` would be sent now; personal evaluation sends it too."""
        params = getattr(state, "params", None)
        return {} if params is None else {"params": params}

    async def personalise(self, client: Client, *args: Any, **down: Any) -> Any:
        """This client's own answer: a vector, or a function of a model's inputs. What it writes is dropped."""
        return down["params"]

    async def around(self, client: Client, honest: Callable[..., Any], /, **payload: Any) -> Any:
        """How a client runs a program of a method inside this one: by default `honest(client, **payload)` and no more.

        A method that wraps others (`inner: Method`) may look at the payload, the work and the reply here.
        """
        return await honest(client, **payload)

    def enclosing(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """A program of a method inside, within this method's `around`."""
        if type(self).around is Method.around:
            return program

        def within(client: Client, **payload: Any) -> Any:
            return self.around(client, program, **payload)

        return within

    def evaluate(self, state: Any, clients: Clients) -> Mapping[str, Evaluation]:
        """Views of the result: "global" if the state has `params`, "personal" if clients answer for themselves."""
        views: dict[str, Evaluation] = {}
        params = getattr(state, "params", None)
        if isinstance(params, Tensor):
            views["global"] = clients.evaluate(params)
        if type(self).personalise is not Method.personalise:
            views["personal"] = clients.evaluate(self.personalise, each={i: self.down(state, i) for i in clients.panel})
        return views

    def sizes(self, clients: Clients) -> dict[str, float]:
        """Names the card's byte expressions may use besides `d`."""
        return {}


# ---------------------------------------------------------------- the catalogue

_METHODS: dict[str, type[Method]] = {}


def register(cls: M) -> M:
    """Enter a method in the catalogue under its card's id.

    Raises:
        ConfigError: no card, not a frozen dataclass, or an id already taken by another class.
    """
    if not isinstance(getattr(cls, "card", None), Card):
        raise ConfigError(f"{cls.__name__} has no card: class attribute `card = Card(id=..., ...)`")
    if not is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009 (the stubs lack it)
        raise ConfigError(f"{cls.__name__} must be a frozen dataclass: @register above @dataclass(frozen=True)")
    taken = _METHODS.get(cls.card.id)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            f"the id {cls.card.id!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another id"
        )
    _METHODS[cls.card.id] = cls
    return cls


def catalogue() -> dict[str, type[Method]]:
    """All methods by id, found by scanning `fedloom.methods`."""
    package = importlib.import_module("fedloom.methods")

    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
    return dict(sorted(_METHODS.items()))


def method_named(name: str) -> type[Method]:
    """A method by its id, or by `module:Class` or `file.py:Class` for one of your own.

    Raises:
        ConfigError: unknown, with the nearest names.
    """
    if ":" in str(name):
        try:
            found = own(name, "method")
        except ConfigError as e:
            module = name.partition(":")[0]
            if isinstance(e.__cause__, ModuleNotFoundError) and module in catalogue():
                raise ConfigError(
                    f"settings of {module} are written name=value: {module}:cohort=5; given {name!r}"
                ) from None
            raise
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ConfigError(f"{name!r} is not a subclass of fedloom.Method")
        if not isinstance(getattr(found, "card", None), Card) or not is_dataclass(found):
            raise ConfigError(f"{name!r} needs a class attribute card = Card(id=..., ...) and @dataclass(frozen=True)")
        return found
    known = catalogue()
    if name not in known:
        more = "`fedloom methods` lists them all. One of your own is named as file.py:Class, or mypackage.module:Class."
        raise unknown("method", name, known, more)
    return known[name]
