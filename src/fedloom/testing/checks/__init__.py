"""The contract, as small named checks. Each takes a `Trial` and raises `ContractBroken` with what it saw.

A check is asked of every method whose card it is `when` for; there are no special cases by name.
"""

from __future__ import annotations

# isort: off
# a module enters its checks when it is imported; in this order they are asked
from . import card as card
from . import results as results
from . import repeatable as repeatable
from . import traffic as traffic
from . import edges as edges
from . import reductions as reductions

# isort: on
from .suite import Check, ContractBroken, checks, names

__all__ = ["Check", "ContractBroken", "checks", "names"]
