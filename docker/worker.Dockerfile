# A worker, for CPU or CUDA, with the shipped bundle and Whisper base. It downloads nothing when it runs.
#   docker build -f docker/worker.Dockerfile -t tenor-worker .
#   docker build -f docker/worker.Dockerfile -t tenor-worker-cuda --build-arg TORCH=cu126 .
FROM python:3.11.13-slim-bookworm AS dependencies
# CTranslate2's wheels are for CUDA 12, so PyTorch's must be too. CTranslate2 then uses the cuBLAS and cuDNN of PyTorch.
ARG TORCH=cpu
ENV PIP_CACHE_DIR=/pip-cache
RUN python -m venv /opt/tenor
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
# PyTorch alone: its package index lacks some of the pinned versions, which the second command installs.
RUN --mount=type=cache,target=/pip-cache \
    /opt/tenor/bin/pip install --constraint constraints.txt --no-deps --index-url https://download.pytorch.org/whl/${TORCH} torch && \
    /opt/tenor/bin/pip install --constraint constraints.txt ".[models,offline,tracing]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/tenor --create-home tenor
ENV PATH=/opt/tenor/bin:$PATH \
    PYTHONPATH=/srv/tenor \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LD_LIBRARY_PATH=/opt/tenor/lib/python3.11/site-packages/nvidia/cublas/lib:/opt/tenor/lib/python3.11/site-packages/nvidia/cudnn/lib \
    TENOR_DATA_DIR=/var/lib/tenor
COPY --from=dependencies /opt/tenor /opt/tenor
WORKDIR /srv/tenor
# The bundle comes before the code because it changes less often: a change of the code then reuses this layer.
COPY shared/bundles shared/bundles
COPY workers workers
COPY shared shared
USER 10001:10001
# Checks the file that the worker touches while it takes messages from the broker. The metrics port would respond even
# if the worker took none.
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s CMD ["python", "-m", "workers.health"]
ENTRYPOINT ["python", "-m", "workers"]
