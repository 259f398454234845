import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.distributed.gather import gather_with_grad, sum_own_part
from cmd_train.losses.config import LossConfig
from cmd_train.losses.contrast import alignment, info_nce, uniformity
from cmd_train.losses.directions import DirectionTargets, direction_loss
from cmd_train.losses.outputs import ModelOutput, SupervisedOutput
from cmd_train.losses.pretrain import context_loss, motion_loss, pretrain_loss
from cmd_train.losses.supervised import supervised_loss
from tests.process_groups import two_rank_group

CONFIG = LossConfig()


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def reference_match(query: list[float], keys: list[list[float]], own: int, temperature: float) -> tuple[float, int]:
    """Return the cross-entropy of one query and the number of keys that score higher than its own."""
    scores = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys]
    return math.log(sum(math.exp(score) for score in scores)) - scores[own], sum(s > scores[own] for s in scores)


def test_info_nce_equals_a_loop():
    query, key = unit(6, 16, seed=0), unit(10, 16, seed=1)
    target = torch.tensor([3, 0, 9, 7, 5, 1])
    matches = [reference_match(query[n].tolist(), key.tolist(), own, 0.2) for n, own in enumerate(target.tolist())]
    matched = info_nce(query, key, target, temperature=0.2)
    assert matched.loss.item() == pytest.approx(np.mean([loss for loss, _ in matches]), rel=1e-5)
    assert matched.top1.item() == pytest.approx(np.mean([higher < 1 for _, higher in matches]))
    assert matched.top5.item() == pytest.approx(np.mean([higher < 5 for _, higher in matches]))
    assert 0 < matched.top5.item() < 1  # otherwise the assertion above could not fail
    assert (matched.candidates.item(), matched.queries.item()) == (10, 6)


def test_info_nce_ignores_invalid_keys_and_queries():
    query, key = unit(5, 16, seed=2), unit(8, 16, seed=3)
    target = torch.tensor([0, 1, 2, 3, 4])
    key_valid = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool()  # query 2 loses its key
    query_valid = torch.tensor([1, 0, 1, 1, 1]).bool()
    kept = [index for index in range(8) if key_valid[index]]
    keys = [key[index].tolist() for index in kept]
    expected = [reference_match(query[n].tolist(), keys, kept.index(n), 0.1)[0] for n in (0, 3, 4)]
    matched = info_nce(query, key, target, key_valid_M=key_valid, query_valid_LN=query_valid)
    assert matched.loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert (matched.candidates.item(), matched.queries.item()) == (6, 3)


def test_groups_have_candidates_of_their_own():
    query, key, target = unit(2, 3, 8, seed=8), unit(2, 7, 8, seed=9), torch.tensor([0, 4, 2])
    query_valid = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    alone = [info_nce(query[g], key[g], target, query_valid_LN=query_valid[g]) for g in range(2)]
    together = info_nce(query, key, target, query_valid_LN=query_valid)
    for name in ("loss", "top1", "top5"):
        first, second = (getattr(one, name).item() for one in alone)
        assert getattr(together, name).item() == pytest.approx((2 * first + 3 * second) / 5, rel=1e-5)
    assert (together.candidates.item(), together.queries.item()) == (7, 5)


@pytest.mark.parametrize("groups", [(), (2,)])
def test_many_logits_are_computed_in_parts(groups):
    query, key = (unit(*groups, count, 8, seed=count).requires_grad_() for count in (6, 9))
    target, key_valid = torch.tensor([3, 0, 8, 7, 5, 1]), torch.arange(9) != 5
    results = []
    for limit in (10**6, 20, 1):
        query.grad = key.grad = None
        matched = info_nce(query, key, target, key_valid_M=key_valid, max_logits=limit)
        matched.loss.backward()
        results.append((matched.loss.detach(), matched.top1, matched.top5, query.grad, key.grad))
    for parts in results[1:]:
        for one, whole in zip(parts, results[0], strict=True):
            torch.testing.assert_close(one, whole)


