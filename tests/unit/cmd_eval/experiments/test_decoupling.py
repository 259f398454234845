from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from cmd_eval.data.table import VideoTable
from cmd_eval.experiments.decoupling import DecouplingSpec, decoupling_table, measure_decoupling, over_videos
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import mean_interval
from cmd_eval.results.schema import Provenance
from cmd_train.config import build_config

VIDEOS = 90
LABELS = [f"m{n % 3}" for n in range(VIDEOS)]
SCENES = [f"s{n // 15}" for n in range(VIDEOS)]


def features(mean_VF: NDArray[np.floating]) -> Features:
    videos = VideoTable(
        ids=tuple(f"v{n}" for n in range(VIDEOS)),
        labels=tuple(LABELS),
        groups=tuple(SCENES),
        fingerprints=tuple(map(str, range(VIDEOS))),
        splits={
            "split1": tuple("test" if scene in ("s0", "s1") else "train" for scene in SCENES),
            "split2": tuple("test" if scene in ("s1", "s2") else "train" for scene in SCENES),
        },
        frame_counts=tuple(9 for _ in range(VIDEOS)),
    )
    source = Provenance(command="test", shards="shards", data_hash="d", features="backbone, pooled", seed=5)
    return Features(videos=videos, mean_VF=mean_VF.astype(np.float32), provenance=source)


def one_hot(names: list[str], seed: int) -> NDArray[np.floating]:
    number = np.unique(names, return_inverse=True)[1]
    return np.eye(6)[number] + 0.05 * np.random.default_rng(seed).standard_normal((VIDEOS, 6))


def test_the_table_separates_motion_and_context() -> None:
    networks = {"motion head only": features(one_hot(LABELS, 0)), "context head only": features(one_hot(SCENES, 1))}
    record = measure_decoupling(networks, DecouplingSpec(split_columns=("split1", "split2")), "cmd-eval decoupling")
    motion, context = record["rows"]
    for measure in ("retrieval", "probe"):
        assert motion["by_label"][measure]["value"] == 1.0
        assert context["by_label"][measure]["value"] < 0.6
        assert motion["by_context"][measure]["value"] < 0.5
        assert context["by_context"][measure]["value"] == 1.0
        assert record["chance"]["by_label"][measure] == pytest.approx(1 / 3)
    assert record["chance"]["by_context"]["retrieval"] == pytest.approx(14 / 89)
    assert record["chance"]["by_context"]["probe"] == pytest.approx(1 / 6)
    # 15 of the 45 videos are in both test parts.
    assert record["videos"] == {"by_label": 45, "by_context": 90}
    assert record["provenance"]["seed"] == 0
    assert "motion head only" in decoupling_table(record)


def test_videos_that_are_alone_in_their_group_are_left_out_by_context() -> None:
    plain = features(one_hot(SCENES, 1))
    lonely = tuple(f"alone{n}" if n % 15 >= 10 else scene for n, scene in enumerate(SCENES))
    with_lonely = replace(plain, videos=replace(plain.videos, groups=lonely))
    shared = np.array([n % 15 < 10 for n in range(VIDEOS)])
    without = replace(
        plain,
        videos=replace(plain.videos, groups=tuple(s if k else "" for s, k in zip(SCENES, shared, strict=True))),
    )
    spec = DecouplingSpec(split_columns=("split1",))
    record, expected = (measure_decoupling({"both heads": f}, spec, "x") for f in (with_lonely, without))
    assert record["videos"]["by_context"] == expected["videos"]["by_context"] == 60
    assert record["rows"][0]["by_context"] == expected["rows"][0]["by_context"]
    assert record["rows"][0]["by_context"]["probe"]["value"] == 1.0, "videos alone in their group would always be wrong"
    assert record["chance"]["by_context"] == expected["chance"]["by_context"]
    assert record["chance"]["by_context"]["retrieval"] == pytest.approx(9 / 59)
    assert "by context: left out 30 videos that are alone in their group" in record["notes"]
    assert any("30 videos without a group were left out" in note for note in expected["notes"])
    alone = replace(plain, videos=replace(plain.videos, groups=tuple(map(str, range(VIDEOS)))))
    with pytest.raises(ValueError, match="group: no two videos from different files share a group"):
        measure_decoupling({"both heads": alone}, spec, "x")


