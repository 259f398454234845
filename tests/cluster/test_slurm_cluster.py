"""The Slurm cluster that the other tests in this folder use."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.slurm import SlurmCluster


def test_job_on_two_nodes_resolves_their_names(slurm: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsrun --label sh -c 'echo $SLURMD_NODENAME; getent hosts n1 n2'\n")
    job = slurm.sbatch("--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/log", script)
    slurm.wait(job, 60)
    assert slurm.job(job)["JobState"] == "COMPLETED"
    lines = (tmp_path / "log").read_text().splitlines()
    assert len({line.split()[-1] for line in lines if line.split()[-1] in slurm.node_names}) == 2
    assert sum("127.0.0.1" in line for line in lines) == 4
