# SPDX-License-Identifier: Apache-2.0
"""The shell entry points: which command each form of their arguments becomes. Nothing is installed or trained."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from time import sleep

import pytest

from tests.conftest import REPOSITORY
from tests.environment import OURS, make_environment

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.sh"))
SAMPLE = REPOSITORY / "configs" / "arn" / "arn_sample.yaml"
# Stands for the environment's Python: notes its arguments, one a line, and prints a line as a run would.
STUB = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >"$(dirname "$0")/../called"\necho working\n'


class Shell:
    """Runs scripts in a folder of its own against a stub of the environment."""

    def __init__(self, folder: Path):
        self.folder = folder / "here"
        self.venv = folder / "venv"
        self.folder.mkdir()
        make_environment(self.venv, {"python": STUB, "msrun": STUB})

    def run(self, script: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)]
        environment = os.environ | {"MINDVIDEO_VENV": str(self.venv)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def called(self, script: str, *words: object) -> list[str]:
        """What a script that succeeds gives to Python."""
        done = self.run(script, *words)
        assert done.returncode == 0, done.stderr
        assert "Installing" not in done.stdout
        return (self.venv / "called").read_text().splitlines()

    def refused(self, script: str, *words: object) -> str:
        """The one line of a script that refuses."""
        done = self.run(script, *words)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert not (self.venv / "called").exists()
        lines = done.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"{script}: error: ")
        return lines[0]


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def ucf101(tmp_path) -> Path:
    video = tmp_path / "some data" / "Archery" / "v_Archery_g01_c01.avi"
    video.parent.mkdir(parents=True)
    video.touch()
    return video.parent.parent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    found = subprocess.run(
        ["shellcheck", "-x", *SCRIPTS, ".ci/run"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_train_without_arguments_takes_the_sample(shell):
    assert shell.called("run_standalone_train.sh") == ["-m", "mindvideo", "train", str(SAMPLE)]


def test_train_takes_config_pretrained_and_settings(shell):
    config = shell.folder / "my own.yaml"
    config.touch()
    train = ["-m", "mindvideo", "train"]
    assert shell.called("run_standalone_train.sh", config) == [*train, str(config)]
    assert shell.called("run_standalone_train.sh", "my own.yaml", "a b.ckpt", "optim.lr=1e-3") == [
        *train, "my own.yaml", "train.pretrained=a b.ckpt", "optim.lr=1e-3",
    ]  # fmt: skip
    settings = ["train.episodes=5", "train.resume=auto"]
    assert shell.called("run_standalone_train.sh", config, *settings) == [*train, str(config), *settings]
    assert shell.called("run_standalone_train.sh", *settings) == [*train, str(SAMPLE), *settings]


def test_train_takes_project_and_data_folders(shell, ucf101):
    train = ["-m", "mindvideo", "train"]
    assert shell.called("run_standalone_train.sh", REPOSITORY) == [*train, str(SAMPLE)]
    config = REPOSITORY / "configs" / "arn" / "arn_ucf101_small.yaml"
    assert shell.called("run_standalone_train.sh", REPOSITORY, ucf101) == [
        *train, str(config), f"data.root={ucf101}",
    ]  # fmt: skip
    (ucf101 / "Archery" / "v_Archery_g01_c01.avi").rename(ucf101 / "Archery" / "Film_wave_u_nm_np1_fr_med_0.avi")
    config = REPOSITORY / "configs" / "arn" / "arn_hmdb51_small.yaml"
    assert shell.called("run_standalone_train.sh", REPOSITORY, ucf101)[3] == str(config)


def test_train_refuses_what_is_not_there(shell, ucf101, tmp_path):
    assert "no.yaml does not exist" in shell.refused("run_standalone_train.sh", "no.yaml")
    assert "nowhere is not a folder" in shell.refused("run_standalone_train.sh", REPOSITORY, "nowhere")
    assert "is not the MindVideo repository" in shell.refused("run_standalone_train.sh", ucf101)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither UCF101 nor HMDB51" in shell.refused("run_standalone_train.sh", REPOSITORY, empty)


@pytest.mark.parametrize("script", ["run_standalone_eval.sh", "run_eval.sh"])
def test_eval_takes_device_config_checkpoint_and_data(shell, script):
    expected = ["-m", "mindvideo", "eval", str(SAMPLE), "--checkpoint", "a.ckpt", "output=eval"]
    assert shell.called(script, "CPU", SAMPLE, "a.ckpt") == [*expected, "device=cpu"]
    assert shell.called(script, "Ascend", SAMPLE, "a.ckpt", "my data", "eval.shot=5") == [
        *expected, "device=ascend", "data.root=my data", "eval.shot=5",
    ]  # fmt: skip
    assert (shell.folder / "eval" / "eval.log").read_text() == "working\n"


def test_eval_of_folders_takes_the_newest_best_checkpoint(shell, ucf101):
    for age, name in enumerate(["new run", "old run"]):
        run = shell.folder / "output" / name
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "best.ckpt").touch()
        os.utime(run / "best.ckpt", (1e9 - age, 1e9 - age))
    run = "output/new run"
    expected = ["-m", "mindvideo", "eval", f"{run}/config.yaml", "--checkpoint", f"{run}/best.ckpt", "output=eval"]
    assert shell.called("run_standalone_eval.sh", REPOSITORY) == expected
    assert shell.called("run_standalone_eval.sh", REPOSITORY, ucf101) == [*expected, f"data.root={ucf101}"]


def test_eval_refuses_what_is_missing(shell):
    assert "expected [device] [config] [load_ckpt]" in shell.refused("run_standalone_eval.sh")
    assert "got 2 arguments" in shell.refused("run_standalone_eval.sh", "CPU", SAMPLE)
    assert "no.yaml does not exist" in shell.refused("run_standalone_eval.sh", "CPU", "no.yaml", "a.ckpt")
    assert "no best.ckpt under ./output" in shell.refused("run_standalone_eval.sh", REPOSITORY)


def test_a_failed_evaluation_fails_the_script(shell):
    (shell.venv / "bin" / "python").write_text("#!/bin/sh\necho broken >&2\nexit 2\n")
    assert shell.run("run_standalone_eval.sh", "CPU", SAMPLE, "a.ckpt").returncode == 2
    assert (shell.folder / "eval" / "eval.log").read_text() == "broken\n"


DISTRIBUTED = "run_distribute_train.sh"
# Beside its arguments, it notes what of its surroundings counts.
MSRUN = (
    STUB
    + """for name in CUDA_VISIBLE_DEVICES ASCEND_RT_VISIBLE_DEVICES OMP_NUM_THREADS; do
    eval "printf '%s=%s\\n' $name \\"\\$$name\\""
