# The gateway as an image of its own: `docker build -t webhook-translation-gateway .`, then see the README, "Run it in a container".
#
# The base is a tag, so that a new build has its patches. For builds that do not change, name the digest that
# `docker buildx imagetools inspect python:3.12-slim-trixie` prints:
#   docker build --build-arg PYTHON=python:3.12-slim-trixie@sha256:... .
ARG PYTHON=python:3.12-slim-trixie

FROM ${PYTHON} AS build
WORKDIR /src
# Nothing can be compiled later, where the file system is read-only.
ENV UV_COMPILE_BYTECODE=1
# Wheels alone, each by its hash: nothing of a dependency runs while the image is made.
COPY requirements.lock requirements.build.lock ./
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements.build.lock
RUN python -m venv --without-pip /opt/gateway \
 && uv pip install --python /opt/gateway --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY mappings mappings
COPY gateway gateway
RUN uv build --wheel --no-build-isolation --out-dir dist \
 && uv pip install --python /opt/gateway --no-deps dist/*.whl \
 && mkdir -m 0700 /data

FROM ${PYTHON}
LABEL org.opencontainers.image.title="webhook-translation-gateway" \
      org.opencontainers.image.description="Payment webhooks in; attributed, privacy-safe analytics events out." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/gateway /opt/gateway
COPY --from=build --chown=10001:10001 /data /data
USER 10001:10001
# The settings' defaults are relative (data/gateway.db, data/exports): from here they are on the volume. As ENV they would
# go before the files that GATEWAY_STORE_FILE and the like name.
WORKDIR /
VOLUME /data
EXPOSE 8080
# Not urllib: it would ask an HTTP_PROXY that is there for the collectors.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
