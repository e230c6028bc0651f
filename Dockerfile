# syntax=docker/dockerfile:1
# Two images:
#   docker build --target serve   -t sensai-serve .            the server: no torch, no compiler, not root
#   docker build --target offline -t sensai-serve:offline .    train, prune and export
# For CUDA build on an image with CUDA 13 and cuDNN 9: --build-arg BASE=nvidia/cuda:13.0.0-cudnn-runtime-ubuntu24.04
# needs Python 3.11 or later in it.
ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
WORKDIR /src
RUN python3 -m pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE ./
COPY sensai_serve sensai_serve
COPY pruning pruning
COPY export export
COPY serving serving
COPY benchmarks benchmarks
RUN python3 -m build --wheel --outdir /dist

FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Libraries report nothing to their makers; sensai sets the same itself (sensai_serve/privacy.py).
ENV ORT_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1
RUN python3 -m venv /opt/sensai && useradd --system --uid 10001 --create-home sensai
ENV PATH=/opt/sensai/bin:$PATH
COPY constraints.txt /tmp/constraints.txt

FROM base AS offline
COPY --from=wheel /dist /tmp/dist
RUN wheel=$(ls /tmp/dist/*.whl) && pip install --constraint /tmp/constraints.txt "${wheel}[offline]" && rm -r /tmp/dist
USER sensai
WORKDIR /home/sensai
ENTRYPOINT ["sensai"]
CMD ["--help"]

FROM base AS serve
COPY --from=wheel /dist /tmp/dist
RUN wheel=$(ls /tmp/dist/*.whl) && pip install --constraint /tmp/constraints.txt "${wheel}[grpc]" && rm -r /tmp/dist \
    && if python -c "import torch" 2>/dev/null; then echo "torch is in the serving image" >&2; exit 1; fi
USER sensai
WORKDIR /home/sensai
# Inside a container loopback reaches nobody; what is published is the operator's choice (docker run -p).
ENV SENSAI_HTTP=0.0.0.0:8000 SENSAI_GRPC=0.0.0.0:8001
EXPOSE 8000 8001
VOLUME /bundles
HEALTHCHECK --interval=10s --timeout=2s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sensai", "serve"]
CMD ["--repository", "/bundles"]
