# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the other scripts here: `openset EXPERIMENT [HMDB|MiT] RUN-or-FILE ...` runs `mindvideo openset`.

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

openset() {
    local experiment=$1 unknown=()
    shift
    case ${1:-} in
        HMDB) unknown=(--unknown hmdb51); shift ;;
        MiT) unknown=(--unknown mit); shift ;;
    esac
    [ $# -ge 1 ] || fail "expected [HMDB|MiT] RUN-or-FILE ...: runs with scores (mindvideo openset predict RUN), or result files of DEAR"
    ensure_environment ""
    exec "$VENV/bin/python" -m mindvideo openset "$experiment" "$@" "${unknown[@]}"
}
