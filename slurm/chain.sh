#!/bin/bash
# A run longer than the time limit: consecutive jobs, each of which continues where the last one ended.
#
#   slurm/chain.sh 5 --nodes=2 --time=8:00:00 slurm/train.sbatch recipes/cpu/tiny.yaml [key=value ...]
#
# submits N jobs for one run folder. Each waits until the job before has ended for any reason, and
# resumes from the newest checkpoint; it ends at once if the run is finished.

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
