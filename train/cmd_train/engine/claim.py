"""Claim on a run folder, so that two runs never train in it at the same time; see ``cmd_extract.system.claims``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cmd_extract.system.claims import Claim, Claims, Owner
from cmd_extract.system.liveness import STALE_SECONDS
from cmd_train.checkpoints.files import CheckpointError
from cmd_train.distributed.process_group import RankContext, gather_texts

_NAME = "training"
_POLL_SECONDS = 5.0


@contextmanager
def claim_run(
    run_dir: Path, context: RankContext, log: Callable[[str], None], *, stale_seconds: float = STALE_SECONDS
) -> Iterator[None]:
    """Claim a run folder for the duration of the ``with`` block; a collective operation.

    The claim of a process that has ended is taken over: on this host, or in an earlier start of the same job, at once;
    on another host after ``stale_seconds`` without a heartbeat.

    Raises:
        CheckpointError: another run trains in the folder.
    """
    with ExitStack() as stack:
        refusal = ""
        if context.is_main:
            claims = Claims(out=run_dir, stale_seconds=stale_seconds)
            stack.callback(_remove_empty, claims.folder, run_dir)
            refusal = _hold(stack, claims, log)
        if refused := gather_texts(refusal, context)[0]:
            raise CheckpointError(refused)
        yield


def _hold(stack: ExitStack, claims: Claims, log: Callable[[str], None]) -> str:
    """Hold the claim until the stack is closed; return the reason if another run does."""
    claims.out.mkdir(parents=True, exist_ok=True)
    age = -1.0
    while not stack.enter_context(claims.hold(_NAME)):
        claim = claims.read(_NAME)
        if claim is None:
            continue
        if _on_this_host(claim) or claim.age_seconds < age:
            who = f"process {claim.owner.pid} on {claim.owner.host}" if claim.owner else "another process"
            return f"{claims.out}: {who} trains in this folder; wait until it has ended, or choose another folder"
        if age < 0:
            log(f"{claims.out}: claimed by a run on another host; waiting for a heartbeat or for its claim to expire")
        age = claim.age_seconds
        time.sleep(min(_POLL_SECONDS, claims.stale_seconds / 10))
    return ""


def _on_this_host(claim: Claim) -> bool:
    return claim.owner is not None and claim.owner.machine == Owner.current().machine


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):  # not empty
        for folder in folders:
            folder.rmdir()
