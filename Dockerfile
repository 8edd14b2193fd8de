# MindVideo on a CPU (Linux on x86-64); written without a Docker at hand, so not tried yet:
#
#   docker build -t mindvideo .
#   docker run --rm --shm-size 2g -v mindvideo:/opt/mindvideo/output mindvideo train configs/arn/arn_sample.yaml
#
# Data processes hand clips over in shared memory, of which Docker gives 64 MB. Your videos: -v /path/to/videos:/videos:ro.
FROM python:3.11-slim-bookworm

# g++ compiles the native operators, git names the commit in result.json.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 mindvideo \
    && mkdir -p /opt/venv /opt/mindvideo/output \
    && chown -R mindvideo /opt/venv /opt/mindvideo
USER mindvideo
WORKDIR /opt/mindvideo
# MINDVIDEO_VENV: where scripts/ look for the environment.
ENV MINDVIDEO_VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# The requirements alone first, so that a change of the code does not fetch them again.
COPY --chown=mindvideo requirements.txt ./
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir -r requirements.txt

# configs/ and data/ are read from the repository, so the package is installed in place.
COPY --chown=mindvideo . .
RUN pip install --no-cache-dir --editable .[serve,onnx] \
    && python -m mindvideo.native.build

ENTRYPOINT ["mindvideo"]
CMD ["--help"]
