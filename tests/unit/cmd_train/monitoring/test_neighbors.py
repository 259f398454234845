from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cmd_train.monitoring.neighbors import leave_one_out_recall, nearest


def test_nearest_matches_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmd_train.monitoring.neighbors._QUERY_BLOCK", 7)
    monkeypatch.setattr("cmd_train.monitoring.neighbors._GALLERY_BLOCK", 13)
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(20, 5, generator=generator), torch.randn(50, 5, generator=generator)
    similarity, rows = nearest(query, gallery, 9)
    full = nn.functional.cosine_similarity(query[:, None], gallery[None], dim=2)
    expected = full.sort(dim=1, descending=True)
    torch.testing.assert_close(similarity, expected.values[:, :9])
    assert torch.equal(rows, expected.indices[:, :9])


def test_nearest_orders_ties_by_row_and_checks_arguments() -> None:
    gallery = torch.ones(6, 2)
    assert nearest(torch.ones(1, 2), gallery, 6)[1].tolist() == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match=r"count: must be between 1 and 6 .* got 7"):
        nearest(torch.ones(1, 2), gallery, 7)
    with pytest.raises(ValueError, match="3 features"):
        nearest(torch.ones(1, 2), torch.ones(6, 3), 1)


def test_recall_matches_a_direct_computation() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6)).astype(np.float32)
    features[7] = features[3]  # a copy must not be mistaken for the row itself
    labels = [str(n) for n in random.integers(0, 5, 40)]
    labels[11], labels[20] = "", "alone"
    found = leave_one_out_recall(torch.from_numpy(features), labels, (1, 5, 100))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kept = [row for row in range(40) if labels[row]]
    for k in (1, 5, 100):
        hits = []
        for row in kept:
            if labels.count(labels[row]) > 1:
                others = sorted((o for o in kept if o != row), key=lambda o: -float(unit[row] @ unit[o]))
                hits.append(any(labels[o] == labels[row] for o in others[:k]))
        assert found[k] == pytest.approx(np.mean(hits))
    assert found[100] == 1.0
    with pytest.raises(ValueError, match="share a label"):
        leave_one_out_recall(torch.ones(3, 2), ["a", "b", ""], (1,))
    with pytest.raises(ValueError, match="got 2 for 3 rows"):
        leave_one_out_recall(torch.ones(3, 2), ["a", "b"], (1,))
