# A rollout engine: vLLM's own image plus the part of aent that runs in it (server, middleware, weight
# transfer). It is a separate image because vLLM and the trainer pin different builds of torch.
#
#   docker build -f containers/rollout.Dockerfile -t aent-rollout .
#
# Pass other package sources as build secrets: see README.md beside this file.
#
# Not built on vLLM's image yet; `make test-containers` builds it on a base with vLLM for a CPU.
ARG BASE_IMAGE=vllm/vllm-openai:v0.32.0
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="aent rollout engine" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /opt/aent
COPY pyproject.toml setup.py README.md LICENSE ./
COPY pipeline pipeline
COPY recipes recipes
COPY slurm slurm
# everything that this part imports is also a dependency of vLLM; typer and rich are for `aent`
COPY containers/locks/cpu.lock.txt containers/beside_base.sh /tmp/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf && \
    /tmp/beside_base.sh /tmp/cpu.lock.txt typer rich psutil pyyaml && \
    python3 -m pip install --no-cache-dir --no-deps . && \
    rm /tmp/cpu.lock.txt /tmp/beside_base.sh

RUN useradd --create-home --uid 10001 aent
USER 10001
WORKDIR /home/aent
RUN aent doctor

ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision=${GIT_COMMIT}
ENV AENT_GIT_COMMIT=${GIT_COMMIT}

# /health is the only route that requires no token
ENV AENT_HEALTH_URL=http://127.0.0.1:8000/health
HEALTHCHECK --start-period=300s --interval=30s --timeout=10s \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(os.environ['AENT_HEALTH_URL'], timeout=5)"]

# the base image's entry point is vLLM's own server
ENTRYPOINT []
CMD ["aent", "--help"]
