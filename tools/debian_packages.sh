#!/usr/bin/env bash
# debian_packages.sh TARGET "PROGRAM..." PACKAGE...: install the packages that a make target needs besides
# .venv, if a program is missing and it can be installed. If not, the tests that need it report that.
set -euo pipefail
target=$1
read -ra programs <<<"$2"
packages=("${@:3}")
PATH=$PATH:/usr/sbin
missing=()
for program in "${programs[@]}"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "$target: ${missing[*]} not found, and installing ${packages[*]} needs root and apt-get"
  exit 0
fi
echo "$target: installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! said=$(apt-get update 2>&1 && apt-get install --yes --no-install-recommends "${packages[@]}" 2>&1); then
  echo "$target: apt-get failed: $(tail -n 1 <<<"$said")"
fi
