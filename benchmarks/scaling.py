# SPDX-License-Identifier: Apache-2.0
"""What training by many processes costs, measured on this machine, and what follows for many devices.

    python benchmarks/scaling.py [--config FILE] [--repeats N] [key.sub=value ...]

Measured: the processor time that a training clip takes from its file to the network's input, by the config's reader,
and how long two processes need to add up gradients of several sizes. From these and two assumptions, clips a second of
a device and bytes a second of its network, follows what 1 to 64 devices train on in a second, and what holds them up.
docs/scaling.md explains the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MEGABYTES = (0.4, 4, 40, 110)  # the last is I3D's gradient
MEASURE = "--all-reduce"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/dear/sample.yaml"), help="an open-set config")
    parser.add_argument("settings", nargs="*", metavar="KEY.SUB=VALUE", help="settings that win over the config's")
    parser.add_argument("--repeats", type=int, default=40, help="clips read")
    parser.add_argument("--clips", type=float, nargs="+", default=[20, 100], help="clips a second of one device alone")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second of a device's network, one way")
    parser.add_argument("--cores", type=int, default=16, help="cores for decoding that a device has")
    parser.add_argument("--batch", type=int, default=8, help="clips of a device's batch")
    parser.add_argument(MEASURE, action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.all_reduce:
        measure_all_reduce()
        return
    seconds, size = clip_cost(words.config, words.settings, words.repeats)
    print(f"a clip from its file: {1000 * seconds:.1f} ms of one core; {size / 1e6:.1f} MB as it goes in")
    print(start_all_reduce())
    gradient = 4 * 27.43e6
    for rate in words.clips:
        print(f"\nI3D R50, {rate:g} clips/s a device alone, batch {words.batch}, {words.cores} cores a device")
        print("devices   clips/s  of ideal  held up by")
        for devices in (1, 2, 4, 8, 16, 32, 64):
            clips, cause = throughput(devices, rate, words.batch, seconds / words.cores, gradient / words.bandwidth)
            print(f"{devices:7d} {clips:9.0f} {100 * clips / (devices * rate):8.0f} %  {cause}")


def throughput(devices: int, rate: float, batch: int, load: float, send: float) -> tuple[float, str]:
    """Clips a second of all devices, and what holds them up: `rate` are those of one alone, `load` the seconds that a
    clip takes to be read by its cores, `send` those in which a gradient passes the network once."""
    compute, sync = batch / rate, 2 * (devices - 1) / devices * send
    step, cause = compute + sync, "computing" if compute >= sync else "adding up gradients"
    if batch * load > step:
        step, cause = batch * load, "reading clips"
    return devices * batch / step, cause


def clip_cost(config_path: str, settings: list[str], repeats: int) -> tuple[float, int]:
    """Processor seconds and bytes of a training clip, a mean over clips of the data set."""
    from mindvideo.config import load_config
    from mindvideo.tasks.openset_data import check_videos, find_videos

    config = load_config(Path(config_path), settings)
    data = check_videos(config, find_videos(config), ("train",))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(data.parts["train"]))[:repeats]
    started, size = time.process_time(), 0
    for place in chosen:
        size = data.train_reader(data.parts["train"][place], rng).nbytes
    return (time.process_time() - started) / len(chosen), size


def start_all_reduce() -> str:
    """What two processes say of adding up gradients."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["msrun", "--worker_num=2", "--local_worker_num=2", "--master_port=18811", f"--log_dir={folder}"]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [*words, "--join=True", "python", __file__, MEASURE],
            env=environment, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        log = Path(folder, "worker_0.log")
        told = log.read_text().splitlines() if log.is_file() else []
    if done.returncode:
        sys.exit("\n".join(["the two processes failed:", *told[-20:]]))
    return "\n".join(line for line in told if line.startswith("all-reduce"))


def measure_all_reduce() -> None:
    from mindspore import Tensor, ops

    from mindvideo.engine import distributed
    from mindvideo.engine.device import use_device

    use_device("auto")
    add = ops.AllReduce()
    for megabytes in MEGABYTES:
        gradient = Tensor(np.zeros(int(megabytes * 1e6 / 4), np.float32))
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            add(gradient).asnumpy()
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        if distributed.is_first():
            print(
                f"all-reduce of {megabytes:g} MB by 2 processes: {1000 * median:.1f} ms, {megabytes / median:.0f} MB/s"
            )


if __name__ == "__main__":
    main()
