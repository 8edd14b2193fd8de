# SPDX-License-Identifier: Apache-2.0
"""MindVideo: action recognition for MindSpore, from video file to report.

    video file -> clip -> batch -> backbone -> head -> loss | score -> metric -> report

    data/       video.py  sampling.py  crops.py  transforms.py  manifest.py  datasets.py  splits.py  annotations.py
                episodes.py  selfsupervision.py  loader.py;  pose.py  pose_sets.py: joint rotations;
                images.py  mixing.py  corruptions/: images, two mixed, and 32 ways to make them worse
    models/     one paper, one file; layers.py the shared parts; recognizer.py any head on any backbone; registry.py
                create_model, list_models
    noise.py    random numbers by seed, for dropout and Bayesian weights
    heads.py    linear (also evidential), Bayesian, reciprocal: pooled features to logits
    attacks/    what breaks classifiers in [0, 1], over any object with logits and a gradient
    losses/  metrics/  report/
    native/     C++ operators for CPUs over oneDNN; of the networks, models/layers.py alone uses them
    engine/     loop.py  optim.py  checkpoint.py  device.py  nvidia.py  run.py  log.py
    tasks/      fewshot.py  openset.py  pose.py  robust.py: join the above; openset_experiments.py: open-set numbers
                from scores; robust_attack.py: the attack table
    predict/    what a network says of new clips;  serve/  the same over HTTP;  export/  MINDIR, ONNX, ModelArts
    convert/    checkpoints of other programs
    doctor.py   what of all this works on this machine;  speed.py  how fast
    zoo.py      papers, inputs and numbers of all models;  zoo_pages.py  the tables made of them
    schema.py   the keys of every YAML file;  config.py  reads them;  cli.py: `mindvideo train|eval|...`

Importing this package guards CPU users against a fault of newer MindSpore wheels, see `_guard_cpu_kernels`, and
lets MindSpore find a GPU, see `_name_cuda`.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata

__version__ = "0.1.0"
MINDSPORE = "2.8.0"


def _guard_cpu_kernels() -> None:
    """Keep convolutions off oneDNN's reference kernels.

    MindSpore 2.9 and 2.10 ship a oneDNN that sends every convolution on an AVX-512 CPU to its reference kernel,
    some hundred times slower. Capped at AVX2 before MindSpore loads, it picks an optimised one.
    """
    try:
        installed = metadata.version("mindspore")
    except metadata.PackageNotFoundError:
        return
    if installed != MINDSPORE:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
        warnings.warn(
            f"MindVideo is built and tested on MindSpore {MINDSPORE}, but {installed} is installed: results and speed "
            f"may differ. Install the tested one with `pip install mindspore=={MINDSPORE}`.",
            stacklevel=3,
        )


def _name_cuda() -> None:
    """Point MindSpore to the CUDA of scripts/setup_gpu.sh, if it is there: without CUDA_HOME it looks for no GPU.

    Its kernels hold no code for GPUs newer than Ada. The driver compiles that at the first call, and keeps it
    in a cache whose usual size is too small.
    """
    folder = os.path.join(sys.prefix, "cuda")
    if "CUDA_HOME" not in os.environ and os.path.isfile(os.path.join(folder, "bin", "nvcc")):
        os.environ["CUDA_HOME"] = folder
        os.environ.setdefault("CUDA_CACHE_MAXSIZE", "4000000000")


# MindSpore's warnings are for its own developers (a GPU it looked for, a class of its own that is deprecated); its
# errors still show. It reads this when it loads.
os.environ.setdefault("GLOG_v", "3")
# OpenMP's threads spin while they wait for one another. Where data workers need the cores too, that makes a training
# step six times as long; sleeping costs nothing that can be measured. libgomp reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
_guard_cpu_kernels()
_name_cuda()
