import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmd_train.augment.config import motion_input_shape
from cmd_train.config import TrainConfig
from cmd_train.engine.objective import PretrainObjective
from cmd_train.models.backbones import BackboneOutput, build_backbone, join_stages
from cmd_train.models.config import BACKBONE_NAMES, ModelConfig, token_grid
from cmd_train.models.encoders import ContextEncoder, MotionEncoder
from cmd_train.models.heads import MotionHead
from cmd_train.models.predictor import MotionPredictor
from cmd_train.models.pretrain import PretrainModel
from cmd_train.models.resnet import FactorizedConvNorm, ResidualBlock

SMALL = ModelConfig(
    backbone="r2plus1d_10",
    width=4,
    clip_frames=8,
    crop_size=32,
    embedding_dim=16,
    head_hidden=24,
    predictor_width=16,
    predictor_heads=2,
    predictor_ff=20,
    encoder_layers=1,
    decoder_layers=2,
    encoder_width=4,
)


def random_inputs(config: ModelConfig, *, samples: int = 2, windows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(samples, 3, config.clip_frames, config.crop_size, config.crop_size),
        torch.randn(samples, 3, 1, config.crop_size, config.crop_size),
        torch.randn(samples, windows, *config.motion_shape),
    )


# Shapes are computed on the meta device: full-size networks without arithmetic.


