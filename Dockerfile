# The dispatcher and the example application. Your own application needs the same two stages, with its
# package in the place of examples/.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mongoz mongoz
COPY dispatcher dispatcher
COPY examples examples
# The extra kafka is for `relay` and `run --kafka`; without them, install only ".".
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[kafka]'

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin dispatcher
COPY --from=build /opt/venv /opt/venv
# APP is imported from the working directory.
WORKDIR /app
COPY examples examples
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
# In exec form: SIGTERM must reach the dispatcher, not a shell.
CMD ["dispatcher", "run", "examples.shop.app:registry"]
