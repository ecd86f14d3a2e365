# The image that pods of `effnet launch kubernetes` run in: Python, the packages, the code. No data and no secrets.
#
#   docker build --tag registry.example.org/effnet:1 .
#
# torch brings its own CUDA libraries; the nodes bring the driver.
FROM python:3.12-slim

# g++: DeepSpeed builds an extension at its first use, torch.compile its kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv

WORKDIR /opt/effnet
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/venv PATH=/opt/venv/bin:$PATH

# Packages first: they change less often than the code.
COPY pyproject.toml README.md ./
RUN uv sync --no-dev --extra s3 --extra gcs --extra demo --no-install-project

COPY configs configs
COPY datamodules datamodules
COPY launch launch
COPY trainer trainer
RUN uv sync --no-dev --extra s3 --extra gcs --extra demo

# The command comes from the job.
CMD ["effnet", "--help"]
