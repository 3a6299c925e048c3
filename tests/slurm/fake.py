"""Programs of Slurm that stand in for the real ones where the batch script's own logic is tested:
what it tells srun, what a task would see of its environment, when it asks for a requeue.

What only a real Slurm shows is tested on one (``slurm.cluster``).
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from slurm.conftest import SLURM
from waiting import PATIENCE_S

# srun notes the step, its flags and command, and what of the environment its tasks get (--export);
# then the step does what the shell variable of its name says
SRUN = r"""
flags=() all=${SLURM_EXPORT_ENV:-ALL}
while [[ ${1:-} == -* ]]; do
  flags+=("$1")
  case $1 in --export=*) all=${1#*=} ;; esac
  shift
done
step=$(printf '%s\n' "$@" | sed -n 's/^aent\.\(slurm\|launch\)\.//p' | sed -n 1p)
: "${step:=$1}" # another program
{
  printf 'flag %s\n' "${flags[@]}"
  printf 'command %s\n' "$*"
  if [ "$all" = ALL ]; then env; else env | grep ^SLURM_; fi
} >"$FAKE/steps/.$step"
mv "$FAKE/steps/.$step" "$FAKE/steps/$step"
case $step in
  prepare)
    mkdir -p "$RUN_DIR/logs" "$RUN_DIR/heartbeats"
    printf "%s\n" FINISHED= MODEL_PATH=/m DISK_GIB=7.5 RANKS=4 RANKS_PER_NODE=2 ENGINES=1 \
      ENGINE_NODES=1 ENGINES_PER_NODE=1 FIRST_ENGINE_GPU=2 'export HF_HUB_OFFLINE=1' \
      >"$RUN_DIR/job.env"
    exit "${PREPARE:-0}" ;;
  serve) exec sleep 600 ;;
  watch) # srun kills its tasks when it gets a TERM, but not those of a job that is being cancelled
    trap '[ "$(cat "$FAKE/state")" = COMPLETING ] || exit 143' TERM
    while [ ! -e "$RUN_DIR/verdict" ]; do sleep .05; done ;;
  rank)
    # the batch script kills the other steps when the ranks have ended
    until [ -e "$FAKE/steps/watch" ] && [ -e "$FAKE/steps/serve" ]; do sleep .02; done
    eval "${RANKS_DO:-true}" ;;
esac
"""
SCONTROL = r"""
case "$*" in
  "show hostnames"*) # one of the first commands of the script, which waits here if it is asked to
    if [ -n "${HELD:-}" ]; then touch "$FAKE/held"; until [ -e "$FAKE/go" ]; do sleep .02; done; fi
    printf 'n1\nn2\n' ;;
  "show job"*)
    echo "JobId=$3 JobName=x"
    echo "   JobState=$(cat "$FAKE/state") Requeue=${REQUEUE:-1} Reason=None"
    end=$(cat "$FAKE/end")
    [ "${SLURM_TIME_FORMAT:-standard}" = standard ] || end=Tomorr
    echo "   EndTime=$end"
    [ -z "${TRES:-}" ] || echo "   TresPerNode=$TRES" ;;
  requeue*)
    echo "$*" >>"$FAKE/requeues"
    [ "$(wc -l <"$FAKE/requeues")" -gt "${REFUSALS:-0}" ] ;;
esac
"""
PROGRAMS = {"srun": SRUN, "scontrol": SCONTROL, "squeue": "", "apptainer": "true"}
PROGRAMS |= {"sleep": 'case $1 in 10) ;; *) exec /bin/sleep "$@" ;; esac'}  # between two requeues
JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "aent",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "16(x2)",
}


@dataclass
class FakeJob:
    """A batch script, and the arguments of its programs."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("bin", "steps"):
            (self.folder / name).mkdir()
        for name, text in PROGRAMS.items():
            (self.folder / "bin" / name).write_text(f"#!/bin/bash\n{text}")
            (self.folder / "bin" / name).chmod(0o755)
        self.state = "RUNNING"
        (self.folder / "end").write_text("2100-01-01T00:00:00\n")

    @property
    def state(self) -> str:
        return (self.folder / "state").read_text().strip()

    @state.setter
    def state(self, word: str) -> None:
        (self.folder / "state").write_text(word)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "FAKE": str(self.folder),
            "RUN_DIR": str(self.folder / "run"),
            "PYTHON": "true",  # for the steps; this script's own calls print nothing
            **JOB,
        }

    def start(self, script: str = "train.sbatch", **variables: str) -> subprocess.Popen[str]:
        """The script, as slurmd starts it."""
        return subprocess.Popen(
            ["bash", str(SLURM / script), "recipes/cpu/tiny.yaml"],
            env=self.environment | variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str = "train.sbatch", **variables: str) -> tuple[int, str]:
        """Its exit code and its log."""
        process = self.start(script, **variables)
        log, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, log

    def step(self, name: str) -> tuple[list[str], str, dict[str, str]]:
        """(flags of srun, command, environment of the tasks) of a step."""
        lines = (self.folder / "steps" / name).read_text().splitlines()
        flags = [line.removeprefix("flag ") for line in lines if line.startswith("flag ")]
        (command,) = [line for line in lines if line.startswith("command ")]
        pairs = [line.split("=", 1) for line in lines if "=" in line and " " not in line]
        return flags, command.removeprefix("command "), dict(pairs)

    @property
    def requeues(self) -> int:
        file = self.folder / "requeues"
        return len(file.read_text().splitlines()) if file.exists() else 0
