# gpuopt in a container: prints what it finds, then runs the demo.
#
#   docker build -t gpuopt .                                   CUDA 13; start with: docker run --rm --gpus all gpuopt
#   docker build -t gpuopt --build-arg BASE=python:3.12-slim --build-arg EXTRAS=demo .         any machine, no GPU
#
# tests/test_dockerfile.py runs these steps one by one, outside a container.

ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}
ARG EXTRAS=cuda13,demo

# Python, where the base image has none (NVIDIA's) or has it without venv.
RUN python3 -c 'import ensurepip, venv' 2>/dev/null || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }

COPY . /opt/gpuopt/src
RUN python3 -m venv /opt/gpuopt/venv
RUN /opt/gpuopt/venv/bin/python -m pip install "/opt/gpuopt/src[${EXTRAS}]"
ENV PATH=/opt/gpuopt/venv/bin:${PATH}

WORKDIR /opt/gpuopt/out
CMD ["sh", "-c", "gpuopt info && gpuopt demo"]
