#!/usr/bin/env bash
# Create an environment from its lock file, or do nothing if it already matches the lock file:
# .venv with Python 3.11, or .venv-py312 if the argument is PYTHON=python3.12.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

stop() {
  echo "install: $1" >&2
  exit 1
}

# series_of PROGRAM: its series, such as 3.11; fails if it is not a working Python.
series_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in python3.11 python3; do
    if [ "$(series_of "$candidate")" = 3.11 ]; then
      echo "$candidate"
      return
    fi
  done
  stop "Python 3.11 is needed, and neither python3.11 nor python3 is one; on Debian or Ubuntu: apt install python3.11 python3.11-venv python3.11-dev"
}

# torch.compile builds small C++ kernels at run time; vLLM and Megatron-core both use it
need_compiler() {
  command -v g++ >/dev/null || stop "a C++ compiler is needed and there is no g++; on Debian or Ubuntu: apt install g++"
  local include
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -f "$include/Python.h" ] || stop "Python's C headers are needed and $include/Python.h is not there; on Debian or Ubuntu: apt install python$series-dev"
}

# vLLM's CPU kernels are linked with it; without it engines do not start
need_libnuma() {
  "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    stop "vLLM needs libnuma.so.1 and it is not there; on Debian or Ubuntu: apt install libnuma1"
}

case ${1:-} in
  "") named=$(find_python) ;;
  PYTHON=?*) named=${1#PYTHON=} ;;
  *) stop "$1 is not understood; PYTHON=python3.12 is" ;;
esac
series=$(series_of "$named") || stop "PYTHON=$named is not there, or does not run; on Debian or Ubuntu: apt install $named $named-venv $named-dev"
case $series in
  3.11) venv=.venv lock=containers/locks/cpu.lock.txt ;;
  3.12) venv=.venv-py312 lock=containers/locks/cpu-py312.lock.txt ;;
  *) stop "PYTHON=$named is Python $series; there are locks for 3.11 and 3.12" ;;
esac
python=$("$named" -c 'import sys; print(sys.executable)')
stamp=$venv/installed-from
wanted=$( (pwd; echo "$python"; cat "$lock" pyproject.toml tools/install.sh) | sha256sum)
if [ -x "$venv/bin/aent" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  stop "$python cannot make virtual environments; on Debian or Ubuntu: apt install python$series-venv"
need_compiler
need_libnuma

echo "install: $venv, with $python"
rm -f "$stamp"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check "$(grep '^uv==' "$lock")" ||
  stop "pip could not install uv (its own message is above)"

sources=$("$venv/bin/python" tools/package_sources.py "$venv/bin/uv" "$lock")
torch=
eval "$sources" # sets torch, to the build that can be had, too
locked=$(grep '^torch==' "$lock")
packages=$venv/packages.txt
if [ "$torch" = "$locked" ]; then
  cat "$lock" >"$packages"
else # the CPU build, which needs none of CUDA's libraries
  { echo "$torch"; grep -v -e '^torch==' -e '^nvidia-' -e '^cuda-toolkit==' "$lock"; } >"$packages"
fi
# source distributions are also built with the locked setuptools
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --exact --compile-bytecode \
  --no-deps --build-constraints "$packages" -r "$packages"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
echo "$wanted" >"$stamp"
echo "install: done, $(grep -c '==' "$packages") packages"