@pytest.mark.parametrize("key_valid", [[False] * 4, [False, False, False, True]])
def test_info_nce_without_any_valid_query_is_zero_with_zero_gradients(key_valid):
    query, key = unit(2, 8, seed=4).requires_grad_(), unit(4, 8, seed=5).requires_grad_()
    matched = info_nce(query, key, torch.tensor([0, 1]), key_valid_M=torch.tensor(key_valid))
    matched.loss.backward()
    assert matched.loss.item() == 0
    assert matched.top1.item() == 0
    assert torch.equal(query.grad, torch.zeros_like(query))
    assert torch.equal(key.grad, torch.zeros_like(key))


def test_invalid_keys_get_no_gradient():
    query, key = unit(3, 8, seed=6), unit(5, 8, seed=7).requires_grad_()
    info_nce(query, key, torch.arange(3), key_valid_M=torch.tensor([True, True, True, False, True])).loss.backward()
    assert torch.equal(key.grad[3], torch.zeros(8))
    assert key.grad[4].abs().sum() > 0


def test_collapsed_embeddings_have_zero_accuracy():
    same = torch.ones(6, 4) / 2
    matched = info_nce(same, same, torch.arange(6))
    assert matched.loss.item() == pytest.approx(math.log(6), rel=1e-5)
    assert (matched.top1.item(), matched.top5.item()) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"key_LMD": unit(3, 9, seed=0)}, "key_LMD"),
        ({"key_LMD": unit(2, 3, 8, seed=0)}, "key_LMD"),
        ({"target_N": torch.tensor([0])}, "target_N"),
        ({"key_valid_M": torch.ones(2).bool()}, "key_valid_M"),
        ({"query_valid_LN": torch.ones(3).bool()}, "query_valid_LN"),
    ],
)
def test_info_nce_rejects_invalid_arguments(change, message):
    given = {"query_LND": unit(2, 8, seed=0), "key_LMD": unit(3, 8, seed=0), "target_N": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=message):
        info_nce(given.pop("query_LND"), given.pop("key_LMD"), given.pop("target_N"), **given)


def output_of(samples: int = 3, windows: int = 4, positions: int = 5, width: int = 8) -> ModelOutput:
    return ModelOutput(
        feature_BF=torch.zeros(samples, 2),
        context_query_BD=unit(samples, width, seed=10),
        context_key_BD=unit(samples, width, seed=11),
        motion_query_BPD=unit(samples, positions, width, seed=12),
        motion_key_BWPD=unit(samples, windows, positions, width, seed=13),
    )


def test_context_loss_equals_a_loop():
    output = output_of()
    keys = output.context_key_BD.tolist()
    expected = [reference_match(query, keys, own, 0.1)[0] for own, query in enumerate(output.context_query_BD.tolist())]
    assert context_loss(output, CONFIG).loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_motion_loss_equals_a_loop():
    output = output_of()
    window_valid = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    keys, place = [], {}
    for sample, window, position in np.ndindex(3, 4, 5):
        if window_valid[sample, window]:
            place[sample, window, position] = len(keys)
            keys.append(output.motion_key_BWPD[sample, window, position].tolist())
    matches = [
        reference_match(output.motion_query_BPD[sample, position].tolist(), keys, place[sample, 0, position], 0.1)
        for sample, position in np.ndindex(3, 5)
        if window_valid[sample, 0]
    ]
    matched = motion_loss(output, window_valid, CONFIG)
    assert matched.loss.item() == pytest.approx(np.mean([loss for loss, _ in matches]), rel=1e-5)
    assert matched.top5.item() == pytest.approx(np.mean([higher < 5 for _, higher in matches]))
    assert (matched.candidates.item(), matched.queries.item()) == (9 * 5, 2 * 5)


def test_candidates_at_the_own_position_equal_the_mean_of_separate_losses():
    output = output_of()
    window_valid = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    parts = []
    for place in range(5):
        part = ModelOutput(
            feature_BF=output.feature_BF,
            motion_query_BPD=output.motion_query_BPD[:, place : place + 1],
            motion_key_BWPD=output.motion_key_BWPD[:, :, place : place + 1],
        )
        parts.append(motion_loss(part, window_valid, CONFIG))
    matched = motion_loss(output, window_valid, LossConfig(motion_own_position=True))
    assert matched.loss.item() == pytest.approx(np.mean([part.loss.item() for part in parts]), rel=1e-5)
    assert matched.top1.item() == pytest.approx(np.mean([part.top1.item() for part in parts]))
    assert {matched.candidates.item(), *(part.candidates.item() for part in parts)} == {9}
    assert matched.queries.item() == 2 * 5
    whole = motion_loss(output, window_valid, CONFIG)
    assert whole.loss.item() != pytest.approx(matched.loss.item(), rel=1e-2)


