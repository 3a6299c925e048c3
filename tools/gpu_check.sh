#!/usr/bin/env bash
# Check this machine's GPU with the first Python whose torch sees one: .venv's, or the machine's own.
# Exit codes: 0 all passed, 1 a check failed, 2 no usable GPU. --rehearse runs on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
rehearse=no
for word in "$@"; do
  case "$word" in --rehearse | -h | --help) rehearse=yes ;; esac
done
for python in .venv/bin/python .venv-py312/bin/python python3; do
  if [ "$rehearse" = yes ] && command -v "$python" >/dev/null ||
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    exec "$python" -m gpu_check "$@"
  fi
done
echo "gpu-check: no usable GPU: none of .venv, .venv-py312 and python3 has a torch that sees one" >&2
exit 2
