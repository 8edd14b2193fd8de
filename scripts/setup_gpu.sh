#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prepare the environment for an NVIDIA GPU. CUDA comes as Python packages: the machine needs no more than a driver.
#
#   bash scripts/setup_gpu.sh
#
# Needed once, and again after MindSpore was installed anew; then `device: auto` and `device: gpu` find the GPU. It
# needs no GPU itself. What it does and what to expect: docs/gpu.md
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

[ $# -eq 0 ] || fail "expected no arguments, got: $*"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "MindSpore's GPU plugin is for Linux x86_64, this is $(uname -sm)"
ensure_environment "gpu"

site=$(cd "$VENV"/lib/python3.*/site-packages && pwd)
plugin=$site/mindspore/lib/plugin
[ -f "$plugin/libmindspore_gpu.so.11.6" ] || fail "the installed MindSpore has no GPU plugin: no $plugin/libmindspore_gpu.so.11.6"

# The plugin looks for its libraries in gpu11.6 beside it, before any other place.
shopt -s nullglob
for library in "$site"/nvidia/{cublas,cuda_nvrtc,cuda_runtime,cudnn,cufft,curand,cusolver,cusparse}/lib/*.so.*; do
    ln -sfn "$library" "$plugin/gpu11.6/"
done
# MindSpore's check of versions reads a file name, in a folder lib* beside that of the library.
mkdir -p "$plugin/lib64"
ln -sfn ../gpu11.6/libcudart.so.11.0 "$plugin/lib64/libcudart.so.11.6.124"

# MindSpore tries the plugin only where CUDA_HOME names a CUDA whose compiler says that it is of the plugin's version;
# importing mindvideo sets CUDA_HOME to this folder. Nothing is ever compiled with it.
mkdir -p "$VENV/cuda/bin"
printf '#!/bin/sh\necho "Cuda compilation tools, release 11.6, V11.6.124"\n' >"$VENV/cuda/bin/nvcc"
chmod +x "$VENV/cuda/bin/nvcc"

say "The GPU is set up in $VENV. Check it on the machine that has one: $VENV/bin/mindvideo doctor --device gpu"
