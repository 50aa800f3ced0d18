"""How samples become clients: every partition is a frozen record with one call, `partition(data, clients, rng)`.

The call returns an int64 tensor `(n,)`: the client of each sample. It is complete (every sample has a client), disjoint
(one client each) and a function of the seed alone. A partition reads the integer key it splits by (labels `y`, `group`,
or clusters of embeddings) or nothing at all; shifts wrap another partition and also change the samples of a client.

    Dirichlet(0.1)(data, clients=100, rng=0)
    parse_partition("rotation:270,groups=4/dirichlet:0.3")
        == FeatureShift("rotation", 270, groups=4, base=Dirichlet(0.3))
"""

from __future__ import annotations

from .base import Partition, integer_key, numbers
from .dirichlet import Dirichlet, EmbeddingDirichlet, Quantity, dirichlet_split, embed
from .equal import IID, Shards
from .groups import Domains, Natural
from .shifts import ConceptShift, FeatureShift, rotate
from .text import PARTITIONS, parse_partition

__all__ = [
    "IID",
    "PARTITIONS",
    "ConceptShift",
    "Dirichlet",
    "Domains",
    "EmbeddingDirichlet",
    "FeatureShift",
    "Natural",
    "Partition",
    "Quantity",
    "Shards",
    "dirichlet_split",
    "embed",
    "integer_key",
    "numbers",
    "parse_partition",
    "rotate",
]
