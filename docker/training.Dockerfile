# The training recipes, for CPU or CUDA. Mount the corpora, caches and runs.
#   docker build -f docker/training.Dockerfile -t tenor-training --build-arg TORCH=cu126 .
#   docker run --gpus all -v /corpora:/data:ro -v /runs:/runs tenor-training \
#       train training/configs/compact.yaml --data /data --cache /runs/cache --out /runs/compact
FROM python:3.11.13-slim-bookworm AS dependencies
ARG TORCH=cpu
ENV PIP_CACHE_DIR=/pip-cache
RUN python -m venv /opt/tenor
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
# PyTorch alone: its package index lacks some of the pinned versions, which the second command installs.
RUN --mount=type=cache,target=/pip-cache \
    /opt/tenor/bin/pip install --constraint constraints.txt --no-deps --index-url https://download.pytorch.org/whl/${TORCH} torch && \
    /opt/tenor/bin/pip install --constraint constraints.txt ".[training,offline]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/tenor --create-home tenor
ENV PATH=/opt/tenor/bin:$PATH \
    PYTHONPATH=/srv/tenor \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LD_LIBRARY_PATH=/opt/tenor/lib/python3.11/site-packages/nvidia/cublas/lib:/opt/tenor/lib/python3.11/site-packages/nvidia/cudnn/lib \
    MPLCONFIGDIR=/tmp/matplotlib \
    TENOR_DATA_DIR=/var/lib/tenor
COPY --from=dependencies /opt/tenor /opt/tenor
WORKDIR /srv/tenor
COPY shared shared
COPY training training
USER 10001:10001
# A training run ends by itself, so its exit status is enough.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
