#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Macro-F1 as unknown classes come in, of one or several methods.
#
#   bash scripts/openset/run_openness.sh [HMDB|MiT] RUN-or-FILE ... [--score NAME ...]
#
# HMDB or MiT picks one of several sets of unknown videos of a run; a result file has but one.
set -euo pipefail
# shellcheck source=scripts/openset/openset.sh
source "$(dirname "$0")/openset.sh"

openset openness "$@"
