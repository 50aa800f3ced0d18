"""Federations: `federation` says what one is, the other modules are its constructors, by what they start from."""

from __future__ import annotations

from .federation import Federation

__all__ = ["Federation"]
