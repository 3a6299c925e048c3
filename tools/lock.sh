#!/usr/bin/env bash
# Resolve containers/locks/cpu.in into cpu.lock.txt, with no host names in it.
set -euo pipefail
cd "$(dirname "$0")/../containers/locks"
venv=../../.venv/bin
sources=$("$venv/python" ../../tools/package_sources.py "$venv/uv" cpu.lock.txt)
eval "$sources"
"$venv/uv" pip compile --quiet --python "$venv/python" --overrides cpu-overrides.txt \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
  --output-file cpu.lock.txt cpu.in