def test_pretrain_loss_is_the_weighted_sum_of_the_available_losses():
    output, valid = output_of(), torch.ones(3, 4).bool()
    config = LossConfig(context_weight=2, motion_weight=0.5, temperature=0.3)
    loss = pretrain_loss(output, valid, config)
    context, motion = context_loss(output, config), motion_loss(output, valid, config)
    assert loss.total.item() == pytest.approx(2 * context.loss.item() + 0.5 * motion.loss.item())
    only_context = ModelOutput(
        feature_BF=output.feature_BF, context_query_BD=output.context_query_BD, context_key_BD=output.context_key_BD
    )
    loss = pretrain_loss(only_context, None, CONFIG)
    assert loss.motion is None
    assert loss.total.item() == pytest.approx(context_loss(output, CONFIG).loss.item())
    with pytest.raises(ValueError, match="window_valid_BW"):
        pretrain_loss(output, None, CONFIG)
    with pytest.raises(ValueError, match="motion_weight"):
        LossConfig(motion_weight=-1)
    with pytest.raises(ValueError, match="neither context nor motion"):
        pretrain_loss(ModelOutput(feature_BF=output.feature_BF), None, CONFIG)
    with pytest.raises(ValueError, match="window_valid_BW"):
        motion_loss(output, valid[:, :3], CONFIG)


def test_alignment_and_uniformity_equal_loops():
    one, two = unit(6, 4, seed=14), unit(6, 4, seed=15)
    distances = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(one.tolist(), two.tolist(), strict=True)
    ]
    assert alignment(one, two).item() == pytest.approx(np.mean(distances), rel=1e-5)
    potentials = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(one[i].tolist(), one[j].tolist(), strict=True)))
        for i in range(6)
        for j in range(i)
    ]
    assert uniformity(one).item() == pytest.approx(math.log(np.mean(potentials)), rel=1e-5)
    assert uniformity(torch.ones(5, 4) / 2).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(one[:1])


def test_pretrain_loss_with_directions_is_weighted_too():
    output = output_of()
    with_scores = ModelOutput(
        feature_BF=output.feature_BF,
        context_query_BD=output.context_query_BD,
        context_key_BD=output.context_key_BD,
        direction_BKQHW=torch.randn(3, 5, 1, 2, 2, generator=torch.Generator().manual_seed(1)),
    )
    targets = DirectionTargets(
        class_BQHW=torch.arange(12).view(3, 1, 2, 2) % 5, valid_BQHW=torch.ones(3, 1, 2, 2, dtype=torch.bool)
    )
    config = LossConfig(context_weight=2, motion_weight=0.5, still_weight=0.3)
    loss = pretrain_loss(with_scores, None, config, targets=targets)
    directions = direction_loss(with_scores.direction_BKQHW, targets, still_weight=0.3)
    assert loss.total.item() == pytest.approx(
        2 * context_loss(output, config).loss.item() + 0.5 * directions.loss.item()
    )
    supervised = supervised_loss(
        SupervisedOutput(logits_BK=torch.zeros(3, 4), embeddings=with_scores),
        torch.arange(3),
        None,
        config,
        targets=targets,
    )
    assert supervised.total.item() == pytest.approx(math.log(4) + 0.5 * directions.loss.item())
    with pytest.raises(ValueError, match="targets: required"):
        pretrain_loss(with_scores, None, config)
    with pytest.raises(ValueError, match="targets: required"):
        supervised_loss(
            SupervisedOutput(logits_BK=torch.zeros(3, 4), embeddings=with_scores), torch.arange(3), None, config
        )


