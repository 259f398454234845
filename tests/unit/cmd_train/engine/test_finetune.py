"""Fine-tuning: recipes, classes, samples without motion, augmentation, objective and initial weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn

from cmd_train.augment.apply import augment_clip, augment_motion
from cmd_train.augment.parameters import draw_parameters
from cmd_train.augment.space import rotate
from cmd_train.checkpoints.files import CheckpointError, save_checkpoint
from cmd_train.checkpoints.initial import check_same_initial, recorded_initial
from cmd_train.checkpoints.published import published_name
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import unpack_batches
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.sampling import SamplingConfig, plan_clip, sample_rng
from cmd_train.engine.damaged_samples import TolerantDataset
from cmd_train.engine.finetune import select_classes
from cmd_train.engine.finetune_start import load_start
from cmd_train.engine.optim import build_optimizer, learning_rate
from cmd_train.engine.supervised_objective import SupervisedObjective
from cmd_train.losses.outputs import SupervisedOutput
from cmd_train.losses.supervised import supervised_loss
from cmd_train.models.backbones import build_backbone
from cmd_train.models.build import build_classifier, build_model
from cmd_train.recipes import AUXILIARY_MOTION, RECIPES, check_recipe
from tests.listed_videos import ListedVideos
from tests.unit.cmd_train.data.test_dataset import SAMPLING, MemoryShards, entries
from tests.unit.cmd_train.engine.test_step import HEADER, batch, configured
from tests.unit.cmd_train.models.test_parity import published_state

PLAIN = configured(model__context_head=False, model__motion_head=False, augment__rotation_degrees=10.0)
MOTION = configured(model__context_head=False, loss__motion_weight=0.5, augment__flip_probability=0.5)
CLASSES = (3, 1, 0, 2, 1, 0)


# Recipes


@pytest.mark.parametrize(
    ("recipe", "rate", "decay"), [("finetune-ucf101", 1e-4, 3e-3), ("finetune-hmdb51", 2e-4, 2e-3)]
)
def test_fine_tuning_settings_are_the_papers(recipe: str, rate: float, decay: float) -> None:
    config = build_config(recipe)
    optim = config.optim
    assert (optim.optimizer, optim.momentum, optim.weight_decay, optim.clip_norm) == ("sgd", 0.9, decay, 0.0)
    assert (optim.batch_size, optim.epochs) == (8, 120)
    rates = [learning_rate(step, 10, optim) for step in (0, 50, 100, 1200)]
    # Warm-up over 10 epochs from 4e-6 x batch to the peak x batch; then down to 1e-6, published without the batch.
    assert rates == pytest.approx([4e-6 * 8, (4e-6 + rate) / 2 * 8, rate * 8, 1e-6])
    assert build_optimizer(nn.Linear(2, 2), optim).param_groups[0]["nesterov"]
    assert (config.model.classifier_dropout, config.augment.rotation_degrees) == (0.3, 10.0)
    assert (config.model.backbone, config.model.crop_size, config.model.clip_frames) == ("r2plus1d_26", 112, 16)
    assert (config.sampling.stride, config.augment.flip_probability) == (4, 0.5)
    assert (config.model.context_head, config.model.motion_head, config.sampling.motion_room) == (False,) * 3


@pytest.mark.parametrize("recipe", ["finetune-gestures", "finetune-demo"])
def test_small_fine_tuning_recipes_do_not_flip(recipe: str) -> None:
    config = build_config(recipe)
    assert config.augment.flip_probability == 0
    pretraining = build_config(recipe.removeprefix("finetune-")).model
    assert replace(pretraining, context_head=False, motion_head=False) == config.model, "it can load the checkpoints"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("finetune-")])
def test_auxiliary_motion_works_with_every_recipe(recipe: str) -> None:
    config = build_config(recipe, AUXILIARY_MOTION)
    SupervisedObjective(config, HEADER, CLASSES, 4)
    with pytest.raises(ValueError, match=r"sampling\.motion_room"):
        build_config(recipe, {"model.motion_head": True})


def test_recipes_of_the_other_command_are_rejected() -> None:
    with pytest.raises(ValueError, match="'ucf101' is not for cmd-train finetune; use one of finetune-ucf101"):
        check_recipe("ucf101", finetune=True)
    with pytest.raises(ValueError, match="'finetune-demo' is not for cmd-train pretrain"):
        check_recipe("finetune-demo", finetune=False)
    check_recipe("finetune-demo", finetune=True)


# Classes


def labeled(*labels: str) -> ListedVideos:
    given = zip((*entries(), *entries()), labels, strict=False)
    return ListedVideos([replace(entry, label=label) for entry, label in given])


def test_classes_are_the_sorted_labels_and_unlabeled_videos_are_counted() -> None:
    chosen = select_classes(labeled("up", "", "left", "up", "", "down"))
    assert chosen.classes == ("down", "left", "up")
    assert chosen.class_numbers == [2, 1, 2, 0]
    assert [entry.label for entry in chosen.entries] == ["up", "left", "up", "down"]
    assert chosen.unlabeled == 2
    assert chosen.record == {"classes": ["down", "left", "up"], "class_videos": [1, 1, 2], "videos": 4}


def test_fewer_than_two_classes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"the 3 videos to train on have the label 'up' only \(2 videos\)"):
        select_classes(labeled("up", "", "up"))
    with pytest.raises(ValueError, match="the 2 videos to train on have no labels"):
        select_classes(labeled("", ""))


# Samples without motion


def test_clip_without_room_for_motion_reaches_the_end_of_the_video() -> None:
    config = SamplingConfig(motion_room=False)
    plans = [plan_clip(63, config, sample_rng(0, 0, index)) for index in range(60)]
    assert {plan.clip_frames[0] for plan in plans} == {0, 1, 2}
    assert max(plan.clip_frames[-1] for plan in plans) == 62
    assert {plan.stride for plan in plans} == {4}
    assert plan_clip(63, SamplingConfig(), sample_rng(0, 0, 0)).stride == 3, "with room for motion, the stride shrinks"


class ClipsOnly(MemoryShards):
    def keyframe_jpeg(self, *_: object) -> memoryview:
        raise AssertionError("a keyframe was read")

    def read_motion(self, *_: object) -> None:
        raise AssertionError("motion was read")


def test_motion_and_keyframes_are_not_read_without_heads() -> None:
    alone = PretrainDataset(ClipsOnly(), entries(), SAMPLING, seed=5, clips_only=True)
    whole = PretrainDataset(MemoryShards(), entries(), SAMPLING, seed=5)
    keys = [(0, 0), (3, 2)]
    stacked, full = unpack_batches(TolerantDataset(dataset)[keys] for dataset in (alone, whole))
    assert torch.equal(stacked.clip_u8_BTHWC, full.clip_u8_BTHWC)
    assert stacked.keyframe_u8_BHWC.shape == (2, 0, 0, 3)
    assert stacked.motion_quarter_px_BWTCHW.shape[:2] == (2, 0)
    assert stacked.window_valid_BW.shape == (2, 0)
    assert stacked.window_valid_BW.dtype == torch.bool
    assert (stacked.report.samples, stacked.report.motion_padded, stacked.report.motion_missing) == (2, 0, 0)


# Augmentation


def test_rotation_matches_scipy() -> None:
    picture = torch.rand(2, 3, 1, 33, 33, generator=torch.Generator().manual_seed(1))
    for degrees in (-10.0, 7.5):
        turned = rotate(picture, torch.tensor([degrees, degrees]))
        # Order 1 is bilinear.
        expected = ndimage.rotate(
            picture.numpy(), degrees, axes=(4, 3), reshape=False, order=1, mode="grid-constant", cval=0.0
        )
        torch.testing.assert_close(turned, torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_rotations_are_uniform_within_the_limit() -> None:
    config = build_config("finetune-ucf101").augment
    drawn = draw_parameters(config, [(0, n) for n in range(400)], seed=0, windows=4, picture_size=(340, 256)).rotation_B
    assert drawn.abs().max() <= 10
    assert drawn.min() < -9.5
    assert drawn.max() > 9.5
    assert abs(drawn.mean()) < 1


# Objective


def expected_output(config: TrainConfig, model: nn.Module) -> tuple[SupervisedOutput, Tensor]:
    given = batch()
    parameters = draw_parameters(config.augment, given.keys, seed=config.run.seed, windows=4, picture_size=(96, 80))
    motion = None
    if config.model.motion_head:
        motion = augment_motion(
            given.motion_quarter_px_BWTCHW, given.motion_valid_BWTHW, parameters, config.augment, HEADER
        )
    torch.manual_seed(9)
    clip = augment_clip(given.clip_u8_BTHWC, parameters, config.augment)
    return model(clip, motion, given.window_valid_BW), torch.tensor(CLASSES)


@pytest.mark.parametrize("config", [PLAIN, MOTION], ids=["plain", "motion"])
def test_objective_is_the_loss_of_the_augmented_batch(config: TrainConfig) -> None:
    objective = SupervisedObjective(config, HEADER, CLASSES, 4)
    model = build_classifier(config.model, 4, seed=config.run.seed)
    torch.manual_seed(9)
    found = objective(model, batch())
    output, label_B = expected_output(config, build_classifier(config.model, 4, seed=config.run.seed))
    expected = supervised_loss(output, label_B, batch().window_valid_BW, config.loss)
    torch.testing.assert_close(found.loss, expected.total)
    torch.testing.assert_close(found.metrics["classification_loss"], expected.classification.detach())
    assert found.metrics["classification_candidates"] == 4
    assert ("motion_loss" in found.metrics) == config.model.motion_head
    if config.model.motion_head:
        torch.testing.assert_close(found.metrics["motion_loss"], expected.motion.loss.detach())
    # Labels belong to videos, whatever their position in the batch.
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    turned = SupervisedObjective(config, HEADER, CLASSES[::-1], 4)
    given, same_model = replace(batch(), video_B=order), build_classifier(config.model, 4, seed=config.run.seed)
    torch.manual_seed(9)
    torch.testing.assert_close(turned(same_model, given).loss, expected.total)


def test_motion_head_does_not_change_other_initial_weights() -> None:
    plain, motion = (
        build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed).state_dict(),
        build_classifier(MOTION.model, 4, seed=MOTION.run.seed).state_dict(),
    )
    assert all(torch.equal(value, motion[name]) for name, value in plain.items())
    assert any(name.startswith("motion.") for name in motion)


def test_unsupported_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"rotation_degrees: must be 0 with --auxiliary motion, got 10.0"):
        SupervisedObjective(replace(MOTION, augment=PLAIN.augment), HEADER, CLASSES, 4)
    with pytest.raises(ValueError, match=r"model\.context_head"):
        SupervisedObjective(configured(), HEADER, CLASSES, 4)


# Initial weights


def saved(folder: Path, config: TrainConfig, **record: object) -> dict[str, Tensor]:
    weights = build_model(config.model, seed=config.run.seed).state_dict()
    stored = {"settings": config.as_dict(), "data_hash": "abc", **record}
    save_checkpoint(folder, step=3, weights=weights, state={"step": 3}, config=stored)
    return weights


@pytest.mark.parametrize("config", [PLAIN, MOTION], ids=["plain", "motion"])
def test_backbone_and_motion_head_are_loaded_from_a_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    theirs = saved(tmp_path, configured(run__seed=8, data__split_column="split1"))
    model = build_classifier(config.model, 4, seed=config.run.seed)
    fresh = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    record, lines = load_start(model, config, tmp_path)
    for name, value in model.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(value, theirs[name]), name
    assert all(torch.equal(value, fresh[name]) for name, value in model.classifier.state_dict().items())
    assert record["part"] == ("backbone and motion head" if config.model.motion_head else "backbone")
    assert record["trained_on"] == {
        "data_hash": "abc",
        "split_column": "split1",
        "train_part": "train",
        "initial_weights": None,
    }
    assert record["part"] in lines[0]
    assert len(lines) == 1


def test_missing_motion_head_is_reported_and_keeps_its_initial_weights(tmp_path: Path) -> None:
    saved(tmp_path, configured(model__motion_head=False))
    model, fresh = (
        build_classifier(MOTION.model, 4, seed=MOTION.run.seed),
        build_classifier(MOTION.model, 4, seed=MOTION.run.seed),
    )
    record, lines = load_start(model, MOTION, tmp_path)
    assert record["part"] == "backbone"
    assert "The source has no motion head; the motion head is initialized from scratch" in lines
    assert all(torch.equal(v, fresh.motion.state_dict()[n]) for n, v in model.motion.state_dict().items())


def test_errors_list_the_fields_of_a_different_network(tmp_path: Path) -> None:
    saved(tmp_path, configured(model__width=16, model__predictor_width=64, sampling__stride=1))
    model = build_classifier(MOTION.model, 4, seed=MOTION.run.seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"model.width 16 in the source, 8 in this run, model.predictor_width 64 in the source, 32 in this run",
    ) as error:
        load_start(model, MOTION, tmp_path)
    assert "--set model.width=16 --set model.predictor_width=64" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"model.width 16 in the source, 8 in this run; choose"):
        load_start(build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed), PLAIN, tmp_path)


def test_only_fields_of_the_same_motion_head_must_agree(tmp_path: Path) -> None:
    directions = {"loss__motion_target": "directions", "sampling__motion_window": "clip"}
    directions |= {"sampling__temporal_negatives": 0, "model__context_head": False}
    ours = configured(**directions)
    # A direction head has no predictor, no encoder and no embeddings.
    unused = {"model__predictor_width": 64, "model__encoder_width": 8, "model__embedding_dim": 8}
    saved(tmp_path / "a", configured(**directions, **unused))
    record, _ = load_start(build_classifier(ours.model, 4, seed=0), ours, tmp_path / "a")
    assert record["part"] == "backbone and motion head"
    saved(tmp_path / "b", configured(**directions, model__direction_parts=1))
    with pytest.raises(ValueError, match=r"model.direction_parts 1 in the source, 2 in this run; choose"):
        load_start(build_classifier(ours.model, 4, seed=0), ours, tmp_path / "b")
    saved(tmp_path / "c", configured())
    with pytest.raises(ValueError, match=r"model.motion_target features in the source, directions in this run"):
        load_start(build_classifier(ours.model, 4, seed=0), ours, tmp_path / "c")


def test_a_backbone_with_other_shortcuts_is_named(tmp_path: Path) -> None:
    saved(tmp_path, configured(model__shortcut="strided"))
    with pytest.raises(
        ValueError, match=r"model.shortcut strided in the source, average in this run.*shortcut=strided"
    ):
        load_start(build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed), PLAIN, tmp_path)


def test_different_input_is_noted(tmp_path: Path) -> None:
    saved(tmp_path, configured(sampling__stride=1))
    _, lines = load_start(build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed), PLAIN, tmp_path)
    assert "Note: the source was trained with different input: sampling.stride 1 in the source, 2 in this run" in lines
    saved(tmp_path / "b", configured(augment__global_motion="median"))
    assert len(load_start(build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed), PLAIN, tmp_path / "b")[1]) == 1
    _, lines = load_start(build_classifier(MOTION.model, 4, seed=MOTION.run.seed), MOTION, tmp_path / "b")
    assert lines[-1].endswith("different input: augment.global_motion median in the source, keep in this run")


def test_backbone_of_a_published_file_is_loaded(tmp_path: Path) -> None:
    config = build_config("finetune-ucf101", {"model.backbone": "c3d"})
    state = published_state("C3D")
    save_file(state, tmp_path / "weights.safetensors")
    with torch.device("meta"):
        names = list(build_backbone("c3d").state_dict())
    model = build_classifier(config.model, 4, seed=config.run.seed)
    record, _ = load_start(model, config, tmp_path / "weights.safetensors")
    assert record["part"] == "backbone"
    assert "trained_on" not in record
    for name in names:
        assert torch.equal(model.backbone.state_dict()[name], state[published_name(name)]), name
    with pytest.raises(ValueError, match=r"weights.safetensors: the weights do not fit the network; missing"):
        load_start(build_classifier(PLAIN.model, 4, seed=PLAIN.run.seed), PLAIN, tmp_path / "weights.safetensors")


def test_continued_run_must_have_the_same_initial_weights(tmp_path: Path) -> None:
    saved(tmp_path / "run", PLAIN, init={"source": str(tmp_path / "a")}, classes=["x", "y"])
    record = recorded_initial(tmp_path / "run")
    check_same_initial(tmp_path / "run", record, tmp_path / "b" / ".." / "a")
    for other in (tmp_path / "b", None):
        with pytest.raises(CheckpointError, match=f"started from {tmp_path / 'a'}"):
            check_same_initial(tmp_path / "run", record, other)
    saved(tmp_path / "new", PLAIN, init=None, classes=["x", "y"])
    assert recorded_initial(tmp_path / "new") is None
    check_same_initial(tmp_path / "new", None, None)
    with pytest.raises(CheckpointError, match="started from scratch"):
        check_same_initial(tmp_path / "new", None, tmp_path / "a")
