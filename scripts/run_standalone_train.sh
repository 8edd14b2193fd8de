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

settings=() config=$ROOT/configs/arn/arn_sample.yaml
if folder_form "$@"; then
    if [ -n "$DATA" ]; then
        config=$(config_for_data "$DATA")
        settings+=("data.root=$DATA")
    fi
else
    config_form "$@"
fi
[ -f "$config" ] || fail "config file $config does not exist"
ensure_environment ""
exec "$VENV/bin/python" -m mindvideo train "$config" "${settings[@]+"${settings[@]}"}"
