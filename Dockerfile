# docker build --target client | worker: two images from one file. The client's, which is also Flower's, has no torch.
# docs/compose.md says how the arguments go together.

FROM python:3.11-slim AS client-packages
RUN python -m venv /opt/gptjobs
ENV PATH=/opt/gptjobs/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
# the dependencies in layers of their own: new code in gptjobs/ or worker/ does not install them again
RUN mkdir gptjobs worker && touch gptjobs/__init__.py worker/__init__.py \
    && pip install -q -c constraints.txt . flower

FROM client-packages AS worker-packages
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=
# cpu: from the index of torch's CPU builds, where one is named; else the build that the usual index has
RUN if [ "$TORCH" = cpu ] && [ -n "$TORCH_CPU_INDEX" ]; then \
        pip install -q --no-deps --index-url "$TORCH_CPU_INDEX" -c constraints.txt torch; \
    fi \
    && pip install -q -c constraints.txt '.[worker,notify]'

FROM client-packages AS client-build
COPY gptjobs gptjobs
COPY worker worker
RUN pip install -q --no-deps --force-reinstall . && pip uninstall -q -y pip

FROM worker-packages AS worker-build
COPY gptjobs gptjobs
COPY worker worker
RUN pip install -q --no-deps --force-reinstall . && pip uninstall -q -y pip

FROM python:3.11-slim AS base
# HOME and USER: the user whom compose names has no entry in /etc/passwd; matplotlib and torch ask for both
ENV PATH=/opt/gptjobs/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=gptjobs GPTJOBS_ROOT=/srv/gptjobs
# the root's folders are mounts, of which outputs/ carries the root's marker: see docs/compose.md
RUN mkdir -p /srv/gptjobs && cd /srv/gptjobs && mkdir checkpoints shared_data logs outputs \
    && ln -s outputs/.gptjobs-root .gptjobs-root
WORKDIR /srv/gptjobs
USER 1000:1000

FROM base AS client
COPY deploy/redis-users.acl deploy/setup.py /opt/deploy/
COPY --from=client-build /opt/gptjobs /opt/gptjobs
ENTRYPOINT ["gptjobs"]

FROM base AS worker
COPY --from=worker-build /opt/gptjobs /opt/gptjobs
ENTRYPOINT ["gptjobs"]
CMD ["worker", "start"]