done >"$(dirname "$0")/../surroundings"
"""
)


@pytest.fixture
def several(shell, monkeypatch) -> Shell:
    """A shell whose msrun is a stub; a port is looked for by the real Python."""
    shutil.rmtree(shell.venv)
    make_environment(shell.venv, OURS | {"msrun": MSRUN})
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return shell


def test_distributed_training_calls_msrun(several, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    words = several.called(DISTRIBUTED, 2, "4,5", SAMPLE, "a b.ckpt", "optim.lr=1e-3")
    port = os.environ["MASTER_PORT"]
    assert words == [
        "--worker_num=2", "--local_worker_num=2", "--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}",
        "--log_dir=train/log", "--join=True", "python", "-m", "mindvideo", "train", str(SAMPLE), "output=train/ckpt",
        "train.pretrained=a b.ckpt", "optim.lr=1e-3",
    ]  # fmt: skip
    surroundings = dict(line.split("=") for line in (several.venv / "surroundings").read_text().splitlines())
    assert surroundings["CUDA_VISIBLE_DEVICES"] == surroundings["ASCEND_RT_VISIBLE_DEVICES"] == "4,5"
    assert int(surroundings["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    train = several.folder / "train"
    assert (train / "train.log").readlink() == Path("log/worker_0.log")
    assert (train / "ckpt").is_dir()
    assert (train / "log" / "msrun.log").read_text() == "working\n"


def test_distributed_training_takes_any_free_port_and_keeps_old_logs(several):
    ports = {several.called(DISTRIBUTED, 1, 0)[4] for _ in range(2)}
    assert all(int(port.removeprefix("--master_port=")) > 1023 for port in ports)
    assert len(list((several.folder / "train").glob("log*"))) == 2


def test_distributed_training_on_a_second_machine(several, monkeypatch):
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    words = several.called(DISTRIBUTED, 4, "0,1,2,3", SAMPLE)
    assert words[:5] == [
        "--worker_num=8", "--local_worker_num=4", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=8118",
    ]  # fmt: skip
    assert (several.folder / "train" / "train.log").readlink() == Path("log/worker_4.log")


def test_distributed_training_takes_project_and_data_folders(several, ucf101):
    words = several.called(DISTRIBUTED, REPOSITORY, ucf101)
    config = REPOSITORY / "configs" / "arn" / "arn_ucf101_small.yaml"
    assert words[-3:] == [str(config), "output=train/ckpt", f"data.root={ucf101}"]


def test_distributed_training_refuses_clearly(several, monkeypatch):
    assert "expected [DEVICE_NUM]" in several.refused(DISTRIBUTED)
    assert "expected [DEVICE_NUM]" in several.refused(DISTRIBUTED, 2)
    for number in ("two", "0", "-1", "''", "2.0"):
        assert f"DEVICE_NUM {number} is not a number" in several.refused(DISTRIBUTED, number, "0,1")
    assert "DEVICE_NUM is 8, but VISIBLE_DEVICES 0,1 lists 2" in several.refused(DISTRIBUTED, 8, "0,1")
    assert "no.yaml does not exist" in several.refused(DISTRIBUTED, 2, "0,1", "no.yaml")
    monkeypatch.setenv("NNODES", "2")
    assert "NNODES is 2: set MASTER_ADDR to the address" in several.refused(DISTRIBUTED, 2, "0,1", SAMPLE)
    assert not (several.folder / "train").exists()


def test_distributed_training_refuses_a_port_that_is_taken(several, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        done = several.run(DISTRIBUTED, 2, "0,1", SAMPLE)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"port {port} cannot be used (Address already in use); set MASTER_PORT to another one, the same on all "
        "machines",
        f"{DISTRIBUTED}: error: no process was started",
    ]
    assert not (several.folder / "train").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def test_the_errors_of_processes_are_told_once(several):
    """All say the same: the script repeats it, with status 2."""
    error = "mindvideo: error: train.batch is 9, but there are 3 training videos."
    broken = f'#!/bin/sh\nfor i in 0 1; do echo "{error}" >train/log/worker_$i.log; done\nexit 1\n'
    (several.venv / "bin" / "msrun").write_text(broken)
    done = several.run(DISTRIBUTED, 2, "0,1", SAMPLE)
    assert (done.returncode, done.stderr) == (2, f"{error}\n")


def test_a_process_that_is_gone_is_told(several):
    reason = "Worker process 7 exit with exception. Error code: -9."
    (several.venv / "bin" / "msrun").write_text(f'#!/bin/sh\necho "[ERROR] {reason}"\nexit 1\n')
    done = several.run(DISTRIBUTED, 2, "0,1", SAMPLE)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{DISTRIBUTED}: error: {reason}",
        "The run stops; train.resume=auto continues from its last checkpoint. More in train/log/ .",
    ]


# Stands for msrun with one process, which notes that it was told to stop and ends well.
WAITING = """#!/bin/sh
MS_ROLE=MS_WORKER sh -c 'trap "echo told >told; exit 0" TERM; echo >ready; while :; do sleep 0.1; done' &
wait
exit 1
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_processes_end_their_step(several, number):
    (several.venv / "bin" / "msrun").write_text(WAITING)
    environment = os.environ | {"MINDVIDEO_VENV": str(several.venv)}
    command = ["bash", str(REPOSITORY / "scripts" / DISTRIBUTED), "1", "0", str(SAMPLE)]
    run = subprocess.Popen(command, cwd=several.folder, env=environment, stderr=subprocess.PIPE, text=True)
    while not (several.folder / "ready").exists() and run.poll() is None:
        sleep(0.05)
    run.send_signal(number)
    errors = run.communicate()[1]
    assert (several.folder / "told").exists()
    assert run.returncode == 130
    told = "stopped; train.resume=auto continues from the last checkpoint in train/ckpt"
    assert errors == f"{DISTRIBUTED}: {told}\n"


