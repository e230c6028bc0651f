# Two images:
#   docker build --target serve   -t sensai-serve .            the server: no torch, no compiler, not root
#   docker build --target offline -t sensai-serve:offline .    train, prune and export
# BASE needs Python 3.11 or later with venv. For CUDA build on an image with CUDA 13 and cuDNN 9:
# --build-arg BASE=nvidia/cuda:13.0.0-cudnn-runtime-ubuntu24.04 needs python3-venv installed in it.
# deploy/image.sh builds both without a registry of images, on a Debian that it makes.
ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
WORKDIR /src
RUN python3 -m venv /opt/build && /opt/build/bin/python -m pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE ./
COPY sensai_serve sensai_serve
COPY pruning pruning
COPY export export
COPY serving serving
COPY benchmarks benchmarks
RUN /opt/build/bin/python -m build --wheel --outdir /dist

FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Libraries report nothing to their makers; sensai sets the same itself (sensai_serve/privacy.py).
ENV ORT_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1
RUN python3 -m venv /opt/sensai \
    && groupadd --system --gid 10001 sensai \
    && useradd --system --uid 10001 --gid 10001 --create-home sensai
ENV PATH=/opt/sensai/bin:$PATH
COPY constraints.txt /tmp/constraints.txt

FROM base AS offline
COPY --from=wheel /dist /tmp/dist
RUN wheel=$(ls /tmp/dist/*.whl) && pip install --constraint /tmp/constraints.txt "${wheel}[offline]" && rm -r /tmp/dist
# By number: Kubernetes cannot tell whether a name is root (runAsNonRoot).
USER 10001:10001
WORKDIR /home/sensai
ENTRYPOINT ["sensai"]
CMD ["--help"]

FROM base AS serve
COPY --from=wheel /dist /tmp/dist
RUN wheel=$(ls /tmp/dist/*.whl) && pip install --constraint /tmp/constraints.txt "${wheel}[grpc,otel,text]" && rm -r /tmp/dist \
    && if python -c "import torch" 2>/dev/null; then echo "torch is in the serving image" >&2; exit 1; fi
USER 10001:10001
WORKDIR /home/sensai
# Inside a container loopback reaches nobody; what is published is the operator's choice (docker run -p). Health is asked
# where neither TLS nor other addresses for HTTP change it.
ENV SENSAI_HTTP=0.0.0.0:8000 SENSAI_GRPC=0.0.0.0:8001 SENSAI_LISTEN=health=127.0.0.1:8003
EXPOSE 8000 8001
VOLUME /bundles
HEALTHCHECK --interval=10s --timeout=2s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/v2/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sensai", "serve"]
CMD ["--repository", "/bundles"]
