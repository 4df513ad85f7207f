# The offline half: builds a pair into /pair, once. From the root of the repository (BuildKit):
#   docker build -f docker/offline.Dockerfile -t understudy-offline .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# --- as in the other image of this environment: built once, stored once (a test compares them) ---
FROM ${PYTHON_IMAGE} AS environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_NO_INDEX
ARG TORCH_INDEX
RUN python3 -m venv /venv
COPY requirements/cpu.txt /requirements/cpu.txt
RUN --mount=type=bind,source=docker/install.sh,target=/install.sh \
    --mount=type=bind,source=docker/wheelhouse,target=/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    { sh /install.sh ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0+cpu \
        || sh /install.sh torch==2.13.0; } \
    && sh /install.sh --requirement /requirements/cpu.txt \
    && { /venv/bin/python -Bc "import torch" \
        || { echo "torch cannot be imported: no CPU build? Set TORCH_INDEX, see docker/wheelhouse/README.md" >&2; exit 1; }; }

FROM environment AS package
COPY pyproject.toml README.md LICENSE NOTICE understudy.py /source/
COPY drafts /source/drafts
COPY evaluation /source/evaluation
COPY loadtests /source/loadtests
COPY pruning /source/pruning
COPY reference/*.py /source/reference/
COPY server /source/server
COPY stages /source/stages
RUN --mount=type=bind,source=docker/install.sh,target=/install.sh \
    --mount=type=bind,source=docker/wheelhouse,target=/wheelhouse \
    sh /install.sh --no-build-isolation --target /opt/understudy /source

FROM ${PYTHON_IMAGE} AS base
COPY --from=environment /venv /venv
# vLLM compiles parts of its sampler (log-probabilities) even in eager mode, its kernels for CPUs need libnuma, and tcmalloc makes
# them faster.
ARG APT_PACKAGES="g++ libnuma1 libtcmalloc-minimal4"
RUN apt-get update && apt-get install --yes --no-install-recommends ${APT_PACKAGES} && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin understudy \
    && install --directory --owner=10001 --group=10001 /pair /cache
COPY --from=package /opt/understudy /opt/understudy
ENV PATH=/venv/bin:/opt/understudy/bin:$PATH PYTHONPATH=/opt/understudy PYTHONUNBUFFERED=1 \
    HOME=/tmp XDG_CACHE_HOME=/cache VLLM_CACHE_ROOT=/cache/vllm NUMBA_CACHE_DIR=/cache/numba TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=0
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
# --- to here ---

# Compiled kernels: not in the volume `cache`, which is the engine's and which a BUILDER_USER could not write; and a tmpfs over a
# folder of the image has that folder's mode under some versions of runc.
ENV XDG_CACHE_HOME=/tmp/cache VLLM_CACHE_ROOT=/tmp/cache/vllm NUMBA_CACHE_DIR=/tmp/cache/numba TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor
COPY docker/build_pair.sh /opt/understudy/bin/build_pair.sh
ENTRYPOINT ["sh", "/opt/understudy/bin/build_pair.sh"]
CMD ["/project/recipes/reference.yaml"]