def test_run_tests_hands_its_arguments_to_pytest(shell):
    command = shell.called("run_tests.sh", "-k", "a b")
    assert command[:2] + command[4:] == ["-m", "pytest", "-k", "a b"]
    processes, distribution = command[2:4]
    assert int(processes.removeprefix("--numprocesses=")) >= 1
    assert distribution == "--dist=loadfile"


GPU_PACKAGES = ("cublas", "cuda_nvrtc", "cuda_runtime", "cudnn", "cufft", "curand", "cusolver", "cusparse")


@pytest.fixture
def plugin(shell, monkeypatch) -> Path:
    """MindSpore's plugin folder and the CUDA packages in the environment of `shell`, on the platform they are for."""
    site = shell.venv / "lib" / "python3.11" / "site-packages"
    for name in GPU_PACKAGES:
        folder = site / "nvidia" / name / "lib"
        folder.mkdir(parents=True)
        (folder / f"lib{name.removeprefix('cuda_').replace('runtime', 'cudart')}.so.11.0").write_text(name)
        (folder / "__init__.py").touch()
    folder = site / "mindspore" / "lib" / "plugin"
    (folder / "gpu11.6").mkdir(parents=True)
    (folder / "libmindspore_gpu.so.11.6").touch()
    (folder / "gpu11.6" / "libnccl.so.2").write_text("MindSpore's")
    on_platform(shell, monkeypatch, "Linux x86_64")
    return folder


