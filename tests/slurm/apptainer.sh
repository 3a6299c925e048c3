#!/bin/bash
# Stands in for apptainer where the batch script says `apptainer exec FLAGS IMAGE COMMAND`, at a site that
# mounts neither home nor /tmp: both are empty, but for what --bind names. What an image has of its own
# is not stood in for: the rest is this machine's.
set -euo pipefail

if [ "$1" != exec ]; then
  exit 255
fi
shift
while [[ $1 == --* ]]; do
  case $1 in
    --pwd) folder=$2 && shift ;;
    --bind) binds=$2 && shift ;;
    --nv) ;;
    *) echo "apptainer: unknown flag: $1" >&2 && exit 255 ;;
  esac
  shift
done
if [ ! -f "$1" ]; then
  echo "apptainer: no image $1" >&2
  exit 255
fi
shift

# shellcheck disable=SC2016 # for the shell inside
exec unshare --mount --propagation=private bash -euc '
folder=$1 binds=$2 number=0
shift 2
mount -t tmpfs tmpfs /mnt
IFS=, read -ra all <<<"$binds"
for bind in "${all[@]}"; do
  mkdir "/mnt/$((++number))"
  mount --bind "${bind%%:*}" "/mnt/$number"
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs "$HOME"
number=0
for bind in "${all[@]}"; do
  mkdir -p "${bind#*:}"
  mount --bind "/mnt/$((++number))" "${bind#*:}"
done
cd "$folder"
exec "$@"' inside "$folder" "$binds" "$@"
