"""A real Slurm cluster with several virtual nodes on this machine, for tests: munge, slurmctld and one slurmd per node.

All files are in one folder and all daemons listen on loopback only; /etc, systemd and cgroups are not used. Requires
Debian's ``slurm-wlm`` and ``munge``, and root: each slurmd has its own mount namespace, so that node names resolve
inside jobs. Every daemon runs in its own session and is stopped by its process ID.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "unshare")
_SBIN = "/usr/sbin:/sbin"  # location of Debian's daemons, not on every user's PATH
_UP_SECONDS = 60.0
_DOWN_SECONDS = 20.0
_COMMAND_SECONDS = 30.0

_CONFIGURATION = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=3600
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 State=UNKNOWN\n"


def search_path() -> str:
    """Return the PATH for programs, starting with the folder of this Python and the project's commands."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{_SBIN}"


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    """Wait until ``condition`` holds.

    Raises:
        TimeoutError: it does not hold within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: timed out after {seconds:g} s")
        time.sleep(every)


class SlurmCluster:
    """Slurm cluster on loopback, a context manager.

    Args:
        root: existing empty folder with a short path, since it contains sockets.
        nodes: number of virtual nodes, named n1, n2, ...
        cpus: number of cores per node.
    """

    def __init__(self, root: Path, *, nodes: int = 2, cpus: int = 2) -> None:
        self.root = root
        self.node_names = [f"n{i}" for i in range(1, nodes + 1)]
        self._cpus = cpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # Unique to this cluster: processes with it in their environment belong to the test.
        self.mark = f"SLURM_CONF={root / 'slurm.conf'}"
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environ = outer | {"SLURM_CONF": str(root / "slurm.conf"), "PATH": search_path()}

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self, *arguments: object) -> str:
        """Run a command in the environment of this cluster and return its standard output.

        Raises:
            RuntimeError: the command failed; the message contains its output.
        """
        done = subprocess.run(
            [str(a) for a in arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def sbatch(self, *arguments: object) -> str:
        """Submit a job and return its ID."""
        return self.command("sbatch", "--parsable", *arguments).strip().partition(";")[0]

    def queued(self, job: str | None = None) -> list[str]:
        """Return the IDs (``7`` or ``7_0``) of jobs and array tasks that have not ended."""
        lines = self.command("squeue", "--noheader", "--array", "--format", "%i %F").splitlines()
        return [name for name, number in map(str.split, lines) if job in (None, name, number)]

    def wait(self, job: str, seconds: float) -> None:
        """Wait until a job, or all tasks of an array, have left the queue."""
        try:
            wait_until(lambda: not self.queued(job), seconds, f"job {job}", every=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.command('squeue', '--array')}{self.logs()}") from None

    def job(self, job: str) -> dict[str, str]:
        """Return the fields of ``scontrol show job``: ``JobState``, ``Restarts``, ``ExitCode``, ..."""
        text = self.command("scontrol", "--oneliner", "show", "job", job)
        return dict(word.partition("=")[::2] for word in text.split())

    def processes(self, *marks: str) -> dict[int, str]:
        """Return ID and command line of the processes that have this cluster and ``marks`` in their environment."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            # The process may end at any time.
            with contextlib.suppress(OSError):
                variables = set((folder / "environ").read_bytes().split(b"\0"))
                if {m.encode() for m in (self.mark, *marks)} <= variables:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def stop(self) -> None:
        """Cancel all jobs and stop the daemons.

        Raises:
            RuntimeError: processes were still running and had to be killed.
        """
        if "slurmctld" in self._daemons:
            with contextlib.suppress(RuntimeError, TimeoutError, subprocess.TimeoutExpired):
                self.command("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
                wait_until(lambda: not self.queued(), _DOWN_SECONDS, "scancel")
        for name in [n for n in (*self.node_names, "slurmctld", "munged") if n in self._daemons]:
            self._terminate(self._daemons.pop(name))
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.processes(), 5.0, "exit of all processes")
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left:
            raise RuntimeError(f"processes of the test were still running: {left}")

    def logs(self) -> str:
        """Return the last part of each daemon's log."""
        files = sorted((self.root / "log").iterdir())
        return "".join(f"--- {f.name}\n{f.read_text(errors='replace')[-2000:]}\n" for f in files)

    def _start(self) -> None:
        root = self.root
        for name in ("run", "log", "state", "spool"):
            (root / name).mkdir()
        host, ports = socket.gethostname().partition(".")[0], _free_ports(len(self.node_names) + 1)
        user = pwd.getpwuid(os.geteuid()).pw_name
        nodes = [
            _NODE.format(name=n, host=host, port=p, cpus=self._cpus)
            for n, p in zip(self.node_names, ports[1:], strict=True)
        ]
        text = _CONFIGURATION.format(host=host, port=ports[0], user=user, root=root)
        before, partition, after = text.partition("PartitionName=main")
        (root / "slurm.conf").write_text(before + "".join(nodes) + partition + after)
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {n}\n" for n in self.node_names)
        (root / "hosts").write_text(hosts)
        key = root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        run, log = root / "run", root / "log"
        files = [f"--key-file={key}", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"]
        files += [f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed"]
        self._spawn("munged", "munged", "--foreground", *files)
        self._wait_until(lambda: (run / "munge.sock").exists(), "munged")
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        for name in self.node_names:
            mount = f"mount --bind '{root}/hosts' /etc/hosts && exec slurmd -D -N {name}"
            self._spawn(name, "unshare", "--mount", "--propagation", "private", "sh", "-c", mount)
        self._wait_until(self._is_up, "slurm")

    def _is_up(self) -> bool:
        with contextlib.suppress(RuntimeError):
            idle = self.command("sinfo", "--noheader", "--Node", "--states", "idle", "--format", "%N").split()
            return set(idle) == set(self.node_names)
        return False

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        def up_or_dead() -> bool:
            return condition() or any(d.poll() is not None for d in self._daemons.values())

        with contextlib.suppress(TimeoutError):
            wait_until(up_or_dead, _UP_SECONDS, what)
        if not condition():
            raise RuntimeError(f"{what} did not start\n{self.logs()}")

    def _spawn(self, name: str, *command: str) -> None:
        with (self.root / "log" / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environ,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @staticmethod
    def _terminate(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        try:
            daemon.wait(_DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(_DOWN_SECONDS)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
