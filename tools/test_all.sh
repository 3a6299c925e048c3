#!/usr/bin/env bash
# `make test-all`: each part skips tests that have already passed on these files; if a part fails, the
# others still run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=0
part() {
  .venv/bin/python tools/core_seconds.py "test-all, $1" "$2" \
    .venv/bin/python -m pytest -rs --go-on -m "$3" "${@:4}"
  local code=$?
  [ "$code" = 0 ] || [ "$code" = 5 ] || failed=1 # 5: all of it had passed before
}
part "one machine" 3600 "not gpu and not cluster and not containers and not py312"
part cluster 1500 cluster tests/slurm
part containers 1500 containers tests/containers
exit "$failed"
