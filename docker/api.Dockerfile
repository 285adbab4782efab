# The API, `tenor migrate` and `tenor keys`. The image contains no model and no model library.
#   docker build -f docker/api.Dockerfile -t tenor-api .
FROM python:3.11.13-slim-bookworm AS dependencies
ENV PIP_CACHE_DIR=/pip-cache
RUN python -m venv /opt/tenor
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
RUN --mount=type=cache,target=/pip-cache \
    /opt/tenor/bin/pip install --constraint constraints.txt ".[tracing]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/tenor --create-home tenor
ENV PATH=/opt/tenor/bin:$PATH \
    PYTHONPATH=/srv/tenor \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TENOR_DATA_DIR=/var/lib/tenor
COPY --from=dependencies /opt/tenor /opt/tenor
WORKDIR /srv/tenor
COPY benchmarks benchmarks
COPY services services
COPY shared shared
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "services.cli"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