def test_segments_of_one_file_are_neither_neighbors_nor_on_both_sides_of_the_probe() -> None:
    files = tuple(str(n // 5) for n in range(VIDEOS))  # three files of each scene
    files = tuple("one" if scene == "s5" else file for scene, file in zip(SCENES, files, strict=True))
    number = np.unique(files, return_inverse=True)[1]
    segmented = features(np.eye(16)[number] + 0.05 * np.random.default_rng(1).standard_normal((VIDEOS, 16)))
    ids = tuple(f"{file}#{n:04}" for n, file in enumerate(files))
    segmented = replace(segmented, videos=replace(segmented.videos, ids=ids, fingerprints=files))
    record = measure_decoupling({"both heads": segmented}, DecouplingSpec(split_columns=("split1",)), "x")
    notes = record["notes"]
    assert record["videos"]["by_context"] == 75, "the scene with a single file is left out"
    assert any("left out 15 videos that are alone in their group but their file's segments" in n for n in notes)
    values = record["rows"][0]["by_context"]
    assert values["probe"]["value"] < 0.5, "features of files do not reveal the scene of another file"


def test_notes_cover_label_and_context() -> None:
    settings = build_config("demo", {"data.split_column": "split1"}).as_dict()
    plain = features(one_hot(SCENES, 1))
    trained = replace(plain, provenance=replace(plain.provenance, settings=settings, trained_on="d"))
    notes = measure_decoupling({"both heads": trained}, DecouplingSpec(split_columns=("split1",)), "x")["notes"]
    assert "both heads: warning: leave-one-out: the checkpoint was trained on 60 of the 90 queries" in notes
    assert not any("split1" in note for note in notes)


def test_the_probe_by_context_is_cross_validated() -> None:
    mean = np.random.default_rng(2).standard_normal((VIDEOS, 5)) + 0.6 * one_hot(SCENES, 3)[:, :5]
    record = measure_decoupling({"both heads": features(mean)}, DecouplingSpec(split_columns=("split1",)), "x")
    stored = features(mean).mean_VF.astype(float)
    names = np.array(SCENES)
    right = 0
    for kept, left_out in StratifiedKFold(5, shuffle=True, random_state=0).split(stored, names):
        scaler = StandardScaler().fit(stored[kept])

        def hits(rows: NDArray[np.int64], fitted: NDArray[np.int64], c: float, by: StandardScaler) -> int:
            model = LogisticRegression(C=c, max_iter=2000).fit(by.transform(stored[fitted]), names[fitted])
            return int((model.predict(by.transform(stored[rows])) == names[rows]).sum())

        inner = list(StratifiedKFold(5, shuffle=True, random_state=0).split(stored[kept], names[kept]))
        validated = {
            c: sum(
                hits(kept[held_out], kept[fitted], c, StandardScaler().fit(stored[kept[fitted]]))
                for fitted, held_out in inner
            )
            for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
        }
        best = max(validated, key=lambda c: validated[c])
        right += hits(left_out, kept, best, scaler)
    assert record["rows"][0]["by_context"]["probe"]["value"] == pytest.approx(right / VIDEOS)


def test_a_video_tested_twice_counts_once() -> None:
    hits = {0: [1.0, 0.0], 1: [1.0], 2: [0.0], 3: [1.0, 1.0]}
    found = over_videos(hits, ["g", "g", "h", ""])
    assert found.value == pytest.approx(2.5 / 4)
    assert found == mean_interval(np.array([0.5, 1.0, 0.0, 1.0]), ["g", "g", "h", ""])


def test_repeated_split_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="split_columns"):
        DecouplingSpec(split_columns=("split1", "split1"))
