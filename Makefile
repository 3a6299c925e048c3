# The commands a newcomer needs: `make quickstart` and `make test`. See CONTRIBUTING.md for the rest.
.PHONY: quickstart install test test-all test-fast test-faults test-cluster test-containers test-gpu test-py312 \
  gpu-check gpu-check-wheels lint lock contracts clean

quickstart: install
	.venv/bin/aent train recipes/cpu/quickstart.yaml

# PYTHON=python3.12: .venv-py312 beside .venv, with Megatron-core 0.19
install:
	@tools/install.sh $(if $(filter command line,$(origin PYTHON)),PYTHON=$(PYTHON))

# Tests use a browser for the page of `aent report`, and bubblewrap for programs, if they are or can be
# installed.
test: install
	@tools/debian_packages.sh test "chromium bwrap" chromium fonts-dejavu-core bubblewrap
	.venv/bin/python tools/core_seconds.py "make test" 1300 .venv/bin/python -m pytest -rs \
	  -m "not gpu and not cluster and not containers and not faults and not full and not py312"

# Everything that needs no GPU, in four parts, two at a time, within an hour on two quiet cores. If it is
# stopped and called again on the same files, it continues with what has not passed yet.
test-all: install
	@tools/debian_packages.sh test-all \
	  "chromium bwrap slurmctld slurmd sbatch munged ip buildah debootstrap jq mksquashfs gcc make" \
	  chromium fonts-dejavu-core bubblewrap slurmctld slurmd slurm-client munge iproute2 buildah debootstrap \
	  jq squashfs-tools gcc make libbsd-dev libslurm-dev
	.venv/bin/python tools/test_all.py

test-fast: install
	.venv/bin/python -m pytest -m "not gpu and not cluster and not containers and not slow and not py312"

# Kills the launcher between every two phases of a step, resumes, and compares.
test-faults: install
	.venv/bin/python -m pytest -m faults

# On a Slurm cluster of its own: needs root and Debian packages, and prints the reason if it cannot run.
test-cluster: install
	@tools/debian_packages.sh test-cluster "slurmctld slurmd sbatch munged ip" \
	  slurmctld slurmd slurm-client munge iproute2
	.venv/bin/python -m pytest -m cluster -rs tests/slurm

# Builds the CPU image and runs the tiny recipe in it, directly and under enroot and pyxis on a Slurm
# cluster; then builds the engines' image on a CPU base. Needs about twenty minutes, 20 GB of disk, root,
# buildah, debootstrap and package sources; prints the reason if it cannot run.
test-containers: install
	@tools/debian_packages.sh test-containers \
	  "buildah debootstrap ip slurmctld slurmd sbatch munged jq mksquashfs gcc make" \
	  buildah debootstrap iproute2 slurmctld slurmd slurm-client munge jq squashfs-tools gcc make \
	  libbsd-dev libslurm-dev
	.venv/bin/python -m pytest -m containers -rs tests/containers

# Runs with the first Python whose torch sees a GPU: .venv's, .venv-py312's (whose torch may have CUDA),
# or the container's.
test-gpu:
	@for python in .venv/bin/python .venv-py312/bin/python python3; do \
	  if "$$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	    exec "$$python" -m pytest -m gpu; \
	  fi; \
	done; \
	echo "test-gpu: no GPU that torch can use here (tried .venv, .venv-py312 and python3)" >&2; exit 1

# With Python 3.12 and Megatron-core 0.19, which continues from a 0.16 checkpoint that .venv writes.
test-py312:
	@tools/install.sh
	@tools/install.sh PYTHON=$(if $(filter command line,$(origin PYTHON)),$(PYTHON),python3.12)
	.venv-py312/bin/python tools/core_seconds.py "make test-py312" 900 .venv-py312/bin/python -m pytest -rs \
	  -m "not gpu and not full" tests/trainer tests/checkpoint tests/distributed tests/models/test_parity.py \
	  tests/runtime tests/checks/test_megatron.py tests/e2e/test_train.py tests/e2e/test_resume.py

# Checks kernels and trainer on a machine with a GPU, within eight minutes; aent need not be installed
# there. OUT is the report's folder. make returns 2 for any failure: if the exit code matters, call
# tools/gpu_check.sh (1: a check failed, 2: no usable GPU).
OUT ?= runs/gpu-check
gpu-check:
	@tools/gpu_check.sh --out "$(OUT)"

# Downloads packages that gpu-check's machine may lack; run it beforehand on a machine with a network.
gpu-check-wheels: install
	@PYTHONPATH=benchmarks .venv/bin/python -m gpu_check.wheels

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/hadolint containers/*.Dockerfile
	.venv/bin/shellcheck .ci/run */*.sh */*.sbatch

# Keeps the locked versions if cpu.in allows them; remove a line from the lock to update its package.
lock: install
	tools/lock.sh

# Reads the signatures that aent calls from the sources of vLLM, Transformer Engine and apex;
# CONTRACTS="--apex DIR" and the like use sources that are here already.
contracts: install
	.venv/bin/python tools/contracts.py $(CONTRACTS)

clean:
	rm -rf .venv .venv-py312 build dist *.egg-info pipeline/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
