# The gateway: our package and a web server, no torch. From the root of the repository (BuildKit):
#   docker build -f docker/gateway.Dockerfile -t understudy-gateway .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_NO_INDEX
RUN python3 -m venv /venv
COPY requirements/gateway.txt /requirements/gateway.txt
RUN --mount=type=bind,source=docker/install.sh,target=/install.sh \
    --mount=type=bind,source=docker/wheelhouse,target=/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    sh /install.sh setuptools==84.2.1 && sh /install.sh --requirement /requirements/gateway.txt
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
    sh /install.sh --no-build-isolation /source && /venv/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin understudy
COPY --from=environment /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["understudy", "serve"]
CMD ["--config", "/etc/understudy/gateway.yaml"]