def test_samples_that_do_not_count_change_nothing():
    output, windows, valid = output_of(), torch.ones(3, 4).bool(), torch.tensor([True, True, False])
    two = replace(output, **{name: value[:2] for name, value in vars(output).items() if value is not None})
    found = pretrain_loss(output, windows & valid[:, None], CONFIG, valid_B=valid)
    expected = pretrain_loss(two, windows[:2], CONFIG)
    assert found.total.item() == pytest.approx(expected.total.item())
    assert (found.context.candidates.item(), found.motion.candidates.item()) == (2, 2 * 4 * 5)


def test_supervised_loss_equals_a_loop():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    labels, valid = torch.tensor([0, 2, int(logits[2].argmax()), 1]), torch.tensor([True, False, True, True])
    rows = [row.tolist() for row in logits]
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, labels.tolist(), strict=True)]
    hits = [row.index(max(row)) == label for row, label in zip(rows, labels.tolist(), strict=True)]
    output = SupervisedOutput(logits_BK=logits, embeddings=ModelOutput(feature_BF=logits))
    for mask, counted in ((None, [0, 1, 2, 3]), (valid, [0, 2, 3])):
        found = supervised_loss(output, labels, None, CONFIG, valid_B=mask)
        assert found.total.item() == found.classification.item() == pytest.approx(np.mean([losses[n] for n in counted]))
        assert found.top1.item() == pytest.approx(np.mean([hits[n] for n in counted]))
    nothing = supervised_loss(output, labels, None, CONFIG, valid_B=torch.zeros(4, dtype=torch.bool))
    assert (nothing.total.item(), nothing.top1.item()) == (0, 0)
    # In half precision the loss is that of the rounded logits, not a rounded loss.
    half = supervised_loss(replace(output, logits_BK=logits.bfloat16()), labels, None, CONFIG)
    exact = supervised_loss(replace(output, logits_BK=logits.bfloat16().float()), labels, None, CONFIG)
    assert half.total.item() == exact.total.item()
    # With motion, the weighted motion loss is added.
    embeddings, windows = output_of(4), torch.ones(4, 4).bool()
    config = LossConfig(motion_weight=0.25)
    both = supervised_loss(replace(output, embeddings=embeddings), labels, windows, config)
    assert both.total.item() == pytest.approx(
        np.mean(losses) + 0.25 * motion_loss(embeddings, windows, config).loss.item()
    )
    with pytest.raises(ValueError, match="window_valid_BW: required"):
        supervised_loss(replace(output, embeddings=embeddings), labels, None, config)


def test_only_losses_have_gradients():
    query = unit(6, 16, seed=0).requires_grad_()
    matched = info_nce(query, unit(6, 16, seed=1), torch.arange(6))
    assert matched.loss.requires_grad
    assert not any(t.requires_grad for t in (matched.top1, matched.top5, matched.candidates, matched.queries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_key_BD": None}, "context_query_BD and context_key_BD must be given together"),
        ({"context_key_BD": unit(2, 8, seed=1)}, "context_key_BD: must have the shape"),
        ({"motion_query_BPD": None}, "motion_query_BPD and motion_key_BWPD must be given together"),
        ({"motion_key_BWPD": unit(3, 4, 6, 8, seed=1)}, "motion_key_BWPD: each window must have the shape"),
        ({"motion_key_BWPD": unit(3, 4, 5, seed=1)}, "motion_key_BWPD: each window must have the shape"),
    ],
)
def test_outputs_that_do_not_match_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        replace(output_of(), **change)


def test_losses_of_heads_that_are_off_are_rejected():
    nothing = ModelOutput(feature_BF=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the context head is off"):
        context_loss(nothing, CONFIG)
    with pytest.raises(ValueError, match="the motion head is off"):
        motion_loss(nothing, torch.ones(3, 4).bool(), CONFIG)


# Two processes compared with one: each part of the output is computed by its own linear layer.

WIDTH, WINDOWS, POSITIONS, LOCAL_BATCH = 6, 3, 4, 3
WINDOW_VALID = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()


class LinearModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, sample_BD: Tensor, motion_BWPD: Tensor) -> ModelOutput:
        inputs = (sample_BD, sample_BD.flip(1), motion_BWPD[:, 0].flip(2), motion_BWPD)
        outputs = [F.normalize(layer(given), dim=-1) for layer, given in zip(self.layers, inputs, strict=True)]
        return ModelOutput(
            feature_BF=sample_BD,
            context_query_BD=outputs[0],
            context_key_BD=outputs[1],
            motion_query_BPD=outputs[2],
            motion_key_BWPD=outputs[3],
        )


