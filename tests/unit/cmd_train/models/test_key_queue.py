from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from cmd_train.checkpoints.files import save_checkpoint
from cmd_train.checkpoints.initial import load_initial
from cmd_train.losses.config import LossConfig
from cmd_train.losses.outputs import QueuedKeys
from cmd_train.losses.pretrain import context_loss
from cmd_train.models.config import ModelConfig
from cmd_train.models.key_queue import KeyQueue
from cmd_train.models.pretrain import PretrainModel
from tests.process_groups import two_rank_group
from tests.unit.cmd_train.losses.test_losses import output_of, reference_match, unit
from tests.unit.cmd_train.models.test_networks import SMALL, random_inputs

VIDEOS = torch.tensor([5, 9])


class Encoder(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 4, bias=False)

    def forward(self, given_BD: Tensor) -> Tensor:
        return F.normalize(self.layer(given_BD), dim=1)


def test_queue_returns_the_latest_keys_of_other_videos() -> None:
    encoder, inputs = Encoder(), torch.randn(6, 2, 3)
    queue = KeyQueue(encoder, size=5, features=4, momentum=0.9)
    videos = [torch.tensor([2 * step, 2 * step + 1]) for step in range(5)] + [torch.tensor([0, 7])]
    for step in range(6):
        stored = queue(encoder, inputs[step], videos[step])
        seen = [(int(v), inputs[t][i]) for t in range(step) for i, v in enumerate(videos[t])][-5:]
        for sample in range(2):
            usable = {tuple(k.tolist()) for k, u in zip(stored.key_MD, stored.usable_BM[sample], strict=True) if u}
            with torch.no_grad():
                expected = {tuple(encoder(x[None])[0].tolist()) for v, x in seen if v != videos[step][sample]}
            assert {tuple(np.round(k, 5)) for k in usable} == {tuple(np.round(k, 5)) for k in expected}
    assert int(stored.usable_BM[1].sum()) == 4, "the queue contains a key of the sample's video, 7"


def test_moving_average_uses_the_momentum() -> None:
    encoder = Encoder()
    queue = KeyQueue(encoder, size=4, features=4, momentum=0.75)
    start = encoder.layer.weight.detach().clone()
    with torch.no_grad():
        encoder.layer.weight.add_(1)
    queue(encoder, torch.randn(2, 3), VIDEOS)
    torch.testing.assert_close(queue.slow_encoder.layer.weight, start + 0.25)
    assert not queue.slow_encoder.layer.weight.requires_grad
    queue.eval()
    before = copy.deepcopy(queue.state_dict())
    queue(encoder, torch.randn(2, 3), VIDEOS)
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_a_batch_larger_than_the_queue_keeps_the_last_keys() -> None:
    encoder, given = Encoder(), torch.randn(7, 3)
    queue = KeyQueue(encoder, size=3, features=4, momentum=0)
    queue(encoder, given, torch.arange(7))
    assert sorted(queue.video_M.tolist()) == [4, 5, 6]


def test_context_loss_with_queued_keys_equals_a_loop() -> None:
    output, queued = output_of(), unit(4, 8, seed=20)
    usable = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]).bool()
    output = replace(output, context_queue=QueuedKeys(key_MD=queued, usable_BM=usable))
    losses = []
    for own, query in enumerate(output.context_query_BD.tolist()):
        keys = output.context_key_BD.tolist() + [queued[m].tolist() for m in range(4) if usable[own, m]]
        losses.append(reference_match(query, keys, own, 0.1)[0])
    matched = context_loss(output, LossConfig())
    assert matched.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert matched.candidates.item() == pytest.approx(3 + 7 / 3)


def with_queue() -> PretrainModel:
    torch.manual_seed(0)
    return PretrainModel(replace(SMALL, context_queue=5))


def test_model_with_a_queue_continues_exactly_from_its_state() -> None:
    model, (clip, keyframe, motion) = with_queue(), random_inputs(SMALL)
    with pytest.raises(ValueError, match="video_B"):
        model(clip, keyframe, motion)
    model(clip, keyframe, motion, video_B=VIDEOS)
    other = with_queue()
    other.load_state_dict(model.state_dict())
    for number in (1, 2):
        videos = VIDEOS + 10 * number
        torch.manual_seed(number)
        one = model(clip, keyframe + number, motion, video_B=videos).context_queue
        torch.manual_seed(number)
        two = other(clip, keyframe + number, motion, video_B=videos).context_queue
        assert one.usable_BM.sum() == 2 * min(2 * number, 5)
        assert torch.equal(one.key_MD, two.key_MD)
        assert torch.equal(one.usable_BM, two.usable_BM)


def test_queue_is_off_by_default_and_has_no_trainable_parameters() -> None:
    plain = {name for name, _ in PretrainModel(SMALL).named_parameters()}
    trained = {name for name, p in with_queue().named_parameters() if p.requires_grad}
    assert ModelConfig().context_queue == 0
    assert trained == plain
    with pytest.raises(ValueError, match="context_queue"):
        ModelConfig(context_queue=4, context_head=False)
    with pytest.raises(ValueError, match="queue_momentum"):
        ModelConfig(queue_momentum=1.0)


def test_loading_initial_weights_resets_the_queue(tmp_path: Path) -> None:
    source, (clip, keyframe, motion) = with_queue(), random_inputs(SMALL)
    with torch.no_grad():
        source.context_encoder.trunk.stem.conv.weight.add_(1)
    source(clip, keyframe, motion, video_B=VIDEOS)
    save_checkpoint(tmp_path, step=1, weights=source.state_dict(), state={}, config={})
    target = with_queue()
    load_initial(target, tmp_path)
    assert (target.context_queue.video_M == -1).all()
    fast, slow = target.context_encoder.trunk.stem, target.context_queue.slow_encoder[0].trunk.stem
    assert torch.equal(fast.conv.weight, source.context_encoder.trunk.stem.conv.weight)
    assert torch.equal(slow.conv.weight, fast.conv.weight)


def one_rank(rank: int, folder: str) -> None:
    with two_rank_group(rank, folder):
        torch.save(state_after_part(slice(2 * rank, 2 * rank + 2)), Path(folder) / f"{rank}.pt")


def state_after_part(part: slice) -> dict[str, Tensor]:
    encoder, given = Encoder(), unit(3, 4, 3, seed=21)
    queue = KeyQueue(encoder, size=7, features=4, momentum=0.5)
    for step in range(3):
        queue(encoder, given[step, part], (torch.arange(4) + 4 * step)[part])
    return queue.state_dict()


def test_each_rank_enqueues_the_keys_of_all_ranks(tmp_path: Path) -> None:
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    expected = state_after_part(slice(None))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
