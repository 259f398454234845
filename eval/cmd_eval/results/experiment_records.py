"""Content of the result files of experiments over several training runs; see ``cmd_eval.results.records``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from cmd_eval.results.records import AtLeastOne, Count, Figure, Mean, Part, Result, Share, Target

Points = Annotated[float, Meta(ge=-1 - 1e-9, le=1 + 1e-9)]
"""A difference of shares."""


class Difference(Part, frozen=True, kw_only=True):
    """A difference of two shares with its 95 % interval."""

    value: Points
    low: Points
    high: Points
    unit: Literal["videos", "groups"] | None = None
    units: AtLeastOne | None = None


class SupervisedRun(Part, frozen=True, kw_only=True):
    """A supervised run of ``cmd-eval auxiliary``."""

    seed: int
    split_column: str
    auxiliary: Literal["none", "motion", "pretrained"]
    top1: Figure
    run_dir: str
    checkpoint_sha256: str | None


class StandardErrors(Part, frozen=True, kw_only=True):
    """Standard errors of a difference; None where there is a single run or a single video."""

    runs: float | None
    videos: float | None


class Gain(Part, frozen=True, kw_only=True):
    """Difference over pairs of runs."""

    difference: Difference
    pairs: AtLeastOne


class Auxiliary(Result, frozen=True, kw_only=True, tag="auxiliary"):
    """Result of ``cmd-eval auxiliary``."""

    recipe: str
    overrides: list[str]
    test_part: str
    runs: list[SupervisedRun]
    mean: dict[str, Mean]
    difference: Difference
    standard_errors: StandardErrors
    pairs: AtLeastOne
    pretraining: Gain | None


class Measures(Part, frozen=True, kw_only=True):
    """R@1 and probe."""

    retrieval: Figure
    probe: Figure


class ChanceOfMeasures(Part, frozen=True, kw_only=True):
    """Chance of R@1 and of the probe."""

    retrieval: Share
    probe: Share


class DecouplingRow(Part, frozen=True, kw_only=True):
    """Features in the table of ``cmd-eval decoupling``."""

    model: str
    features: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    untrained: bool
    by_label: Measures
    by_context: Measures


class Decoupling(Result, frozen=True, kw_only=True, tag="decoupling"):
    """Result of ``cmd-eval decoupling``."""

    split_columns: list[str]
    rows: list[DecouplingRow]
    chance: dict[Literal["by_label", "by_context"], ChanceOfMeasures]
    videos: dict[Literal["by_label", "by_context"], Count]


class PretrainingRun(Part, frozen=True, kw_only=True):
    """A pre-training run of ``cmd-eval evidence``; ``run_dir`` is relative to the output folder."""

    network: str
    split_column: str
    seed: int
    run_dir: str
    step: int
    sha256: str


class SplitValues(Part, frozen=True, kw_only=True):
    """Values of one split, over seeds."""

    split_column: str
    by_label: dict[str, Figure]


class SeedValues(Part, frozen=True, kw_only=True):
    """Values of one seed, over splits."""

    seed: int
    by_label: dict[str, Share]
    by_group: dict[str, Share]


class EvidenceRow(Part, frozen=True, kw_only=True):
    """Features in the table of ``cmd-eval evidence``; ``readout`` is None for descriptors."""

    model: str
    readout: str | None
    seeds: list[int]
    by_label: dict[str, Figure]
    by_group: dict[str, Figure]
    by_split: list[SplitValues]
    by_seed: list[SeedValues]


class RowComparison(Part, frozen=True, kw_only=True):
    """Paired difference of two rows, first minus second."""

    first: str
    second: str
    readout: str | None
    target: Target
    measure: str
    difference: Difference


class Speed(Part, frozen=True, kw_only=True):
    """An entry of the benchmarks."""

    name: str
    value: float
    unit: str
    versus: str | None
    machine: str


class AuxiliarySummary(Part, frozen=True, kw_only=True):
    """The auxiliary loss within ``cmd-eval evidence``."""

    difference: Difference
    mean: dict[str, Mean]
    pairs: AtLeastOne
    pretraining: Gain | None
    notes: list[str]


class Evidence(Result, frozen=True, kw_only=True, tag="evidence"):
    """Result of ``cmd-eval evidence``."""

    size: str
    plan: dict[str, Any]
    split_columns: list[str]
    runs: list[PretrainingRun]
    rows: Annotated[list[EvidenceRow], Meta(min_length=1)]
    chance: dict[Literal["by_label", "by_group"], dict[str, Share]]
    comparisons: list[RowComparison]
    videos: dict[Literal["by_label", "by_group"], Count]
    speed: list[Speed] | None
    auxiliary: AuxiliarySummary | None
