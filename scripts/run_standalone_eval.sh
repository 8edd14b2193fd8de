#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test a checkpoint and report.
#
#   bash scripts/run_standalone_eval.sh [device] [config] [load_ckpt] [dataset_dir] [key.sub=value ...]
#   bash scripts/run_standalone_eval.sh [PROJECT_PATH] [DATA_PATH]       the newest best.ckpt under ./output
#
# device is CPU, GPU, Ascend or auto. The report is written under ./eval/ and all lines to ./eval/eval.log.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

settings=(output=eval)
if folder_form "$@"; then
    checkpoint=
    for candidate in output/*/best.ckpt; do
        if [ "$candidate" -nt "$checkpoint" ]; then checkpoint=$candidate; fi
    done
    [ -n "$checkpoint" ] || fail "no best.ckpt under ./output; train first, or pass [device] [config] [load_ckpt]"
    config=$(dirname "$checkpoint")/config.yaml
    [ -z "$DATA" ] || settings+=("data.root=$DATA")
else
    [ $# -ge 3 ] || fail "expected [device] [config] [load_ckpt] [dataset_dir], got $# arguments"
    settings+=("device=$(printf '%s' "$1" | tr '[:upper:]' '[:lower:]')")
    config=$2
    checkpoint=$3
    shift 3
    for argument in "$@"; do
        case $argument in
            *=*) settings+=("$argument") ;;
            *) settings+=("data.root=$argument") ;;
        esac
    done
fi
[ -f "$config" ] || fail "config file $config does not exist"
ensure_environment ""
mkdir -p eval
"$VENV/bin/python" -m mindvideo eval "$config" --checkpoint "$checkpoint" "${settings[@]}" 2>&1 | tee eval/eval.log
