# The trainer: Megatron-core, NeMo and aent on an image that has torch, NCCL, Transformer Engine and
# NVIDIA apex built for one another.
#
#   docker build -f containers/trainer.Dockerfile -t aent-trainer .
#
# Package sources other than the public ones: build secrets, see README.md beside this file.
#
# Not built here: it needs the base image (about 20 GB) and, to be of use, a GPU. It is the one that
# megatron-core 0.19 is built and tested on: Python 3.12, and its Transformer Engine.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="aent trainer" \
      org.opencontainers.image.licenses="Apache-2.0"

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/aent

# NCCL of the engines' image (that of vLLM's torch: containers/contracts.json), for weights go from one
# image to the other by it; beside the base's own, which torch finds behind it. (25.12 has 2.28.9.)
ARG NCCL=2.29.7
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    PIP_CONSTRAINT='' PIP_CONFIG_FILE=/run/secrets/pip.conf python3 -m pip install --no-cache-dir --no-deps \
      --target /opt/nccl "nvidia-nccl-cu13==${NCCL}"
ENV LD_LIBRARY_PATH=/opt/nccl/nvidia/nccl/lib:${LD_LIBRARY_PATH}

# apex: the base image's, else built from source (the package of that name on PyPI is another one)
ARG APEX_COMMIT=6424da3b4faa6c8f062da4a48c424fff3f02d42d
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -c 'import torch, amp_C, fused_weight_gradient_mlp_cuda, apex.optimizers' || \
    PIP_CONFIG_FILE=/run/secrets/pip.conf APEX_CPP_EXT=1 APEX_CUDA_EXT=1 python3 -m pip install --no-cache-dir --no-build-isolation \
      "git+https://github.com/NVIDIA/apex@${APEX_COMMIT}"

# What the base image has stays as it is; everything else has the version of the CPU lock for Python
# 3.12, with which `make test-py312` runs, but for the few of trainer.txt.
COPY containers/locks/cpu-py312.lock.txt containers/locks/trainer.txt containers/beside_base.sh containers/check_trainer.py /tmp/
COPY pyproject.toml setup.py README.md LICENSE ./
COPY pipeline pipeline
COPY recipes recipes
COPY slurm slurm
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    PIP_CONFIG_FILE=/run/secrets/pip.conf /tmp/beside_base.sh /tmp/trainer.txt,/tmp/cpu-py312.lock.txt '.[trainer,tasks]' && \
    python3 /tmp/check_trainer.py "${NCCL}" && \
    rm /tmp/cpu-py312.lock.txt /tmp/trainer.txt /tmp/beside_base.sh /tmp/check_trainer.py

RUN useradd --create-home --uid 10001 aent
USER 10001
WORKDIR /home/aent
RUN aent doctor

ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision=${GIT_COMMIT}
ENV AENT_GIT_COMMIT=${GIT_COMMIT}
CMD ["aent", "--help"]
