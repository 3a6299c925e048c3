#!/usr/bin/env bash
# The Debian packages of the test cluster, where they are missing and can be installed; where not, the
# tests that need them say so themselves.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge iproute2)
if PATH=$PATH:/usr/sbin command -v slurmctld slurmd sbatch munged ip >/dev/null; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "test-cluster: ${packages[*]} are missing, and installing them needs root and apt-get"
  exit 0
fi
echo "test-cluster: installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! said=$(apt-get update 2>&1 && apt-get install --yes --no-install-recommends "${packages[@]}" 2>&1); then
  echo "test-cluster: apt-get failed: $(tail -n 1 <<<"$said")"
fi
