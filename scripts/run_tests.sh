#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests; arguments go to pytest (-n 0: in one process).
#
#   bash scripts/run_tests.sh
#
# Golden arrays and real clips are read from MINDVIDEO_GOLDEN and MINDVIDEO_DATA where these folders exist.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

ensure_environment "dev"
cd "$ROOT"
# A process for each core, which compiles and computes with one thread; nproc itself looks at OMP_NUM_THREADS.
processes=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest --numprocesses="$processes" --dist=loadfile "$@"
