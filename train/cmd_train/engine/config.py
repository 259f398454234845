"""How a training run goes: precision, speed, what is saved, what is shown."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("float32", "tf32", "bf16")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run goes.

    Attributes:
        seed: decides weights, order, samples, augmentation and dropout.
        precision: ``float32``; ``tf32``, the same with shorter products on CUDA; ``bf16``, automatic mixed precision.
        compile: whether ``torch.compile`` makes the network faster; where it fails, training goes on without.
        channels_last: whether weights and clips lie with their channels last in memory.
        activation_checkpointing: whether blocks compute their inner activations a second time instead of keeping them:
            less memory, about a third more work, the same numbers.
        log_seconds: about how often a line is printed.
        checkpoint_epochs: epochs between checkpoints.
        checkpoint_minutes: minutes after which one more is made between those; 0 = none is.
        keep_checkpoints: newest checkpoints that stay; the best one stays as well.
        milestone_epochs: every so many epochs one that stays for good; 0 = none does.
        tensorboard: whether metrics are also written for TensorBoard.
        batch_picture: whether the first batch is drawn to ``first_batch.png``.
        knn_epochs: every so many epochs each video looks for its label among the others; 0 = never. Labels are read
            for this only.
    """

    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    activation_checkpointing: bool = False
    log_seconds: float = 10.0
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 30.0
    keep_checkpoints: int = 2
    milestone_epochs: int = 0
    tensorboard: bool = True
    batch_picture: bool = True
    knn_epochs: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, f"seed: {self.seed} is not between 0 and 2**31 - 1")
        _require(self.precision in PRECISIONS, f"precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        for name in ("checkpoint_epochs", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)} is not at least 1")
        for name in ("log_seconds", "checkpoint_minutes", "milestone_epochs", "knn_epochs"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        _require(
            not (self.compile and self.activation_checkpointing),
            "activation_checkpointing: not allowed with compile, which decides itself what to compute twice",
        )
