#!/usr/bin/env bash
# Make .venv from the lock file, or do nothing where it is already what the lock asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=containers/locks/cpu.lock.txt
stamp=.venv/installed-from
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

stop() {
  echo "install: $1" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  stop "Python 3.11 is needed, and neither python3.11 nor python3 is one; on Debian or Ubuntu: apt install python3.11 python3.11-venv python3.11-dev"
}

# torch.compile builds small C++ kernels at run time; vLLM and Megatron-core both call it
need_compiler() {
  command -v g++ >/dev/null || stop "a C++ compiler is needed and there is no g++; on Debian or Ubuntu: apt install g++"
  local include
  include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -f "$include/Python.h" ] || stop "Python's C headers are needed and $include/Python.h is not there; on Debian or Ubuntu: apt install python3.11-dev"
}

# vLLM's CPU kernels are linked with it; without them its engines do not start
need_libnuma() {
  "$1" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    stop "vLLM needs libnuma.so.1 and it is not there; on Debian or Ubuntu: apt install libnuma1"
}

python=$(find_python)
wanted=$( (pwd; echo "$python"; cat "$lock" pyproject.toml tools/install.sh) | sha256sum)
if [ -x .venv/bin/aent ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  stop "$python cannot make virtual environments; on Debian or Ubuntu: apt install python3.11-venv"
need_compiler "$python"
need_libnuma "$python"

echo "install: .venv, with $python"
rm -f "$stamp"
"$python" -m venv .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check "$(grep '^uv==' "$lock")" ||
  stop "pip could not install uv (its own message is above)"

sources=$(.venv/bin/python tools/package_sources.py .venv/bin/uv "$lock")
eval "$sources"
# source distributions are built with the locked setuptools too
.venv/bin/uv pip install --quiet --python .venv/bin/python --exact --compile-bytecode \
  --no-deps --build-constraints "$lock" -r "$lock"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
echo "$wanted" >"$stamp"
echo "install: done, $(grep -c '==' "$lock") packages"
