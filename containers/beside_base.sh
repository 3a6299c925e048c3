#!/bin/bash
# Installs packages into an image whose own stay as they are: beside_base.sh LOCK[,LOCK] REQUIREMENT...
#
# What is there is constrained to its very version, builds of NVIDIA's included (pip would replace a
# torch 2.10.0a0 for being a pre-release); what the image's own constraints name (PIP_CONSTRAINT, which
# NVIDIA's sets) to those, for pip obeys them too; everything else to the first lock that names it. Fails
# where that cannot be had together, or where a package of the image has changed for all that.

set -euo pipefail

IFS=, read -ra locks <<<"$1"
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

installed() {
  "${PYTHON:-python3}" -m pip list --format=freeze --disable-pip-version-check | grep -F '==' | LC_ALL=C sort
}

installed >"$work/before"
touch "$work/images" # the image's own constraints, without comments
read -ra own <<<"${PIP_CONSTRAINT:-}"
for file in "${own[@]}"; do
  sed 's/ *#.*//' "$file" >>"$work/images"
done
cat "${locks[@]}" >"$work/locks"
awk 'function name(s) { s = tolower(s); sub("[^a-z0-9_.-].*", "", s); gsub("[_.]", "-", s); return s }
  FILENAME == ARGV[1] { known[name($0)]; print; next }
  FILENAME == ARGV[2] { known[name($0)]; next }
  !(name($0) in known) { known[name($0)]; print }' "$work/before" "$work/images" "$work/locks" >"$work/constraints"
"${PYTHON:-python3}" -m pip install --no-cache-dir --constraint "$work/constraints" "$@"
installed >"$work/after"
changed=$(LC_ALL=C comm -23 "$work/before" "$work/after")
if [ -n "$changed" ]; then
  echo "beside_base.sh: the image's own packages were changed or removed:" "$changed" >&2
  exit 1
fi
