"""Clients out of the groups that come with the data: speakers, subjects, hospitals, domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.data.fields import Data
from fedloom.errors import ConfigError, DataError

from .base import Partition, integer_key


@dataclass(frozen=True)
class Natural(Partition):
    """Groups stay whole: a speaker, subject, hospital or shop is a client.

    With fewer clients than groups each client gets several whole groups; more clients than groups is refused
    (use `Domains`, which shares a group among clients).

    Args:
        by: the integer field that names the group; default: the groups given with the data.
    """

    by: str = "group"

    spec = "natural"

    def natural(self, data: Data) -> int | None:
        return len(np.unique(integer_key(data, self.by)))

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        names, group = np.unique(integer_key(data, self.by), return_inverse=True)
        if clients > len(names):
            raise ConfigError(
                f"natural clients are whole groups, and the data has {len(names)} of them; given {clients} "
                f"clients. Use clients={len(names)}, or Domains() to share each group among several clients"
            )
        if clients == len(names):
            return group
        return rng.permutation(np.arange(len(names)) % clients)[group]


@dataclass(frozen=True)
class Domains(Partition):
    """One domain per client: client i belongs to domain i % D, whose samples its clients share equally."""

    by: str = "group"

    spec = "domains"

    def natural(self, data: Data) -> int | None:
        return len(np.unique(integer_key(data, self.by)))

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        names, group = np.unique(integer_key(data, self.by), return_inverse=True)
        if clients < len(names):
            raise ConfigError(
                f"one domain per client needs a client for each of {len(names)} domains; given {clients} "
                f"clients. Use Natural() to give a client several domains"
            )
        owner = np.empty(len(group), dtype=np.int64)
        for domain in range(len(names)):
            rows, holders = np.flatnonzero(group == domain), np.arange(domain, clients, len(names))
            if len(rows) < len(holders):
                raise DataError(
                    f"domain {names[domain]} has {len(rows)} samples for {len(holders)} clients; use fewer clients"
                )
            owner[rng.permutation(rows)] = holders[np.arange(len(rows)) % len(holders)]
        return owner
