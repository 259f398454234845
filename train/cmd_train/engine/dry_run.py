"""Dry run: checks settings and data and reports what a run would do, without writing a file or taking a step."""

from __future__ import annotations

from dataclasses import replace

from cmd_train.data.sampling_report import SamplingReport
from cmd_train.engine.loop import TrainingResult
from cmd_train.engine.setup import TrainingTask, batch_dataset, prepare_run

_OPTIMIZER_TENSORS = {"sgd": 1, "adamw": 2}  # each of the size of the parameters


def perform_dry_run(task: TrainingTask) -> TrainingResult:
    """Do what ``cmd_train.engine.loop.train`` does before its first step, read one batch, and report the run.

    Errors are those of ``train``; the objective, the progress display and the deadline are not used.
    """
    start, config, log = prepare_run(task), task.config, task.log
    sampler = start.sampler
    log(
        f"steps       {sampler.total_steps}: {config.optim.epochs} epochs of {sampler.steps_per_epoch} steps, "
        f"{config.optim.batch_size} samples per step; processes: {task.context.world_size}"
    )
    _log_sizes(task)
    if start.resumed.step == sampler.total_steps:
        log("All steps are completed")
    else:
        remaining = replace(sampler, first_step=start.resumed.step)
        batch = batch_dataset(task)[next(iter(remaining))]
        start.damage.update(batch.unpack(), start.resumed.step, task.context)
        log(f"next batch  {batch.block.nbytes / 1e6:.1f} MB, read successfully; data.workers: {config.data.workers}")
        log(batch.report.text())
    log("Dry run: nothing was written")
    return TrainingResult(steps=start.resumed.step, finished=False, report=SamplingReport(), metrics={})


def _log_sizes(task: TrainingTask) -> None:
    model, config, log = task.model, task.config, task.log
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(t.nbytes for t in model.state_dict().values())
    state = _OPTIMIZER_TENSORS[config.optim.optimizer] * sum(p.nbytes for p in trainable)
    log(f"network     {sum(p.numel() for p in trainable) / 1e6:.2f} million parameters")
    kept = f"{task.run_dir} keeps the newest {config.run.keep_checkpoints} and the best"
    if config.run.milestone_epochs:
        kept += f", and one every {config.run.milestone_epochs} epochs"
    log(f"checkpoint  about {(weights + state) / 1e6:.1f} MB each; {kept}")
