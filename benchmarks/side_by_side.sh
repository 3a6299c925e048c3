#!/usr/bin/env bash
# aent's step beside TRL's, on this machine: 32 samples (4 prompts x 8) of 32 new tokens,
# SmolLM2-135M-Instruct in float32, two threads for each side, AEnt's bonus on in ours.
#   benchmarks/side_by_side.sh TRL_PYTHON [STEPS]
# TRL_PYTHON: the python of an environment with torch 2.13.0 (CPU), trl 1.16.0, transformers 5.19.0.
set -euo pipefail
cd "$(dirname "$0")/.."
trl_python=${1:?usage: benchmarks/side_by_side.sh TRL_PYTHON [STEPS]}
steps=${2:-5}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
model=$(.venv/bin/python -c '
from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
print(resolve(ModelSection(bundled="smollm2-135m-instruct")))')

echo "TRL:"
OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 "$trl_python" benchmarks/trl_step.py "$model" "$steps" | tee "$folder/trl" | tail -1

echo "aent:"
# questions over which this model rambles: nearly every response has its 32 tokens, as TRL's have
.venv/bin/aent train recipes/cpu/quickstart.yaml run_dir="$folder/run" steps="$steps" \
  task.name=count_primes 'task.config={}' 'task.graders=[{kind: reasoning_gym}]' task.heldout=0 \
  rollout.prompts_per_step=4 rollout.max_response_tokens=32 trainer.micro_batch_tokens=400

.venv/bin/python - "$folder" <<'PYTHON'
import json
import sys
from collections import defaultdict
from pathlib import Path

folder = Path(sys.argv[1])
trl = json.loads((folder / "trl").read_text().splitlines()[-1])
values = defaultdict(dict)
for line in (folder / "run/journal.jsonl").read_text().splitlines():
    entry = json.loads(line)
    if "key" in entry:  # a metric's point
        values[entry["key"]][entry["step"]] = entry["value"]
ours = [values["time/total"][step] for step in sorted(values["time/total"])[1:]]
mean = lambda x: sum(x) / len(x)
seconds, tokens = mean(ours), mean(list(values["tokens/total"].values()))
print(f"seconds a step, the first left out: TRL {mean(trl['seconds']):.1f}, aent {seconds:.1f}, "
      f"ratio {seconds / mean(trl['seconds']):.2f}")
print(f"tokens a step, prompts included: TRL {mean(trl['tokens']):.0f}, aent {tokens:.0f}")
PYTHON