def on_platform(shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    uname = shell.folder.parent / "bin" / "uname"
    uname.parent.mkdir(exist_ok=True)
    uname.write_text(f"#!/bin/sh\necho {name}\n")
    uname.chmod(0o755)
    monkeypatch.setenv("PATH", str(uname.parent), prepend=os.pathsep)


def test_gpu_setup_puts_cuda_where_mindspore_looks(shell, plugin):
    for _ in range(2):  # the second call mends, and changes nothing
        done = shell.run("setup_gpu.sh")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f"{shell.venv}/bin/mindvideo doctor --device gpu\n")
        assert not (shell.venv / "called").exists()
        links = {path.name: path.read_text() for path in (plugin / "gpu11.6").iterdir() if path.is_symlink()}
        assert sorted(links.values()) == list(GPU_PACKAGES)
        assert links["libcudart.so.11.0"] == "cuda_runtime"
        assert (plugin / "gpu11.6" / "libnccl.so.2").read_text() == "MindSpore's"
        assert (plugin / "lib64" / "libcudart.so.11.6.124").read_text() == "cuda_runtime"
        nvcc = shell.venv / "cuda" / "bin" / "nvcc"
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
        assert "Cuda compilation tools, release 11.6," in told.stdout  # what MindSpore's loader searches for


def test_gpu_setup_installs_the_extra(shell, plugin):
    (shell.venv / ".mindvideo-gpu").unlink()
    done = shell.run("setup_gpu.sh")
    assert done.returncode == 0, done.stderr
    assert (shell.venv / "called").read_text().splitlines()[-2:] == ["-e", f"{REPOSITORY}[gpu]"]


def test_gpu_setup_refuses_what_it_cannot_do(shell, plugin, monkeypatch):
    assert "expected no arguments, got: gpu 2" in shell.refused("setup_gpu.sh", "gpu", 2)
    (plugin / "libmindspore_gpu.so.11.6").unlink()
    assert "the installed MindSpore has no GPU plugin" in shell.refused("setup_gpu.sh")
    (shell.venv / ".mindvideo-gpu").unlink()
    (shell.venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert "the installation failed; see the lines above (it needs the network)" in shell.refused("setup_gpu.sh")
    on_platform(shell, monkeypatch, "Darwin arm64")
    assert "is for Linux x86_64, this is Darwin arm64" in shell.refused("setup_gpu.sh")
    assert not (shell.venv / "cuda").exists()
