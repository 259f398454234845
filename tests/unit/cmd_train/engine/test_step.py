from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import Batch
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.optim import build_optimizer, skip_update
from cmd_train.engine.step import CompileError, GradientStep
from cmd_train.losses.outputs import StepOutput
from cmd_train.models.build import build_model

HEADER = ShardHeader(
    config={}, config_hash="", canonical_width=96, canonical_height=80, frame_width=48, frame_height=40, cell_px=8
)
ALONE = RankContext(rank=0, world_size=1, device=torch.device("cpu"))
SIZE = 6


def configured(**changes: object) -> TrainConfig:
    small = {
        "model.width": 8,
        "model.encoder_width": 4,
        "model.crop_size": 32,
        "model.predictor_width": 32,
        "model.embedding_dim": 16,
        "model.head_hidden": 32,
        "model.motion_frames": 4,
        # The paper's prediction of features; directions have tests of their own.
        "loss.motion_target": "features",
        "loss.context_weight": 1.0,
        "sampling.motion_window": "future",
        "sampling.temporal_negatives": 3,
        "augment.rescale_vectors": False,
        "run.channels_last": False,
    }
    return build_config("demo", small | {name.replace("__", "."): value for name, value in changes.items()})


def batch() -> Batch:
    random = torch.Generator().manual_seed(3)

    def draw(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, shape, generator=random, dtype=dtype)

    return Batch(
        clip_u8_BTHWC=draw(0, 256, (SIZE, 8, 40, 48, 3), torch.uint8),
        keyframe_u8_BHWC=draw(0, 256, (SIZE, 80, 96, 3), torch.uint8),
        motion_quarter_px_BWTCHW=draw(-40, 41, (SIZE, 4, 4, 2, 10, 12), torch.int16),
        motion_valid_BWTHW=torch.ones(SIZE, 4, 4, 10, 12, dtype=torch.bool),
        window_valid_BW=torch.ones(SIZE, 4, dtype=torch.bool),
        video_B=torch.arange(SIZE),
        valid_B=torch.ones(SIZE, dtype=torch.bool),
        keys=tuple((0, position) for position in range(SIZE)),
        report=SamplingReport(samples=SIZE),
    )


def whole_clip_batch() -> Batch:
    """One window per sample, as long as the clip's 16 frames."""
    full = batch()
    motion, valid = full.motion_quarter_px_BWTCHW[:, :1], full.motion_valid_BWTHW[:, :1]
    return replace(
        full,
        motion_quarter_px_BWTCHW=motion.repeat(1, 1, 4, 1, 1, 1),
        motion_valid_BWTHW=valid.repeat(1, 1, 4, 1, 1),
        window_valid_BW=full.window_valid_BW[:, :1],
    )


def gradients(config: TrainConfig, steps: int = 1) -> tuple[dict[str, Tensor], float]:
    """Return the gradients of the last step, the network's buffers, and the loss."""
    model = build_model(config.model, seed=config.run.seed)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last_3d)
    step = GradientStep(model, PretrainObjective(config, HEADER), config, ALONE)
    for number in range(steps):
        output, _ = step(batch(), number)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: b.clone() for name, b in model.named_buffers()}, output.loss.item()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backbone", ["r2plus1d_10", "c3d"])
def test_activation_checkpointing_gives_identical_results(backbone: str) -> None:
    plain = gradients(configured(model__backbone=backbone), steps=2)
    recomputed = gradients(configured(model__backbone=backbone, run__activation_checkpointing=True), steps=2)
    assert recomputed[1] == plain[1]
    assert same(recomputed[0], plain[0]), "gradients and BatchNorm statistics"


def test_activation_checkpointing_stores_less() -> None:
    def kept(config: TrainConfig) -> int:
        model = build_model(config.model, seed=config.run.seed)
        objective = PretrainObjective(config, HEADER)
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        class Watched(PretrainObjective):
            def __call__(self, network: nn.Module, part: Batch):  # type: ignore[no-untyped-def] # as in Objective
                with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                    return objective(network, part)

        GradientStep(model, Watched(config, HEADER), config, ALONE)(batch(), 0)
        return total

    assert kept(configured(run__activation_checkpointing=True)) < 0.7 * kept(configured())


def test_channels_last_gives_equal_results_up_to_rounding() -> None:
    plain, last = gradients(configured()), gradients(configured(run__channels_last=True))
    assert last[1] == pytest.approx(plain[1], rel=1e-4)
    grad = last[0]["backbone.trunk.stages.0.0.units.0.spatial.conv.weight"]
    assert grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_micro_batches_accumulate() -> None:
    """Gradients are the mean over micro-batches, and negatives come from the same micro-batch."""
    config = configured(optim__accumulate=3, optim__clip_norm=0.0, model__dropout=0.0)
    model = build_model(config.model, seed=config.run.seed)
    objective = PretrainObjective(config, HEADER)
    output, _ = GradientStep(model, objective, config, ALONE)(batch(), 0)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert output.metrics["context_candidates"] == 2
    alone = replace(config, optim=replace(config.optim, accumulate=1))
    sums: dict[str, Tensor] = {}
    for part in batch().split(3):
        assert len(part) == 2
        other = build_model(alone.model, seed=alone.run.seed)
        GradientStep(other, objective, alone, ALONE)(part, 0)
        for name, parameter in other.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, torch.zeros(())) + parameter.grad / 3
    assert found.keys() == sums.keys()
    # Gradients that are nothing but rounding (of biases before BatchNorm) have no scale of their own.
    largest = max(float(total.abs().max()) for total in sums.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, sums[name], rtol=1e-2, atol=1e-4 * largest)


