"""A Slurm cluster of several nodes on this one machine: real daemons, gone when the test is.

Everything lives in Linux namespaces below one process, the cluster's init. It has its
own network (so no other program uses the addresses and ports below), process ids and mounts; each
node is another such set inside, joined to the others by a bridge. When init ends, and it ends with
its starter, the kernel removes every daemon, job, network link and mount.

Needs root and the Debian packages in ``PACKAGES``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aent.runtime.children import Child, stop_all

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
NAMESPACES = ["unshare", "--net", "--uts", "--mount", "--pid", "--mount-proc"]
NAMESPACES += ["--fork", "--kill-child", "bash", "-c"]  # and the script to run there
START_S = 300.0  # a loaded machine; three seconds on an idle one
POLL_S = 0.1
NETWORK = "10.77.0"
CONTROL = f"{NETWORK}.254"

# cred_expire is also how long a requeued job waits (two minutes by default); the scheduler looks at
# its queue every other second, not every minute; a node that is silent for twenty seconds is down;
# a loaded machine has twice the usual time to tell MLflow of a cancelled job (KillWait);
# what became of a job is not forgotten for a day (after five minutes by default; 0 would mean two
# seconds in this version of Slurm, and never only in later ones)
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=control({control})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SlurmdTimeout=20
KillWait=60
MinJobAge=86400
MpiDefault=none
MailProg=/bin/true
DebugFlags=NO_CONF_HASH
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=batch Nodes={all} Default=YES MaxTime=INFINITE State=UP
PartitionName=grace Nodes={all} GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={all} PriorityTier=2 MaxTime=INFINITE State=UP
PartitionName=bound Nodes=node{bound} MaxTime=INFINITE State=UP
"""
CORES = len(os.sched_getaffinity(0))  # that this machine has for the node whose tasks are bound


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "not root (namespaces and the network bridge need it)"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found (apt install {' '.join(PACKAGES)})"
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass
class Cluster:
    """Made by ``running``. Beside its nodes there is one, number ``nodes``, in the partition
    ``bound``, that has this machine's real cores and binds each task to its own of them."""

    folder: Path
    nodes: int
    gpus: int  # of each node: device files that nothing can compute on
    plugins: str = ""  # lines of plugstack.conf
    init: Child = field(init=False)
    machines: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(
        self, *argv: str, cwd: Path = Path("/"), check: bool = True, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in folder ``cwd`` of the cluster's login node; its output is captured."""
        inside = self._inside(f"--wd={cwd}", *argv)
        done = subprocess.run(inside, capture_output=True, text=True, timeout=timeout_s)
        assert not (check and done.returncode), f"{argv}: {done.stderr}{done.stdout}"
        return done

    def submit(self, *argv: str, cwd: Path = Path("/")) -> str:
        """``sbatch --parsable`` with these arguments; the job's number."""
        return self.run("sbatch", "--parsable", *argv, cwd=cwd).stdout.strip().split(";")[0]

    def state(self, job: str) -> str:
        """A word such as RUNNING (of a heterogeneous job, its first component's)."""
        return self.show(job)["JobState"]

    def show(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``, by name."""
        line = self.run("scontrol", "--oneliner", "show", "job", job).stdout.splitlines()[0]
        return dict(part.split("=", 1) for part in line.split() if "=" in part)

    def power_off(self, node: int) -> None:
        """End a node and all that runs on it at once, as a lost power supply would."""
        machine = self.machines.pop(node)
        psutil.Process(machine.pid).children(recursive=True)[1].kill()  # the node's init
        machine.wait(60)

    def power_on(self, node: int) -> None:
        """Start a node; it is idle some moments later."""
        name, log = f"node{node}", (self.folder / f"node{node}.out").open("ab")
        script = f"""set -e
hostname {name}
mount -t tmpfs -o size=2g tmpfs /dev/shm
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add {self.address(node)}/24 dev eth0
ip link set eth0 up
exec slurmd -D -N {name} -f {self.conf(node)}"""
        machine = subprocess.Popen(
            self._inside(*NAMESPACES, script),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        self.machines[node] = machine
        deadline = time.monotonic() + START_S
        while not (inits := psutil.Process(machine.pid).children(recursive=True)[1:]):
            assert machine.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)
        # the peer of a link is named by the process id as the cluster counts them
        inside = Path(f"/proc/{inits[0].pid}/status").read_text().split("NSpid:")[1].split("\n")[0]
        pid = inside.split()[-2]
        self.run(*f"ip link add v{node} type veth peer name eth0 netns {pid}".split())
        self.run(*f"ip link set v{node} master bridge up".split())

    def conf(self, node: int) -> Path:
        return self.folder / ("bound.conf" if node == self.nodes else "slurm.conf")

    def address(self, node: int) -> str:
        return f"{NETWORK}.{10 + node}"

    def logs(self) -> str:
        """The daemons' last lines, for the message of a failed test."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')[-1500:]}" for f in files)

    def _inside(self, *argv: str) -> list[str]:
        (child,) = psutil.Process(self.init.process.pid).children()
        return ["nsenter", f"--target={child.pid}", "--mount", "--net", "--uts", "--pid", *argv]

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)  # ordinary users read the configuration
        for name in ("munge", "spool", "state"):
            (folder / name).mkdir(mode=0o755)
        for gpu in range(self.gpus):
            os.mknod(folder / f"gpu{gpu}", 0o20666, os.makedev(1, 3))
        names = [f"node{n}" for n in range(self.nodes + 1)]
        everyone = f"node[0-{self.nodes - 1}]"
        conf = SLURM_CONF.format(folder=folder, control=CONTROL, all=everyone, bound=self.nodes)
        for n, name in enumerate(names):
            has = f"CPUs=8 Gres=gpu:{self.gpus}" if n < self.nodes else f"CPUs={CORES}"
            address = self.address(n)
            conf += f"NodeName={name} NodeAddr={address} {has} RealMemory=4000 State=UNKNOWN\n"
        (folder / "slurm.conf").write_text(conf)
        bound = conf.replace("TaskPlugin=task/none", "TaskPlugin=task/affinity")
        (folder / "bound.conf").write_text(bound)
        (folder / "gres.conf").write_text(
            f"NodeName=node[0-{self.nodes - 1}] Name=gpu File={folder}/gpu[0-{self.gpus - 1}]\n"
        )
        (folder / "plugstack.conf").write_text(self.plugins)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = [f"{CONTROL} control", *(f"{self.address(n)} {x}" for n, x in enumerate(names))]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts]) + "\n")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        script = f"""set -e
hostname control
mount --bind {folder}/hosts /etc/hosts
ip link set lo up
ip link add bridge type bridge
ip addr add {CONTROL}/24 dev bridge
ip link set bridge up
munged --force --socket={folder}/munge/socket --key-file={folder}/munge/key \
  --pid-file={folder}/munge/pid --log-file={folder}/munge.log --seed-file={folder}/munge/seed
exec slurmctld -D"""
        self.init = Child.start(
            "cluster",
            [*NAMESPACES, script],
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
            log_path=folder / "init.out",
        )
        self._wait_for(lambda: self.run("scontrol", "ping", check=False).returncode == 0)
        for node in range(self.nodes + 1):
            self.power_on(node)
        self.wait_until_idle()

    def on_node(self, node: int, *argv: str) -> None:
        """Run a command on a node, as its administrator would."""
        (init,) = psutil.Process(self.machines[node].pid).children(recursive=True)[1:2]
        inside = ["nsenter", f"--target={init.pid}", "--mount", "--net", "--uts", "--pid"]
        subprocess.run([*inside, *argv], check=True, timeout=300)

    def wait_until_idle(self) -> None:
        """Return when every node waits for work."""
        self._wait_for(self._idle)

    def _idle(self) -> bool:
        partitions = "--partition=batch,bound"
        answer = self.run("sinfo", "--noheader", "--Node", "--states=idle", partitions, check=False)
        return len(answer.stdout.split("\n")) - 1 == self.nodes + 1

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self.init.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            with contextlib.suppress(ValueError):  # the first moments: init has no child yet
                if condition():
                    return
            time.sleep(POLL_S)


@contextmanager
def running(folder: Path, nodes: int, gpus: int = 4, plugins: str = "") -> Iterator[Cluster]:
    """A cluster whose nodes are idle; ``folder`` must exist, its path short and without spaces."""
    cluster = Cluster(folder, nodes, gpus, plugins)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        cluster._start()
        yield cluster
    finally:
        stop_all([cluster.init], 0.1)
        for machine in cluster.machines.values():
            machine.wait(60)
        del os.environ["SLURM_CONF"]
