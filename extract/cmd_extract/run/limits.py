"""What one video may cost, and how many videos may fail."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost before it counts as failed. They decide nothing else of a shard.

    Attributes:
        timeout_seconds: wall time of one video from opening it to its last vector.
        max_memory_mb: memory in MiB that the extracting process may add for a video; FFmpeg may take as much beside it.
    """

    timeout_seconds: float = 3600.0
    max_memory_mb: int = 4096

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: {self.timeout_seconds} is not positive")
        if self.max_memory_mb < 64:
            raise ValueError(f"max_memory_mb: {self.max_memory_mb} is not at least 64")


def parse_failure_limit(text: str, rows: int) -> int:
    """How many videos may fail.

    Args:
        text: a count (``20``) or a share of all manifest rows (``5%``).
        rows: number of manifest rows.

    Raises:
        ValueError: ``text`` is neither.
    """
    number = text.removesuffix("%")
    try:
        value = Fraction(number)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if text.endswith("%") and 0 <= value <= 100:
        return int(value * rows / 100)
    if number == text and value >= 0 and value.denominator == 1:
        return int(value)
    raise ValueError(f"max_failures: {text!r} is neither a count such as 20 nor a share such as 5%")


def parse_stages(text: str, known: tuple[str, ...]) -> frozenset[str]:
    """Stages of failures to try again.

    Args:
        text: ``all``, or some of ``known`` separated by commas.
        known: all stages there are.

    Raises:
        ValueError: ``text`` is neither.
    """
    stages = set(known) if text == "all" else {part.strip() for part in text.split(",")}
    if not stages <= set(known):
        raise ValueError(f"retry_failures: {text!r} is neither all nor some of {','.join(known)}")
    return frozenset(stages)
