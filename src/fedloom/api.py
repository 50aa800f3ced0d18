"""What `import fedloom as fl` offers: every name of `fl.`, but for methods, which are found in the catalogue."""

from __future__ import annotations

from . import data as _data
from .card import Card
from .channel import DP, Clip, GaussianNoise, Quantize, RandK, Secure, Sign, TopK
from .client import Client
from .clients import Clients
from .data import *  # noqa: F403
from .engines import Cluster
from .errors import Declined, FedloomError, FedloomWarning
from .message import At, Message, once
from .method import Method, State, catalogue, method_named, register
from .model import Model, Part
from .replies import Cohort, Evaluation, Replies, Reply
from .runs import Comparison, Experiment, Recipe, Run, compare, resume, run
from .task import Classification, Metric, NextToken, Regression, Task
from .timing.clock import WallClock
from .timing.devices import Device
from .timing.world import World
from .training import SGD, Adam, Solver
from .transcription import Transcription
from .vector import Layout

__all__ = [
    "DP",
    "SGD",
    "Adam",
    "At",
    "Card",
    "Classification",
    "Client",
    "Clients",
    "Clip",
    "Cluster",
    "Cohort",
    "Comparison",
    "Declined",
    "Device",
    "Evaluation",
    "Experiment",
    "FedloomError",
    "FedloomWarning",
    "GaussianNoise",
    "Layout",
    "Message",
    "Method",
    "Metric",
    "Model",
    "NextToken",
    "Part",
    "Quantize",
    "RandK",
    "Recipe",
    "Regression",
    "Replies",
    "Reply",
    "Run",
    "Secure",
    "Sign",
    "Solver",
    "State",
    "Task",
    "TopK",
    "Transcription",
    "WallClock",
    "World",
    "catalogue",
    "compare",
    "method_named",
    "once",
    "register",
    "resume",
    "run",
]  # fmt: skip
__all__ += _data.__all__
