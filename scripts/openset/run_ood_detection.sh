#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Detection of unknown videos, without a threshold.
#
#   bash scripts/openset/run_ood_detection.sh [HMDB|MiT] RUN-or-FILE ... [--score NAME ...]
#
# HMDB or MiT picks one of several sets of unknown videos of a run; a result file has but one.
set -euo pipefail
# shellcheck source=scripts/openset/openset.sh
source "$(dirname "$0")/openset.sh"

openset ood "$@"
