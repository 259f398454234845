"""How long the runs of a comparison will still take, told by those that it has made."""

from __future__ import annotations

import time


class RunClock:
    """Counts the runs that have to be made, one after the other, and the time since the first was begun.

    Args:
        runs: how many have to be made; those that are there already are not counted.
    """

    def __init__(self, runs: int) -> None:
        self._runs, self._made = runs, 0
        self._start = time.monotonic()

    def made(self) -> None:
        """One more is done."""
        self._made += 1

    def words(self) -> str:
        """``, about 12 min left``; empty as long as no run is done, since nothing is known then."""
        if not self._made:
            return ""
        seconds = (time.monotonic() - self._start) / self._made * (self._runs - self._made)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