@pytest.mark.parametrize("name", BACKBONE_NAMES)
@pytest.mark.parametrize("crop_size", [56, 64, 112, 36])
@pytest.mark.parametrize("frames", [8, 16])
def test_backbone_maps_have_the_documented_shapes(name, crop_size, frames):
    with torch.device("meta"):
        backbone = build_backbone(name)
        output = backbone(torch.empty(2, 3, frames, crop_size, crop_size))
    assert output.tokens_BCTHW.shape == (2, backbone.token_channels, *token_grid(frames, crop_size))
    assert output.feature_BCTHW.shape[:3] == (2, backbone.feature_channels, frames // 8)
    assert output.pooled_BC.shape == (2, backbone.feature_channels)


@pytest.mark.parametrize(
    ("name", "tokens", "feature"),
    [
        ("r2plus1d_26", (2048, 2, 7, 7), (2048, 2, 4, 4)),
        ("r3d_26", (2048, 2, 7, 7), (2048, 2, 4, 4)),
        ("c3d", (512, 2, 7, 7), (512, 2, 7, 7)),
        ("r2plus1d_10", (512, 2, 7, 7), (512, 2, 4, 4)),
    ],
)
def test_backbones_have_the_papers_sizes(name, tokens, feature):
    with torch.device("meta"):
        output = build_backbone(name)(torch.empty(1, 3, 16, 112, 112))
    assert output.tokens_BCTHW.shape == (1, *tokens)
    assert output.feature_BCTHW.shape == (1, *feature)


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_width_scales_every_channel(name):
    with torch.device("meta"):
        narrow, full = build_backbone(name, width=16), build_backbone(name)
    assert full.feature_channels == 4 * narrow.feature_channels


def test_token_map_combines_frame_pairs_and_the_upsampled_last_stage():
    stage3, stage4 = torch.randn(2, 3, 4, 7, 7), torch.randn(2, 6, 2, 4, 4)
    tokens = join_stages(stage3, stage4)
    assert tokens.shape == (2, 6, 2, 7, 7)
    for time in range(2):
        for row in range(7):
            for column in range(7):
                pair = torch.cat([stage3[:, :, 2 * time, row, column], stage3[:, :, 2 * time + 1, row, column]], dim=1)
                expected = pair + stage4[:, :, time, row * 4 // 7, column * 4 // 7]
                torch.testing.assert_close(tokens[:, :, time, row, column], expected)


def test_factorized_convolutions_keep_the_parameter_count():
    stem = FactorizedConvNorm(3, 64, kernel=(3, 7, 7))
    assert stem.spatial.conv.out_channels == 83
    unit = FactorizedConvNorm(64, 64, kernel=(3, 3, 3))
    assert unit.spatial.conv.weight.numel() + unit.temporal.conv.weight.numel() == 27 * 64 * 64


@pytest.mark.parametrize("name", ["r2plus1d_26", "r3d_26", "r2plus1d_10"])
def test_residual_blocks_initially_compute_their_shortcut(name):
    backbone = build_backbone(name, width=4).eval()
    blocks = [module for module in backbone.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == (4 if name == "r2plus1d_10" else 8)
    for block in blocks:
        first = next(module for module in block.modules() if isinstance(module, nn.Conv3d))
        video = torch.randn(1, first.in_channels, 4, 6, 6)
        torch.testing.assert_close(block(video), torch.relu(block.shortcut(video)))
        scales = [module.weight for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
        assert sum(bool((scale == 0).all()) for scale in scales) == 1


def test_backbones_reject_unsupported_arguments_and_shapes():
    with pytest.raises(ValueError, match="backbone: must be one of"):
        build_backbone("resnet18")
    with pytest.raises(ValueError, match="width"):
        build_backbone("c3d", width=0)
    backbone = build_backbone("r2plus1d_10", width=4)
    for shape, message in (
        ((1, 3, 12, 32, 32), "frames"),
        ((1, 3, 8, 30, 30), "crop_size"),
        ((1, 3, 8, 32, 36), "clip"),
        ((1, 2, 8, 32, 32), "clip"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(torch.zeros(shape))
    with pytest.raises(ValueError, match="tokens_BCTHW"):
        BackboneOutput(feature_BCTHW=torch.zeros(2, 1, 1, 1, 1), tokens_BCTHW=torch.zeros(1, 1, 1, 1, 1))


@pytest.mark.parametrize("motion_input", ["native", "paper"])
@pytest.mark.parametrize(("crop_size", "side"), [(56, 4), (64, 4), (112, 7), (36, 3)])
@pytest.mark.parametrize("frames", [1, 5, 8])
def test_motion_encoder_output_has_the_token_grid(motion_input, crop_size, side, frames):
    shape = motion_input_shape(motion_input, frames=frames, crop_size=crop_size)
    with torch.device("meta"):
        features = MotionEncoder(motion_input=motion_input)(torch.empty(2, *shape))
    assert features.shape == (2, 512, 1, side, side)
    assert token_grid(16, crop_size)[1:] == (side, side)


def test_first_stage_of_native_motion_encoder_keeps_full_resolution():
    assert motion_input_shape("native", frames=8, crop_size=112) == (3, 8, 28, 28)
    with torch.device("meta"):
        first, *_ = MotionEncoder().trunk(torch.empty(1, 3, 8, 28, 28))
    assert first.shape[2:] == (8, 28, 28)


def test_encoders_reject_unsupported_arguments_and_shapes():
    with pytest.raises(ValueError, match="even"):
        MotionEncoder(width=5)
    with pytest.raises(ValueError, match="3 channels"):
        MotionEncoder(width=4)(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match="frames"):
        MotionEncoder(width=4)(torch.zeros(1, 3, 9, 8, 8))


def test_context_encoder_averages_over_space():
    encoder = ContextEncoder(width=4).eval()
    keyframe = torch.randn(2, 3, 1, 64, 64)
    features = encoder(keyframe)
    assert features.shape == (2, 32)
    torch.testing.assert_close(encoder(keyframe.roll(32, dims=0)), features)
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize(("motion_input", "minimum", "maximum"), [("paper", 112.5, 113.5), ("native", 20, 30)])
def test_cost_of_a_training_sample(motion_input, minimum, maximum):
    config = ModelConfig(motion_input=motion_input)
    with torch.device("meta"):
        model = PretrainModel(config)
        inputs = (
            torch.empty(2, 3, 16, 112, 112),
            torch.empty(2, 3, 1, 112, 112),
            torch.empty(2, 4, *config.motion_shape),
        )
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
    gflop_per_sample = counter.get_total_flops() / 2 / 1e9
    assert minimum <= gflop_per_sample <= maximum


def small_predictor(**changes: float) -> MotionPredictor:
    sizes = {"token_channels": 6, "source_count": 8, "target_count": 4, "width": 16, "heads": 2, "hidden": 12}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "dropout": 0.5}
    return MotionPredictor(**(sizes | changes))


def test_predictor_distinguishes_places_only_by_learned_positions():
    predictor = small_predictor().eval()
    nn.init.normal_(predictor.source_position_SD)
    nn.init.normal_(predictor.target_position_PD)
    tokens = torch.randn(2, 6, 2, 2, 2)
    predicted = predictor(tokens)
    assert predicted.shape == (2, 4, 16)
    assert not torch.allclose(predicted[:, 0], predicted[:, 1], atol=1e-3)
    order = torch.randperm(8)
    shuffled = tokens.flatten(2)[:, :, order].unflatten(2, (2, 2, 2))
    assert not torch.allclose(predictor(shuffled), predicted, atol=1e-3)
    with torch.no_grad():
        predictor.source_position_SD.copy_(predictor.source_position_SD[order])
    torch.testing.assert_close(predictor(shuffled), predicted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        predictor.target_position_PD.copy_(predictor.target_position_PD[torch.tensor([2, 0, 3, 1])])
    torch.testing.assert_close(predictor(shuffled), predicted[:, [2, 0, 3, 1]], rtol=1e-4, atol=1e-5)


def test_positions_are_not_added_to_attention_values():
    predictor = small_predictor().eval()
    tokens = torch.randn(1, 6, 1, 1, 1).expand(1, 6, 2, 2, 2)
    before = predictor(tokens)
    # With equal tokens, attention returns the same value for any attention weights, so positions have no effect.
    nn.init.normal_(predictor.source_position_SD, std=5)
    nn.init.normal_(predictor.target_position_PD, std=5)
    torch.testing.assert_close(predictor(tokens), before, rtol=1e-4, atol=1e-5)


def test_predictor_applies_dropout_in_training_only():
    predictor, tokens = small_predictor(), torch.randn(1, 6, 2, 2, 2)
    assert not torch.equal(predictor(tokens), predictor(tokens))
    predictor.eval()
    torch.testing.assert_close(predictor(tokens), predictor(tokens))
    with pytest.raises(ValueError, match="8 tokens"):
        predictor(torch.randn(1, 6, 2, 2, 1))


@pytest.mark.parametrize("backbone", BACKBONE_NAMES)
def test_all_parameters_receive_gradients(backbone):
    config = dataclasses.replace(SMALL, backbone=backbone)
    model = PretrainModel(config)
    output = model(*random_inputs(config))
    assert output.feature_BF.shape == (2, model.backbone.feature_channels)
    assert output.context_query_BD.shape == output.context_key_BD.shape == (2, 16)
    assert output.motion_query_BPD.shape == (2, 4, 16)
    assert output.motion_key_BWPD.shape == (2, 3, 4, 16)
    embeddings = (output.context_query_BD, output.context_key_BD, output.motion_query_BPD, output.motion_key_BWPD)
    for embedding in embeddings:
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))
    sum((embedding * torch.randn_like(embedding)).sum() for embedding in embeddings).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_embeddings_keep_the_order_of_windows_and_positions():
    model = PretrainModel(SMALL).eval()
    clip, keyframe, motion = random_inputs(SMALL)
    keys = model(clip, keyframe, motion).motion_key_BWPD
    torch.testing.assert_close(model(clip, keyframe, motion.flip(1)).motion_key_BWPD, keys.flip(1))
    one = model.motion.key_head(model.motion.encoder(motion[1, 2][None])[0, :, 0, 1, 0][None])
    torch.testing.assert_close(keys[1, 2, 2], one[0])  # row 1, column 0 of a 2 x 2 grid


def test_a_head_that_is_off_has_no_parameters_and_no_output():
    clip, keyframe, motion = random_inputs(SMALL)
    context_only = PretrainModel(dataclasses.replace(SMALL, motion_head=False))
    output = context_only(clip, keyframe)
    assert output.motion_query_BPD is output.motion_key_BWPD is None
    assert not any(name.startswith("motion") for name, _ in context_only.named_parameters())
    motion_only = PretrainModel(dataclasses.replace(SMALL, context_head=False))
    output = motion_only(clip, motion_BWCTHW=motion)
    assert output.context_query_BD is output.context_key_BD is None
    assert not any(name.startswith("context") for name, _ in motion_only.named_parameters())


def test_model_requires_the_inputs_of_its_heads():
    model = PretrainModel(SMALL)
    clip, keyframe, motion = random_inputs(SMALL)
    with pytest.raises(ValueError, match="keyframe_B31HW"):
        model(clip, None, motion)
    with pytest.raises(ValueError, match="motion_BWCTHW"):
        model(clip, keyframe)
    with pytest.raises(ValueError, match="motion_BWCTHW: must have shape"):
        model(clip, keyframe, motion[..., :-1])


def test_embeddings_have_unit_length_under_bfloat16_autocast():
    model = PretrainModel(SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*random_inputs(SMALL))
    for embedding in (output.context_query_BD, output.motion_query_BPD, output.motion_key_BWPD):
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))


def test_motion_head_works_with_any_backbone():
    backbone = build_backbone("c3d", width=4)
    head = MotionHead(SMALL, token_channels=backbone.token_channels)
    clip, _, motion = random_inputs(SMALL)
    query, key = head(backbone(clip).tokens_BCTHW, motion)
    assert query.shape == (2, 4, 16)
    assert key.shape == (2, 3, 4, 16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet"),
        ("motion_input", "flow"),
        ("width", 0),
        ("head_hidden", 0),
        ("decoder_layers", 0),
        ("clip_frames", 12),
        ("crop_size", 50),
        ("motion_frames", 9),
        ("predictor_heads", 3),
        ("dropout", 1.0),
        ("encoder_width", 3),
    ],
)
def test_config_errors_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=field) as error:
        ModelConfig(**{field: value})
    assert str(value) in str(error.value)


def test_pretraining_requires_a_head():
    config = TrainConfig(model=ModelConfig(context_head=False, motion_head=False))
    with pytest.raises(ValueError, match=r"context_head, model\.motion_head: at least one"):
        PretrainObjective(config, header=None)


@pytest.mark.parametrize("name", ["r2plus1d_10", "c3d"])
def test_backbones_can_be_exported(name: str) -> None:
    backbone, clip = build_backbone(name, width=8).eval(), torch.randn(1, 3, 8, 32, 32)
    exported = torch.export.export(backbone, (clip,)).module()(clip)
    assert isinstance(exported, BackboneOutput)
    torch.testing.assert_close(exported.pooled_BC, backbone(clip).pooled_BC)
