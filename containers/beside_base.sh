#!/bin/bash
# Installs packages into an image whose own stay as they are: beside_base.sh LOCK REQUIREMENT...
#
# What is there is constrained to its very version, builds of NVIDIA's included (pip would replace a
# torch 2.10.0a0 for being a pre-release); everything else to the lock's. Fails where that cannot be
# had together, or where a package of the image has changed for all that.

set -euo pipefail

lock=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

installed() {
  "${PYTHON:-python3}" -m pip list --format=freeze --disable-pip-version-check | grep -F '==' | LC_ALL=C sort
}

installed >"$work/before"
awk -F== 'function name(s) { s = tolower(s); gsub("[_.]", "-", s); return s }
  NR == FNR { base[name($1)]; print; next }
  !(name($1) in base)' "$work/before" "$lock" >"$work/constraints"
"${PYTHON:-python3}" -m pip install --no-cache-dir --constraint "$work/constraints" "$@"
installed >"$work/after"
changed=$(LC_ALL=C comm -23 "$work/before" "$work/after")
if [ -n "$changed" ]; then
  echo "beside_base.sh: the image's own packages were changed or removed:" "$changed" >&2
  exit 1
fi
