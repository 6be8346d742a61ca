# foldtrain on a Kubernetes node, as docs/clusters/kuberay.md uses it: Ray's head, workers and autoscaler are all of it.
#
#     docker build --tag registry.example/foldtrain:0.1.0 .
#
# It has no entry point: KubeRay gives each container its command. It runs as user 1000, and holds no secret.
FROM python:3.11.13-slim-bookworm

# g++ builds the small extension with which DeepSpeed starts on CPUs; what is fetched here is pinned by the base's release
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm --recursive --force /var/lib/apt/lists/*

ENV PATH=/opt/foldtrain/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

# an operator that starts login shells (ENABLE_LOGIN_SHELL) has them read this in place of PATH above
RUN python -m venv /opt/foldtrain \
 && echo 'PATH=/opt/foldtrain/bin:$PATH' > /etc/profile.d/foldtrain.sh

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE foldtrain.py ./
COPY configs configs
COPY model model
COPY data_pipeline data_pipeline
COPY trainer trainer
COPY cluster cluster
RUN PIP_CONSTRAINT=constraints.txt pip install --constraint constraints.txt '.[kubernetes]'

RUN useradd --uid 1000 --create-home foldtrain
WORKDIR /home/foldtrain
USER 1000:1000
