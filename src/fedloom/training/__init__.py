"""Local training: solvers, the plain loop, many clients as one computation, and the choice between them."""

from .request import Schedule, Trained, Training
from .solvers import SGD, Adam, Solver
from .trainer import Trainer

__all__ = ["SGD", "Adam", "Schedule", "Solver", "Trained", "Trainer", "Training"]
