#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train on several devices.
#
#   bash scripts/run_distribute_train.sh [DEVICE_NUM] [VISIBLE_DEVICES] [config_file] [pretrained_model]
#   bash scripts/run_distribute_train.sh [PROJECT_PATH] [DATA_PATH]
#
# Not in this version: it checks its arguments, says what to do, and exits with status 2.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

if ! folder_form "$@"; then
    [ $# -ge 2 ] || fail "expected [DEVICE_NUM] [VISIBLE_DEVICES] [config_file] [pretrained_model], e.g. 8 0,1,2,3,4,5,6,7 ./arn.yaml"
    case $1 in '' | *[!0-9]* | 0) fail "DEVICE_NUM $1 is not a number of devices" ;; esac
    listed=$(printf '%s' "$2" | tr ',' '\n' | grep -c .)
    [ "$listed" = "$1" ] || fail "DEVICE_NUM is $1, but VISIBLE_DEVICES $2 lists $listed"
    [ -z "${3:-}" ] || [ -f "$3" ] || fail "config file $3 does not exist"
fi
fail "distributed training is not available yet; train on one device with: bash scripts/run_standalone_train.sh ${3:-[config_file]}"