def global_batch() -> tuple[Tensor, Tensor]:
    return unit(2 * LOCAL_BATCH, WIDTH, seed=16), unit(2 * LOCAL_BATCH, WINDOWS, POSITIONS, WIDTH, seed=17)


def gradients(
    model: nn.Module,
    part: slice,
    *,
    valid_B: Tensor | None = None,
    own_position: bool = False,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    model.zero_grad()
    samples, motion = global_batch()
    output = model(samples[part], motion[part])
    config = LossConfig(motion_own_position=own_position)
    windows_BW = WINDOW_VALID[part] if valid_B is None else WINDOW_VALID[part] & valid_B[:, None]
    loss = pretrain_loss(output, windows_BW, config, valid_B=valid_B)
    loss.total.backward()
    values = {"total": loss.total.item(), "candidates": loss.motion.candidates.item()}
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}, values


def one_rank(rank: int, folder: str) -> None:
    with two_rank_group(rank, folder):
        torch.save(results_of(rank), Path(folder) / f"{rank}.pt")


def results_of(rank: int) -> tuple[dict[str, object], Tensor]:
    part = slice(rank * LOCAL_BATCH, (rank + 1) * LOCAL_BATCH)
    model = nn.parallel.DistributedDataParallel(LinearModel())
    # The reference cycle keeps the model, and with it the process group, alive until garbage collection.
    model.itself = [model]
    results = {"equal": gradients(model, part), "own position": gradients(model, part, own_position=True)}
    # The last sample of the second rank is damaged.
    valid_B = torch.arange(LOCAL_BATCH) < LOCAL_BATCH - rank
    results["masked"] = gradients(model, part, valid_B=valid_B)
    results["classification"] = classification(part, valid_B)
    for reduce_scatter in (False, True):
        results[reduce_scatter] = sum_own_part((1 + rank) * torch.arange(8.0).view(4, 2), reduce_scatter=reduce_scatter)
    return results, gather_with_grad(torch.full((2,), float(rank)))


def classification(part: slice, valid_B: Tensor | None = None) -> Tensor:
    logits_BK = global_batch()[0][part]
    output = SupervisedOutput(logits_BK=logits_BK, embeddings=ModelOutput(feature_BF=logits_BK))
    label_B = torch.arange(2 * LOCAL_BATCH)[part] % WIDTH
    return supervised_loss(output, label_B, None, LossConfig(), valid_B=valid_B).classification


def test_two_ranks_match_the_gradients_of_one_process_with_the_whole_batch(tmp_path):
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case in ("equal", "masked", "own position"):
        whole = slice(None, -1) if case == "masked" else slice(None)
        expected, values = gradients(LinearModel(), whole, own_position=case == "own position")
        results = [results[case] for results, _ in ranks]
        assert np.mean([rank_values["total"] for _, rank_values in results]) == pytest.approx(values["total"], rel=1e-5)
        for rank_gradients, rank_values in results:
            assert rank_values["candidates"] == values["candidates"]
            for name, gradient in expected.items():
                assert gradient.abs().max() > 1e-3, name
                torch.testing.assert_close(rank_gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert all(gathered.tolist() == [0, 0, 1, 1] for _, gathered in ranks)
    mean = (ranks[0][0]["classification"] + ranks[1][0]["classification"]) / 2
    torch.testing.assert_close(mean, classification(slice(None, -1)))
    for rank, (results, _) in enumerate(ranks):
        expected = 3 * torch.arange(8.0).view(2, 2, 2)[rank]
        assert torch.equal(results[False], expected)
        assert torch.equal(results[True], expected)


def test_gather_in_one_process_is_the_identity():
    tensor = torch.ones(3)
    assert gather_with_grad(tensor) is tensor
