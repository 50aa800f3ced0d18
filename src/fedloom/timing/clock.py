"""What time it is: virtual seconds that jump from event to event, or a wall clock that waits for them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fedloom.errors import ConfigError


@dataclass
class Clock:
    """The virtual clock.

    Attributes:
        now: seconds since the run began.
    """

    now: float = 0.0

    def reach(self, due: float) -> float:
        """Go on to a time, never back; what time it is then."""
        if due > self.now:
            self.now = due
        return self.now

    def set(self, now: float) -> None:
        """It is that time: of a run that goes on, or of a group of clients whose time runs beside that of others."""
        self.now = now


@dataclass
class WallClock(Clock):
    """The same events at their own pace: the clock waits until an event is due (a demonstration, a test of what runs
    beside it). Work that takes longer than it should makes the events after it late, as it would anywhere.

    Args:
        speed: virtual seconds per second, > 0.

    Raises:
        ConfigError: the clock would stand still, or run backwards.
    """

    speed: float = 1.0

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ConfigError(
                f"WallClock(speed={self.speed}) cannot be: virtual seconds per second, > 0, as in speed=60"
            )
        self.set(self.now)

    def set(self, now: float) -> None:
        super().set(now)
        self._began = time.monotonic() - now / self.speed

    def reach(self, due: float) -> float:
        elapsed = (time.monotonic() - self._began) * self.speed
        if due > elapsed:
            time.sleep((due - elapsed) / self.speed)
        return super().reach(max(due, elapsed))
