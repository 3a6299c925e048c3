#!/usr/bin/env bash
# Resolve containers/locks/cpu.in into cpu.lock.txt (Python 3.11) and cpu-py312.lock.txt, with no host
# names in them. Packages that both need have the same version in both, except where the two Pythons
# need different builds.
set -euo pipefail
cd "$(dirname "$0")/../containers/locks"
venv=../../.venv/bin
sources=$("$venv/python" ../../tools/package_sources.py "$venv/uv" cpu.lock.txt)
eval "$sources"
same=$(mktemp)
trap 'rm -f "$same"' EXIT

# resolve LOCK FLAG...
resolve() {
  "$venv/uv" pip compile --quiet --overrides cpu-overrides.txt "${@:2}" \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file "$1" cpu.in
}
resolve cpu.lock.txt --python "$venv/python"
grep -v -e '^torch==' -e '^triton==' -e '^megatron-core==' cpu.lock.txt >"$same"
# --upgrade: the pins come from that list, not from the existing file
resolve cpu-py312.lock.txt --python-version 3.12 --constraint "$same" --upgrade
