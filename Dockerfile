# docker build --tag variational-diffusion .
# docker run --rm --user "$(id -u)" --volume "$PWD:/data" variational-diffusion demo
FROM python:3.13-slim AS build
COPY . /source
RUN python -m venv /opt/vdm \
    && /opt/vdm/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[all]"

FROM python:3.13-slim
COPY --from=build /opt/vdm /opt/vdm
ENV PATH=/opt/vdm/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /data
USER 1000
ENTRYPOINT ["vdm"]
CMD ["--help"]
