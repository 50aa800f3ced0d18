"""Bytes on the wire, exactly, as they add up over a run."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from fedloom.written import record


@record
@dataclass
class Ledger:
    """Payload bytes so far, all clients together.

    Attributes:
        up: from clients to the server, after compression.
        down: from the server to clients.
        peers: between clients.
    """

    up: int = 0
    down: int = 0
    peers: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.up + self.down + self.peers

    def since(self, earlier: Ledger) -> Ledger:
        """What was sent after `earlier` was copied: the bytes of a round."""
        return Ledger(*(now - then for now, then in zip(astuple(self), astuple(earlier))))

    def copy(self) -> Ledger:
        """A snapshot."""
        return Ledger(self.up, self.down, self.peers)
