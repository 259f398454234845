"""How much is trained for the evidence: two sizes, by their numbers. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvidenceSize:
    """How much is trained, and on which recipe.

    Attributes:
        recipe: of the pre-trainings.
        changes: ``SECTION.FIELD=VALUE`` of each pre-training, besides the recipe.
        steps: optimiser steps of each pre-training, rounded to whole epochs.
        seeds: pre-trainings of the headline row (both heads) on each split, with seeds from 0; also untrained networks.
        single_seeds: the same with one head only.
        auxiliary_recipe: of the supervised trainings.
        auxiliary_changes: likewise.
        auxiliary_steps: of each supervised training.
        auxiliary_seeds: pairs of supervised trainings on each split; 0 leaves the auxiliary task out.
        clips: clips a video where networks are tested.
    """

    recipe: str
    changes: tuple[str, ...] = ()
    steps: int
    seeds: int
    single_seeds: int
    auxiliary_recipe: str
    auxiliary_changes: tuple[str, ...] = ()
    auxiliary_steps: int
    auxiliary_seeds: int
    clips: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "single_seeds", "auxiliary_steps", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.auxiliary_seeds < 0:
            raise ValueError(f"auxiliary_seeds: {self.auxiliary_seeds} is negative")
        if self.single_seeds > self.seeds:
            raise ValueError(
                f"single_seeds: {self.single_seeds} is more than seeds = {self.seeds}; a network with one head is "
                "compared with those that have both"
            )


_ON_A_GPU = ("data.workers=8", "run.precision=bf16", "run.checkpoint_epochs=50")

SIZES: Mapping[str, EvidenceSize] = {
    # About 90 minutes on two cores, two pre-trainings at a time; eval/README.md has what was measured.
    "small": EvidenceSize(
        recipe="gestures",
        steps=400,
        seeds=3,
        single_seeds=1,
        auxiliary_recipe="finetune-gestures",
        auxiliary_steps=500,
        auxiliary_seeds=1,
    ),
    # For a GPU: the paper's network and batch at 112 pixels, a stride for short clips; each row three times.
    "full": EvidenceSize(
        recipe="ucf101",
        changes=("sampling.stride=2", "data.samples_per_video=4", *_ON_A_GPU),
        steps=4000,
        seeds=3,
        single_seeds=3,
        auxiliary_recipe="finetune-gestures",
        auxiliary_changes=(
            "model.backbone=r2plus1d_26",
            "model.width=64",
            "model.encoder_width=64",
            "model.crop_size=112",
            "model.embedding_dim=512",
            "model.head_hidden=2048",
            "model.predictor_width=512",
            "model.predictor_heads=8",
            "model.predictor_ff=512",
            "model.encoder_layers=2",
            "model.decoder_layers=4",
            *_ON_A_GPU,
        ),
        auxiliary_steps=4000,
        auxiliary_seeds=3,
    ),
}
