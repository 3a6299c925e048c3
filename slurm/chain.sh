#!/bin/bash
# A run longer than the time limit: jobs that follow one another, each going on where the last ended.
#
#   slurm/chain.sh 5 --nodes=2 --time=8:00:00 slurm/train.sbatch recipes/cpu/tiny.yaml [key=value ...]
#
# sends N jobs for one run folder. Each waits until the one before has ended, however it ended, and
# resumes from the newest checkpoint; one that finds the run finished ends at once.

set -euo pipefail

links=$1
shift
: "${RUN_DIR:=$PWD/runs/chain-$(date +%Y%m%d-%H%M%S)-$$}"
export RUN_DIR

previous=
for ((link = 1; link <= links; link++)); do
  flags=(--parsable)
  if [ -n "$previous" ]; then
    flags+=(--dependency=afterany:"$previous" --kill-on-invalid-dep=yes)
  fi
  previous=$(sbatch "${flags[@]}" "$@")
  previous=${previous%%;*}
  echo "$previous"
done
