# dlproxy as an image: docs/guides/deploy.md. Build: docker build -t dlproxy .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# What is installed besides: `--build-arg EXTRAS=grpc,redis,torch`
ARG EXTRAS=auth,compression,grpc,redis,remote,security,steps
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/dlproxy \
    && /opt/dlproxy/bin/pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]" \
    && /opt/dlproxy/bin/pip uninstall --yes --disable-pip-version-check pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/dlproxy /opt/dlproxy
# Nothing is written but below /tmp: all else may be read-only
ENV PATH=/opt/dlproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp \
    DLPROXY_HOST=0.0.0.0
WORKDIR /models
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('DLPROXY_CONTROL_PORT', '8002') + '/healthz', timeout=2)"]
ENTRYPOINT ["dlproxy", "serve"]
CMD ["--repository", "/models"]
