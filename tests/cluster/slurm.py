"""A real Slurm with several virtual nodes on this machine, for tests: munge, slurmctld and one slurmd a node.

Everything lies under one folder and listens on loopback only; nothing in /etc is read or written, no systemd, no
cgroups. It needs Debian's ``slurm-wlm`` and ``munge`` and root (each slurmd gets a mount namespace, so that node names
resolve inside jobs). Every daemon is started in a session of its own and stopped by its process id.
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
_SBIN = "/usr/sbin:/sbin"  # not on every user's path; Debian's daemons lie there
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
    """Where programs are looked for: first beside this Python, where the project's commands are."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{_SBIN}"


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    """Waits for ``condition`` to hold, at most ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)


class SlurmCluster:
    """Slurm on loopback; use as a context manager.

    Args:
        root: an existing empty folder with a short path (sockets lie in it).
        nodes: virtual nodes, named n1, n2, ...
        cpus: cores that each node claims to have.
    """

    def __init__(self, root: Path, *, nodes: int = 2, cpus: int = 2) -> None:
        self.root = root
        self.node_names = [f"n{i}" for i in range(1, nodes + 1)]
        self._cpus = cpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # Of this cluster alone: whatever carries it in its environment belongs to the test.
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
        """Runs a command of Slurm, or any other one that is to see this Slurm, and returns what it prints.

        Raises:
            RuntimeError: it failed; with what it said.
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
        """Submits a job and returns its id."""
        return self.command("sbatch", "--parsable", *arguments).strip().partition(";")[0]

    def queued(self, job: str | None = None) -> list[str]:
        """Ids (``7`` or ``7_0``) of jobs and array tasks that have not ended."""
        lines = self.command("squeue", "--noheader", "--array", "--format", "%i %F").splitlines()
        return [name for name, number in map(str.split, lines) if job in (None, name, number)]

    def wait(self, job: str, seconds: float) -> None:
        """Waits until a job, or all tasks of an array, have left the queue."""
        try:
            wait_until(lambda: not self.queued(job), seconds, f"job {job}", every=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.command('squeue', '--array')}{self.logs()}") from None

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says: ``JobState``, ``Restarts``, ``ExitCode``, ..."""
        text = self.command("scontrol", "--oneliner", "show", "job", job)
        return dict(word.partition("=")[::2] for word in text.split())

    def processes(self, *marks: str) -> dict[int, str]:
        """Number and command line of live processes that carry this cluster, and ``marks``, in their environment."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            # It may end while it is looked at.
            with contextlib.suppress(OSError):
                variables = set((folder / "environ").read_bytes().split(b"\0"))
                if {m.encode() for m in (self.mark, *marks)} <= variables:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons.

        Raises:
            RuntimeError: processes were left, which have now been killed.
        """
        if "slurmctld" in self._daemons:
            with contextlib.suppress(RuntimeError, TimeoutError, subprocess.TimeoutExpired):
                self.command("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
                wait_until(lambda: not self.queued(), _DOWN_SECONDS, "scancel")
        for name in [n for n in (*self.node_names, "slurmctld", "munged") if n in self._daemons]:
            self._end(self._daemons.pop(name))
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.processes(), 5.0, "the end of all processes")
        left = self.processes()
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if left:
            raise RuntimeError(f"processes of the test survived: {left}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
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
        def settled() -> bool:
            return condition() or any(d.poll() is not None for d in self._daemons.values())

        with contextlib.suppress(TimeoutError):
            wait_until(settled, _UP_SECONDS, what)
        if not condition():
            raise RuntimeError(f"{what} did not come up\n{self.logs()}")

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
    def _end(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        try:
            daemon.wait(_DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(_DOWN_SECONDS)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
