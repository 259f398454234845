"""Evaluation splits: which videos are queries (test videos), and which are the gallery (training videos)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.leakage import check_leakage, check_no_copies, first_of_copies, group_notes, without_copies
from cmd_eval.data.table import EXCLUSIONS, TARGETS, VideoTable
from cmd_eval.results.schema import LEAVE_ONE_OUT, part_suffixes
from cmd_train.data.selection import resolve_split_columns

ALL_VIDEOS = "use all videos with --leave-one-out"
SEVERAL_COLUMNS = "repeat it to use several"
EACH_COLUMN = "run the command once for each"
"""Alternatives to one split column, depending on the options of a command."""


@dataclass(frozen=True, kw_only=True)
class EvalSplitSpec:
    """Selection of the splits to evaluate.

    Attributes:
        split_columns: split columns of the manifest; empty for the only one. Ignored for leave-one-out.
        test_part: part whose videos are queries or tested.
        train_part: part whose videos are the gallery or trained on.
        targets: ``label``, ``group`` or both.
        leave_one_out: whether to compare each video with all others instead.
        seed: random seed of validation folds and confidence intervals.
        skip_copies: whether to leave out queries that are copies of gallery files, instead of rejecting the split.
        exclude_same: ``group`` or ``source``: gallery videos that share it with a query are not its neighbors. None
            excludes segments of the query's file only, for leave-one-out.
    """

    split_columns: Sequence[str] = ()
    test_part: str = "test"
    train_part: str = "train"
    targets: Sequence[str] = ("label",)
    leave_one_out: bool = False
    seed: int = 0
    skip_copies: bool = False
    exclude_same: str | None = None

    def __post_init__(self) -> None:
        for name, values in (("split_columns", self.split_columns), ("targets", self.targets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {', '.join(values)} contains duplicates")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ValueError(f"targets: {', '.join(self.targets) or 'empty'}; choose from {', '.join(TARGETS)}")
        if self.exclude_same not in (None, *EXCLUSIONS):
            raise ValueError(f"exclude_same: {self.exclude_same!r} is not one of {', '.join(EXCLUSIONS)}")
        if self.exclude_same == "group" and "group" in self.targets:
            raise ValueError(
                "exclude_same: without the videos of the query's group, retrieval by group has no hits; "
                "evaluate by label only"
            )

    @property
    def name(self) -> str:
        """Words for the name of the result file; ``split_columns`` must not be empty, unless for leave-one-out."""
        splits = [*self.split_columns, *part_suffixes(self.test_part, self.train_part)]
        without = [f"without-same-{self.exclude_same}"] if self.exclude_same else []
        return "-".join([*([LEAVE_ONE_OUT] if self.leave_one_out else splits), *self.targets, *without])


@dataclass(frozen=True, kw_only=True)
class EvalSplit:
    """Queries and gallery of retrieval, or test and training videos of a probe.

    Attributes:
        split_column: split column of the manifest, or ``leave-one-out``.
        test_part, train_part: its two parts.
        target: ``label`` or ``group``.
        query, gallery: rows of the queries (test videos) and the gallery (training videos); equal for leave-one-out.
        unlabeled: number of videos of both parts that were left out because they have no label (or group).
        copies: number of queries that were left out because they are copies of gallery files.
        exclude_same: ``group`` or ``source``: gallery videos that share it with a query are not its neighbors.
    """

    split_column: str
    test_part: str
    train_part: str
    target: str
    query: NDArray[np.int64]
    gallery: NDArray[np.int64]
    unlabeled: int
    copies: int = 0
    exclude_same: str | None = None

    @property
    def leave_one_out(self) -> bool:
        """Whether each video is compared with all others."""
        return self.split_column == LEAVE_ONE_OUT


def choose_split_columns(
    videos: VideoTable, given: Sequence[str], *, alternative: str = SEVERAL_COLUMNS
) -> tuple[str, ...]:
    """Return the given split columns, or the only one of the videos.

    Args:
        videos: the videos to evaluate.
        given: split columns chosen by the user; may be empty.
        alternative: what to do instead of choosing one column, for the error message.

    Raises:
        ValueError: a given column does not exist, or none is given and the videos do not have exactly one.
    """
    columns = resolve_split_columns(tuple(videos.splits), given, alternative=alternative)
    if not columns:
        remedy = f"{ALL_VIDEOS}, or " if alternative == ALL_VIDEOS else ""
        raise ValueError(f"the shards have no split columns; {remedy}add one to the manifest (`cmd-extract relabel`)")
    return columns


def eval_splits(videos: VideoTable, spec: EvalSplitSpec) -> list[EvalSplit]:
    """Return the splits of a spec, ordered by target and split column, after checking all of them.

    Raises:
        ValueError: a split, a part or a label does not exist, or a query is in the gallery.
    """
    if spec.exclude_same == "group" and not any(videos.groups):
        raise ValueError("exclude_same: no video has a group; add a group column to the manifest, or use source")
    if spec.leave_one_out:
        return [
            leave_one_out_split(videos, target, skip_copies=spec.skip_copies, exclude_same=spec.exclude_same)
            for target in spec.targets
        ]
    columns = choose_split_columns(videos, spec.split_columns)
    return [
        replace(
            part_split(videos, column, spec.test_part, spec.train_part, target, skip_copies=spec.skip_copies),
            exclude_same=spec.exclude_same,
        )
        for target in spec.targets
        for column in columns
    ]


def part_split(
    videos: VideoTable, split_column: str, test_part: str, train_part: str, target: str, *, skip_copies: bool = False
) -> EvalSplit:
    """Return the labeled videos of two parts of a split, after checking that no video or file is in both.

    Raises:
        ValueError: the split or a part does not exist, no video has a label, or a video or its file is in both parts.
    """
    test, train = videos.part(split_column, test_part), videos.part(split_column, train_part)
    query = videos.labeled(test, target, f"part {test_part!r} of {split_column}")
    gallery = videos.labeled(train, target, f"part {train_part!r} of {split_column}")
    kept = without_copies(videos, query, gallery) if skip_copies else query
    check_leakage(videos, kept, gallery)
    return EvalSplit(
        split_column=split_column,
        test_part=test_part,
        train_part=train_part,
        target=target,
        query=kept,
        gallery=gallery,
        unlabeled=len(test) + len(train) - len(query) - len(gallery),
        copies=len(query) - len(kept),
    )


def leave_one_out_split(
    videos: VideoTable,
    target: str,
    *,
    skip_copies: bool = False,
    exclude_same: str | None = None,
    rows: NDArray[np.int64] | None = None,
) -> EvalSplit:
    """Return the split in which each labeled video is compared with all others, after checking for duplicate files.

    ``rows`` restricts it to these videos. Segments of the query's file are never its neighbors.

    Raises:
        ValueError: no video has a label, or two videos come from the same file.
    """
    candidates = np.arange(len(videos)) if rows is None else rows
    labeled = videos.labeled(candidates, target, "the shards")
    kept = first_of_copies(videos, labeled) if skip_copies else labeled
    check_no_copies(videos, kept)
    segmented = len({videos.fingerprints[row] for row in kept}) < len(kept)
    return EvalSplit(
        split_column=LEAVE_ONE_OUT,
        test_part="all",
        train_part="all others",
        target=target,
        query=kept,
        gallery=kept,
        unlabeled=len(candidates) - len(labeled),
        copies=len(labeled) - len(kept),
        exclude_same=exclude_same or ("source" if segmented else None),
    )


def gallery_counts(videos: VideoTable, split: EvalSplit) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each query how many gallery videos it is compared with, and how many of them have its class.

    A query of leave-one-out is not compared with itself, and no query with videos that ``exclude_same`` excludes.
    """
    names = videos.names(split.target)
    if split.exclude_same is None:
        of_name = Counter(names[row] for row in split.gallery)
        own = int(split.leave_one_out)
        matches = [of_name[names[row]] - own for row in split.query]
        return np.full(len(split.query), len(split.gallery) - own, np.int64), np.array(matches, np.int64)
    number_V = videos.exclusion_numbers(split.exclude_same)
    of_name = Counter(names[row] for row in split.gallery)
    of_number = Counter(number_V[split.gallery].tolist())
    of_both = Counter((names[row], int(number_V[row])) for row in split.gallery)
    sizes = [len(split.gallery) - of_number[int(number_V[row])] for row in split.query]
    matches = [of_name[names[row]] - of_both[names[row], int(number_V[row])] for row in split.query]
    return np.array(sizes, np.int64), np.array(matches, np.int64)


