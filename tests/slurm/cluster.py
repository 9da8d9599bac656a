"""A SLURM of two nodes on this machine, for tests: no systemd, no control groups, no accounting. Needs root.

python tests/slurm/cluster.py start FOLDER     # prints what to export
python tests/slurm/cluster.py stop FOLDER
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
#: main gives a preempted job so many seconds; urgent preempts it.
GRACE = 20

CONF = """
ClusterName=fluvial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
MinJobAge=600
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE
"""


def reason_without() -> str | None:
    """Return why there can be no cluster here, ``None`` if there can."""
    missing = [p for p in PROGRAMS if shutil.which(p) is None]
    if missing:
        return f"no SLURM here: {', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons have to be started by root"


class Cluster:
    """Daemons that live in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Write the configuration, start the daemons, wait until both nodes are idle."""
        for name in ("state", *(f"spool.{n}" for n in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        control, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10 // len(NODES)
        lines = [
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs=8 RealMemory={memory} Gres=gpu:2"
            for n, p in zip(NODES, ports, strict=True)
        ]
        text = CONF.format(host=host, port=control, folder=self.folder, nodes="\n".join(lines), grace=GRACE)
        self.conf.write_text(text)
        (self.folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null,/dev/zero\n")
        here = self.folder
        self._run(
            "munged", "--force", f"--key-file={key}", f"--socket={here}/munge.socket", f"--log-file={here}/munged.log",
            f"--pid-file={here}/munged.pid", f"--seed-file={here}/munged.seed",
        )  # fmt: skip
        self._run("slurmctld", "-c", "-f", str(self.conf))
        for node in NODES:
            self._run("slurmd", "-c", "-N", node, "-f", str(self.conf))
        for _ in range(100):
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-p", "main", "-o", "%t"],
                env=os.environ | self.environment,
                capture_output=True,
                text=True,
            )
            if done.stdout.split() == ["idle"] * len(NODES):
                return
            time.sleep(0.3)
        raise RuntimeError(f"the nodes are not idle: {done.stdout}{done.stderr}; see the logs in {here}")

    def stop(self) -> None:
        """End jobs and daemons."""
        environment = os.environ | self.environment
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--me"], env=environment, timeout=10, check=False)
        time.sleep(1)
        processes = []
        for path in self.folder.glob("*.pid"):
            with contextlib.suppress(ValueError, ProcessLookupError, FileNotFoundError):
                process = int(path.read_text())
                os.kill(process, signal.SIGTERM)
                processes.append(process)
        end = time.monotonic() + 10
        while any(map(_alive, processes)) and time.monotonic() < end:
            time.sleep(0.1)
        for process in filter(_alive, processes):
            os.kill(process, signal.SIGKILL)

    def _run(self, *command: str) -> None:
        environment = os.environ | self.environment | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return not _zombie(process)


def _zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    what, where = sys.argv[1:]
    cluster = Cluster(Path(where))
    if what == "start":
        cluster.start()
        sys.stdout.write(f"export SLURM_CONF={cluster.conf}\n")
    else:
        cluster.stop()
