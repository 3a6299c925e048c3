#!/usr/bin/env bash
# Resolve containers/locks/cpu.in into cpu.lock.txt (Python 3.11) and cpu-py312.lock.txt, with no host
# names in them. The second has the first's versions of all that both need, but for what the two
# Pythons have builds of.
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
# --upgrade: what is pinned is in that list, not in the file that is there
resolve cpu-py312.lock.txt --python-version 3.12 --constraint "$same" --upgrade