def split_notes(videos: VideoTable, split: EvalSplit, *, what: str = "queries") -> list[str]:
    """Return notes on videos left out, groups on both sides, and queries that cannot have a hit.

    With the group as target, and for leave-one-out, groups are on both sides by design.

    Args:
        videos: all videos.
        split: the split.
        what: plural noun for the videos of the test part: ``queries`` of retrieval, or ``test videos`` of a probe.
    """
    notes = []
    if split.unlabeled:
        notes.append(f"{split.split_column}: {split.unlabeled} videos without a {split.target} were left out")
    if split.copies:
        where = "earlier videos" if split.leave_one_out else f"files in part {split.train_part!r}"
        notes.append(f"{split.split_column}: {split.copies} {what} were left out as copies of {where}")
    if split.target == "label" and not split.leave_one_out:
        notes += group_notes(videos, split.query, split.gallery, split.split_column, what)
    names = videos.names(split.target)
    excluded = "" if split.exclude_same is None else f" outside of their {split.exclude_same}"
    if split.exclude_same:
        notes.append(
            f"{split.split_column}: gallery videos of the query's {split.exclude_same} are excluded"
            + (" (segments of one file)" if split.exclude_same == "source" else "")
        )
    alone = int((gallery_counts(videos, split)[1] == 0).sum()) if split.leave_one_out or split.exclude_same else 0
    if alone and split.leave_one_out:
        notes.append(
            f"{LEAVE_ONE_OUT}: {alone} videos share their {split.target} with no other{excluded} and are not queries"
        )
    elif alone:
        notes.append(
            f"{split.split_column}: {alone} of {len(split.query)} {what} share their {split.target} with no gallery "
            f"video{excluded} and count as wrong"
        )
    available = {names[row] for row in split.gallery}
    hopeless = sum(names[row] not in available for row in split.query)
    if hopeless:
        consequence = "count as wrong"
        if what == "queries":
            consequence = "cannot have a hit; `cmd-eval retrieval --leave-one-out` uses all videos"
        notes.append(
            f"{split.split_column}: the {split.target} of {hopeless} of {len(split.query)} {what} is not in part "
            f"{split.train_part!r}, so they {consequence}"
        )
    return notes