def test_uneven_parts_keep_every_sample() -> None:
    parts = batch().split(4)
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert torch.equal(torch.cat([part.video_B for part in parts]), batch().video_B)
    assert sum(part.report.samples for part in parts) == SIZE


@pytest.mark.parametrize("target", ["features", "directions"])
def test_masked_samples_count_in_no_loss_metric_or_gradient(target: str) -> None:
    """BatchNorm apart, which is why it does not use the statistics of the batch here."""
    window = {"features": {}, "directions": {"sampling__motion_window": "clip", "sampling__temporal_negatives": 0}}
    config = configured(loss__motion_target=target, **window[target])
    whole = batch() if target == "features" else whole_clip_batch()
    model = build_model(config.model, seed=0).eval()
    objective = PretrainObjective(config, HEADER)

    def results(given: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
        model.zero_grad()
        output = objective(model, given)
        output.loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {name: value.item() for name, value in output.metrics.items()}, found

    fewer = whole.split(3)
    (metrics, gradient), (expected, expected_gradient) = results(masked(whole)), results(_joined(fewer[:2]))
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert gradient.keys() == expected_gradient.keys()
    for name, value in expected_gradient.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-3, atol=1e-5, msg=name)


def masked(whole: Batch) -> Batch:
    """The last two samples are copies that stand in for damaged ones."""
    valid_B = torch.tensor([True] * 4 + [False] * 2)
    rows = torch.tensor([0, 1, 2, 3, 0, 1])
    return replace(
        whole,
        clip_u8_BTHWC=whole.clip_u8_BTHWC[rows],
        keyframe_u8_BHWC=whole.keyframe_u8_BHWC[rows],
        motion_quarter_px_BWTCHW=whole.motion_quarter_px_BWTCHW * valid_B.view(-1, 1, 1, 1, 1, 1),
        motion_valid_BWTHW=whole.motion_valid_BWTHW & valid_B.view(-1, 1, 1, 1, 1),
        window_valid_BW=whole.window_valid_BW & valid_B[:, None],
        valid_B=valid_B,
        keys=tuple(whole.keys[row] for row in rows),
    )


def _joined(parts: list[Batch]) -> Batch:
    tensors = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Batch)}
    joined = {name: torch.cat(values) for name, values in tensors.items() if isinstance(values[0], Tensor)}
    return replace(parts[0], **joined, keys=tuple(key for part in parts for key in part.keys))


def test_a_failing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: object, inputs: object) -> object:
        raise OSError("no compiler here")

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: plain_compile(model, backend=backend))
    with pytest.raises(CompileError, match=r"torch.compile failed: .*no compiler here.*use --set run.compile=false"):
        gradients(configured(run__compile=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("target", ["features", "directions"])
def test_the_network_is_compiled_without_graph_breaks(target: str) -> None:
    changes: dict[str, object] = {"loss__motion_target": target}
    if target == "directions":
        changes |= {"sampling__motion_window": "clip", "sampling__temporal_negatives": 0}
    config = configured(**changes)
    model, inputs = build_model(config.model, seed=0), {}

    def objective(network: nn.Module, part: Batch) -> StepOutput:
        return PretrainObjective(config, HEADER)(Spy(network), part)

    class Spy(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *arguments: Tensor) -> object:
            inputs["arguments"] = arguments
            return self.network(*arguments)

    windows = batch() if target == "features" else whole_clip_batch()
    GradientStep(model, objective, config, ALONE)(windows, 0)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(*inputs["arguments"])
    torch._dynamo.reset()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


def test_compiled_model_gives_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_compile, used = torch.compile, []

    def compiled(model: nn.Module) -> object:
        used.append(model)
        return plain_compile(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compiled)
    found = gradients(configured(run__compile=True))
    assert used
    plain = gradients(configured())
    assert found[1] == pytest.approx(plain[1], rel=1e-5)
    assert found[0].keys() == plain[0].keys()
    torch._dynamo.reset()


def test_without_a_cpp_compiler_the_error_says_so() -> None:
    """Inductor, the default backend, generates C++ for CPUs and fails only when it compiles it."""
    import torch._inductor.config as inductor

    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))

    def objective(network: nn.Module, part: Batch) -> StepOutput:
        loss = network(torch.arange(10.0).reshape(2, 5) / 10).square().mean()
        return StepOutput(loss=loss, metrics={"loss": loss.detach()})

    step = GradientStep(model, objective, configured(run__compile=True), ALONE)
    torch._dynamo.reset()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(CompileError, match="No working C\\+\\+ compiler"),
    ):
        step(batch(), 0)
    torch._dynamo.reset()


def test_compilation_and_activation_checkpointing_are_exclusive() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing"):
        configured(run__compile=True, run__activation_checkpointing=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_update_can_be_skipped(optimizer: str) -> None:
    def trained(broken_at: int | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(7, 5)
        update = build_optimizer(model, configured(optim__optimizer=optimizer).optim)
        for step in range(4):
            update.zero_grad()
            broken = step == broken_at
            (model(torch.ones(2, 7)).square().sum() * (torch.nan if broken else 1.0)).backward()
            skip_update(update, torch.tensor(float(broken)))
            if broken_at is None and step == 3:
                break
            update.step()
        return [p.detach().clone() for p in model.parameters()]

    for skipped, plain in zip(trained(broken_at=1), trained(broken_at=None), strict=True):
        assert torch.equal(skipped, plain), "as if the broken step had not been taken"
