# One image for the API, the workers and the command line; compose.yaml says which of them a container is.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tieryard
WORKDIR /app

# The lock is complete, so --no-deps: pip installs just what is written there, each file checked by hash.
COPY requirements-runtime.lock ./
RUN pip install --no-deps --require-hashes --only-binary=:all: -r requirements-runtime.lock

COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY api ./api
COPY workers ./workers
COPY tieryard ./tieryard
COPY migrations ./migrations
# Bytecode now: the containers run read-only and could not keep it. -e leaves alembic.ini beside the code.
RUN pip install --no-deps -e . && python -m compileall -q api workers tieryard migrations

USER tieryard
EXPOSE 8000
CMD ["tieryard", "--help"]
