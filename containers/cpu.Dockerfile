# The CPU environment of the tests and the quickstart, on Debian.
#
#   docker build -f containers/cpu.Dockerfile -t aent-cpu .
#   docker run --rm aent-cpu aent train recipes/cpu/tiny.yaml
#
# Pass other package sources as build secrets, which do not stay in the image: apt.list (lines of
# sources.list), pip.conf, and ca.pem (with "cert = /run/secrets/ca.pem" in pip.conf); see README.md
# beside this file.
ARG BASE_IMAGE=debian:bookworm-slim
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="aent on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0"

# Debian has only one version of a package at a time, so there is nothing to pin
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt.list,target=/etc/apt/sources.list.d/build.list,mode=0444 \
    apt-get update && \
    apt-get install --yes --no-install-recommends \
      ca-certificates g++ git libnuma1 make python3.11 python3.11-dev python3.11-venv && \
    rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 aent
USER 10001
WORKDIR /home/aent/aent
COPY --chown=10001 . .
RUN --mount=type=secret,id=pip.conf,uid=10001 --mount=type=secret,id=ca.pem,uid=10001 \
    PIP_CONFIG_FILE=/run/secrets/pip.conf make install && rm -rf /home/aent/.cache
ENV PATH=/home/aent/aent/.venv/bin:$PATH
RUN aent doctor recipes/cpu/tiny.yaml

ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision=${GIT_COMMIT}
ENV AENT_GIT_COMMIT=${GIT_COMMIT}
CMD ["aent", "train", "recipes/cpu/quickstart.yaml"]
