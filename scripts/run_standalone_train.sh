#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train, test and report on one device.
#
#   bash scripts/run_standalone_train.sh                                     the embedded sample, ARN, CPU
#   bash scripts/run_standalone_train.sh [config_file] [pretrained_model] [key.sub=value ...]
#   bash scripts/run_standalone_train.sh [PROJECT_PATH] [DATA_PATH]
#
# Results go to ./output/<name of the config>/ ; the last line names the report.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

settings=()
if folder_form "$@"; then
    config=$ROOT/configs/arn/arn_sample.yaml
    if [ -n "$DATA" ]; then
        config=$(config_for_data "$DATA")
        settings+=("data.root=$DATA")
    fi
else
    config=$ROOT/configs/arn/arn_sample.yaml
    case ${1:-} in '' | *=*) ;; *) config=$1 && shift ;; esac
    for argument in "$@"; do
        case $argument in
            *=*) settings+=("$argument") ;;
            *) settings+=("train.pretrained=$argument") ;;
        esac
    done
fi
[ -f "$config" ] || fail "config file $config does not exist"
ensure_environment ""
exec "$VENV/bin/python" -m mindvideo train "$config" "${settings[@]+"${settings[@]}"}"
