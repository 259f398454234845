from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cmd_extract.schema import ShardHeader
from cmd_train.config import TrainConfig, build_config
from cmd_train.data.batch import Batch
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.optim import build_optimizer
from cmd_train.engine.step import GradientStep
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
        keys=tuple((0, position) for position in range(SIZE)),
        report=SamplingReport(samples=SIZE),
    )


def gradients(config: TrainConfig, log: list[str] | None = None, steps: int = 1) -> tuple[dict[str, Tensor], float]:
    """Return the gradients of the last step, the network's buffers, and the loss."""
    model = build_model(config.model, seed=config.run.seed)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last_3d)
    lines: list[str] = [] if log is None else log
    step = GradientStep(model, PretrainObjective(config, HEADER), config, ALONE, lines.append)
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

        GradientStep(model, Watched(config, HEADER), config, ALONE, print)(batch(), 0)
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
    output, _ = GradientStep(model, objective, config, ALONE, print)(batch(), 0)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert output.metrics["context_candidates"] == 2
    alone = replace(config, optim=replace(config.optim, accumulate=1))
    sums: dict[str, Tensor] = {}
    for part in batch().split(3):
        assert len(part) == 2
        other = build_model(alone.model, seed=alone.run.seed)
        GradientStep(other, objective, alone, ALONE, print)(part, 0)
        for name, parameter in other.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, torch.zeros(())) + parameter.grad / 3
    assert found.keys() == sums.keys()
    # Gradients that are nothing but rounding (of biases before BatchNorm) have no scale of their own.
    largest = max(float(total.abs().max()) for total in sums.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, sums[name], rtol=1e-2, atol=1e-4 * largest)


def test_uneven_parts_keep_every_sample() -> None:
    parts = replace(batch(), rank_sizes=(6, 5)).split(4)
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert [part.rank_sizes for part in parts] == [(2, 2), (2, 1), (1, 1), (1, 1)]
    assert torch.equal(torch.cat([part.video_B for part in parts]), batch().video_B)
    assert sum(part.report.samples for part in parts) == SIZE


def test_a_failing_compiler_is_told_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: object, inputs: object) -> object:
        raise OSError("no compiler here")

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: plain_compile(model, backend=backend))
    log: list[str] = []
    found = gradients(configured(run__compile=True), log, steps=2)
    (warning,) = log
    assert warning.startswith("Warning: torch.compile failed, continuing without it")
    assert "no compiler here" in warning
    plain = gradients(configured(), steps=2)
    assert found[1] == plain[1]
    assert same(found[0], plain[0])
    torch._dynamo.reset()


def test_compiled_model_gives_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_compile, used = torch.compile, []

    def compiled(model: nn.Module) -> object:
        used.append(model)
        return plain_compile(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compiled)
    log: list[str] = []
    found = gradients(configured(run__compile=True), log)
    assert used
    assert not log
    plain = gradients(configured())
    assert found[1] == pytest.approx(plain[1], rel=1e-5)
    assert found[0].keys() == plain[0].keys()
    torch._dynamo.reset()


def small_step(log: list[str], *, compiled: bool) -> tuple[float, Tensor]:
    """Take one step of a network small enough for Inductor to be fast; return its loss and a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))

    def objective(network: nn.Module, part: Batch) -> StepOutput:
        loss = network(torch.arange(10.0).reshape(2, 5) / 10).square().mean()
        return StepOutput(loss=loss, metrics={"loss": loss.detach()})

    output, _ = GradientStep(model, objective, configured(run__compile=compiled), ALONE, log.append)(batch(), 0)
    assert model[0].weight.grad is not None
    return float(output.metrics["loss"]), model[0].weight.grad


def test_training_continues_without_a_cpp_compiler() -> None:
    """Inductor, the default backend, generates C++ for CPUs and fails only when it compiles it."""
    import torch._inductor.config as inductor

    log: list[str] = []
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        loss, gradient = small_step(log, compiled=True)
    torch._dynamo.reset()
    (warning,) = log
    assert warning.startswith("Warning: torch.compile failed, continuing without it")
    assert "No working C++ compiler" in warning
    plain_loss, plain_gradient = small_step([], compiled=False)
    assert loss == plain_loss
    assert torch.equal(gradient, plain_gradient)


def test_compilation_and_activation_checkpointing_are_exclusive() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing"):
        configured(run__compile=True, run__activation_checkpointing=True)


def test_error_of_the_objective_is_not_hidden_by_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)
    config = configured(run__compile=True)

    def broken(model: nn.Module, part: Batch):  # type: ignore[no-untyped-def] # as in Objective
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        GradientStep(build_model(config.model, seed=config.run.seed), broken, config, ALONE, print)(batch(), 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fused_updates_are_equal_up_to_rounding(optimizer: str) -> None:
    def trained(fused: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(7, 5)
        config = configured(optim__optimizer=optimizer, optim__fused=fused).optim
        update = build_optimizer(model, config)
        assert update.param_groups[0]["fused"] is fused
        for _ in range(5):
            update.zero_grad()
            model(torch.ones(2, 7)).square().sum().backward()
            update.step()
        return model.weight.detach()

    torch.testing.assert_close(trained(True), trained(False))
