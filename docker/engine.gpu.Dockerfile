# A pair's engine on GPUs: vLLM's own image with our package beside it. From the root of the repository (BuildKit):
#   docker build -f docker/engine.gpu.Dockerfile -t understudy-engine-gpu .
# Not run on a GPU yet; the same package, verb and checks as on CPUs.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS package
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_NO_INDEX
RUN python3 -m venv /venv
RUN --mount=type=bind,source=docker/install.sh,target=/install.sh \
    --mount=type=bind,source=docker/wheelhouse,target=/wheelhouse \
    sh /install.sh setuptools==84.2.1
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

FROM ${VLLM_IMAGE}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin understudy \
    && install --directory --owner=10001 --group=10001 /pair /cache
COPY --from=package /opt/understudy /opt/understudy
ENV PYTHONPATH=/opt/understudy PYTHONUNBUFFERED=1 \
    HOME=/tmp XDG_CACHE_HOME=/cache VLLM_CACHE_ROOT=/cache/vllm TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=0
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
EXPOSE 8001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8001/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "understudy", "engine"]
CMD ["/pair/pair", "--target", "/model", "--host", "0.0.0.0"]
