#!/bin/bash
# Installs packages into an image without changing the image's own: beside_base.sh LOCK[,LOCK] REQUIREMENT...
#
# Every installed package is constrained to its exact version, including NVIDIA's builds (pip would replace
# torch 2.10.0a0, because it is a pre-release). Packages that the image's own constraints name
# (PIP_CONSTRAINT, which NVIDIA sets) follow those, because pip obeys them too. All others have the version
# of the first lock that names them. Fails if these do not fit together, or if a package of the image changed.

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
