# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the other scripts: the repository's own environment, and the two forms of their arguments.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${MINDVIDEO_VENV:-$ROOT/.venv}

say() { printf '%s\n' "$*"; }
fail() { printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

find_python() {
    local name
    for name in python3.11 python3.12 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or 3.12 is needed; found $(python3 --version 2>&1 || echo none)"
}

# Make .venv and install the package with the given extras. A stamp of the requirement files and extras makes the
# next call instant.
ensure_environment() {
    local extras=$1 stamp wanted
    stamp=$VENV/.mindvideo-$extras
    wanted=$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum)
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    local python
    python=$(find_python)
    say "Installing into $VENV (first call only, some minutes)"
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV" || fail "cannot make $VENV; on Debian: apt-get install python3-venv"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt" \
        -e "$ROOT${extras:+[$extras]}" || fail "the installation failed; see the lines above (it needs the network)"
    printf '%s' "$wanted" >"$stamp"
}

# The folder form [PROJECT_PATH] [DATA_PATH]: sets PROJECT and DATA, true if the first argument is a folder.
folder_form() {
    [ $# -ge 1 ] && [ -d "$1" ] || return 1
    PROJECT=$(cd "$1" && pwd)
    DATA=${2:-}
    [ -z "$DATA" ] || [ -d "$DATA" ] || fail "DATA_PATH $DATA is not a folder"
    [ -f "$PROJECT/pyproject.toml" ] || fail "PROJECT_PATH $PROJECT is not the MindVideo repository"
    [ "$PROJECT" = "$ROOT" ] || fail "PROJECT_PATH $PROJECT is not $ROOT, the repository of this script"
}

# The form [config_file] [pretrained_model] [key.sub=value ...]: sets the array settings, and config where one is given.
config_form() {
    case ${1:-} in '' | *=*) ;; *) config=$1 && shift ;; esac
    local argument
    for argument in "$@"; do
        case $argument in
            *=*) settings+=("$argument") ;;
            *) settings+=("train.pretrained=$argument") ;;
        esac
    done
}

# The dataset that a folder of videos holds, by its name and its file names, as a config of configs/arn.
config_for_data() {
    if find "$1" -maxdepth 2 -name 'v_*_g[0-9][0-9]_c[0-9][0-9]*' -print -quit | grep -q .; then
        say "$ROOT/configs/arn/arn_ucf101_small.yaml"
    elif find "$1" -maxdepth 2 -name '*_np[0-9]_*' -print -quit | grep -q .; then
        say "$ROOT/configs/arn/arn_hmdb51_small.yaml"
    else
        fail "DATA_PATH $1 holds neither UCF101 nor HMDB51 names; pass a config file instead"
    fi
}
