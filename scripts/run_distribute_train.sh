#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train on several devices, a process each, then test and report.
#
#   bash scripts/run_distribute_train.sh [DEVICE_NUM] [VISIBLE_DEVICES] [config_file] [pretrained_model] [key.sub=value ...]
#   bash scripts/run_distribute_train.sh [PROJECT_PATH] [DATA_PATH]         on all GPUs or NPUs, or by two processes on a CPU
#
#   e.g. bash scripts/run_distribute_train.sh 8 0,1,2,3,4,5,6,7 configs/arn/ucf101.yaml checkpoints/arn.ckpt
#        bash scripts/run_distribute_train.sh 2 0,1 configs/dear/sample.yaml device=cpu train.resume=auto
#
# Several machines: start it on each, with NNODES (how many), NODE_RANK (0 on the first), MASTER_ADDR (of the first) and,
# if 8118 is taken there, MASTER_PORT. DEVICE_NUM counts one machine's; all must see the same ./train/ckpt.
#
# The run goes to ./train/ckpt/<name of the config>/ , what it says to ./train/train.log , every process's own words to
# ./train/log/ . Ctrl-C and SIGTERM let the step end and write a checkpoint, which train.resume=auto continues.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

settings=() config=$ROOT/configs/arn/arn_sample.yaml
if folder_form "$@"; then
    devices=$(find /dev -maxdepth 1 \( -name 'nvidia[0-9]*' -o -name 'davinci[0-9]*' \) 2>/dev/null | wc -l)
    [ "$devices" -gt 0 ] || devices=2
    visible=$(seq -s, 0 $((devices - 1)))
    if [ -n "$DATA" ]; then
        config=$(config_for_data "$DATA")
        settings+=("data.root=$DATA")
    fi
else
    [ $# -ge 2 ] || fail "expected [DEVICE_NUM] [VISIBLE_DEVICES] [config_file] [pretrained_model], e.g. 8 0,1,2,3,4,5,6,7 ./arn.yaml"
    devices=$1 visible=$2
    shift 2
    case $devices in '' | *[!0-9]* | 0) fail "DEVICE_NUM $devices is not a number of devices" ;; esac
    listed=$(printf '%s' "$visible" | tr ',' '\n' | grep -c .) || true
    [ "$listed" = "$devices" ] || fail "DEVICE_NUM is $devices, but VISIBLE_DEVICES $visible lists $listed"
    config_form "$@"
fi
[ -f "$config" ] || fail "config file $config does not exist"
nodes=${NNODES:-1} node=${NODE_RANK:-0} address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-}
[ "$nodes" = 1 ] || [ -n "${MASTER_ADDR:-}" ] || fail "NNODES is $nodes: set MASTER_ADDR to the address of the first machine"
ensure_environment ""
if [ "$node" = 0 ]; then
    port=$("$VENV/bin/python" - "$nodes" "$port" <<'PYTHON'
import socket, sys
nodes, port = sys.argv[1:]
port = int(port or (0 if nodes == "1" else 8118))  # 0: any free one
try:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the scheduler itself does
        listener.bind(("", port))
        print(listener.getsockname()[1])
except OSError as error:
    sys.exit(f"port {port} cannot be used ({error.strerror}); set MASTER_PORT to another one, the same on all machines")
PYTHON
    ) || fail "no process was started"
fi

[ ! -d train/log ] || mv train/log "train/log-$(date +%Y%m%dT%H%M%S)"
mkdir -p train/ckpt train/log
ln -sfn "log/worker_$((node * devices)).log" train/train.log
ln -sfn train.log train/tran.log
export CUDA_VISIBLE_DEVICES=$visible ASCEND_RT_VISIBLE_DEVICES=$visible PATH=$VENV/bin:$PATH
# Processes on one CPU share its cores.
cores=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > devices ? cores / devices : 1))}

# In a session of its own, so that Ctrl-C comes to the processes by us alone, and not to the one that they meet by.
setsid msrun --worker_num=$((nodes * devices)) --local_worker_num="$devices" --node_rank="$node" \
    --master_addr="$address" --master_port="${port:-8118}" --log_dir=train/log --join=True \
    python -m mindvideo train "$config" output=train/ckpt "${settings[@]+"${settings[@]}"}" >train/log/msrun.log 2>&1 &
launcher=$!
stopped=
# shellcheck disable=SC2329 # the trap calls it
stop() {
    stopped=1
    for process in /proc/[0-9]*; do
        if grep -qsx "PPid:.$launcher" "$process/status" && grep -qszx MS_ROLE=MS_WORKER "$process/environ"; then
            kill -TERM "${process#/proc/}" || true
        fi
    done
}
trap stop INT TERM
tail -n +1 -F --pid="$launcher" train/train.log 2>/dev/null | grep --line-buffered -v '\[INFO\] DISTRIBUTED' &
reader=$!
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" || true # a signal, too, ends it
done
status=0
wait "$launcher" || status=$?
wait "$reader" || true
[ "$status" = 0 ] && exit 0
if [ -n "$stopped" ]; then
    printf '%s: stopped; train.resume=auto continues from the last checkpoint in train/ckpt\n' "$(basename "$0")" >&2
    exit 130
fi
if grep -hs '^mindvideo: error:' train/log/worker_*.log | sort -u | grep . >&2; then exit 2; fi
reason=$(grep -o 'Worker process .* exit with exception. Error code: .*' train/log/msrun.log | head -1) || true
printf '%s: error: %s\nThe run stops; train.resume=auto continues from its last checkpoint. More in train/log/ .\n' \
    "$(basename "$0")" "${reason:-a process of another machine is gone, or could not be met}" >&2
exit 1
