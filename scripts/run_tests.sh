#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests; arguments go to pytest.
#
#   bash scripts/run_tests.sh
#
# Golden arrays and real clips are read from MINDVIDEO_GOLDEN and MINDVIDEO_DATA where these folders exist.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

ensure_environment "dev"
cd "$ROOT"
exec "$VENV/bin/python" -m pytest "$@"
