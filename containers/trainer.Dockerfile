# The trainer: Megatron-core, NeMo and aent on an image with matching builds of torch, NCCL, Transformer
# Engine and NVIDIA apex.
#
#   docker build -f containers/trainer.Dockerfile -t aent-trainer .
#
# Pass other package sources as build secrets: see README.md beside this file.
#
# Not built here: it needs the base image (about 20 GB) and, to be useful, a GPU. Megatron-core 0.19 is
# built and tested on that base image: Python 3.12, with its Transformer Engine.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="aent trainer" \
      org.opencontainers.image.licenses="Apache-2.0"

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/aent

# The engines' NCCL (that of vLLM's torch: containers/contracts.json), which sends weights between the two
# images. The base's own NCCL stays, and torch would find it after this one. (25.12 has 2.28.9.)
ARG NCCL=2.29.7
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    PIP_CONSTRAINT='' PIP_CONFIG_FILE=/run/secrets/pip.conf python3 -m pip install --no-cache-dir --no-deps \
      --target /opt/nccl "nvidia-nccl-cu13==${NCCL}"
ENV LD_LIBRARY_PATH=/opt/nccl/nvidia/nccl/lib:${LD_LIBRARY_PATH}

# apex: the base image's, else built from source (the package of that name on PyPI is unrelated)
ARG APEX_COMMIT=6424da3b4faa6c8f062da4a48c424fff3f02d42d
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -c 'import torch, amp_C, fused_weight_gradient_mlp_cuda, apex.optimizers' || \
    PIP_CONFIG_FILE=/run/secrets/pip.conf APEX_CPP_EXT=1 APEX_CUDA_EXT=1 python3 -m pip install --no-cache-dir --no-build-isolation \
      "git+https://github.com/NVIDIA/apex@${APEX_COMMIT}"

# Packages of the base image stay as they are. All others have the versions of the CPU lock for Python
# 3.12, which `make test-py312` uses, except for the few in trainer.txt.
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
