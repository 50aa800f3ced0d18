"""Data: samples as named tensors, partitions that make clients of them, federations, named sources, a
report.
"""

from .federation import Federation
from .fields import IGNORE, Data
from .partitions import (
    IID,
    ConceptShift,
    Dirichlet,
    Domains,
    EmbeddingDirichlet,
    FeatureShift,
    Natural,
    Partition,
    Quantity,
    Shards,
    parse_partition,
)
from .population import Local
from .registry import Source, source
from .report import heterogeneity
from .sources import federate, load, sources

__all__ = [
    "IGNORE",
    "IID",
    "ConceptShift",
    "Data",
    "Dirichlet",
    "Domains",
    "EmbeddingDirichlet",
    "FeatureShift",
    "Federation",
    "Local",
    "Natural",
    "Partition",
    "Quantity",
    "Shards",
    "Source",
    "federate",
    "heterogeneity",
    "load",
    "parse_partition",
    "source",
    "sources",
]
