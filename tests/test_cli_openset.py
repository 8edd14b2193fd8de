# SPDX-License-Identifier: Apache-2.0
"""`mindvideo openset` as a person meets it: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindvideo import cli
from mindvideo.cli_openset import ABOUT
from mindvideo.engine import log
from mindvideo.report import figures, openset_figures
from mindvideo.tasks.openset_sections import EXPERIMENTS
from tests.conftest import REPOSITORY, outside_folder
from tests.test_openset_methods import write_result, write_run
from tests.test_scripts import Shell

SCRIPTS = {
    "run_get_threshold.sh": "threshold", "run_ood_detection.sh": "ood", "run_openness.sh": "openness",
    "run_draw_confmat.sh": "confmat",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "dear")


@pytest.fixture
def sketched(monkeypatch) -> None:
    """Figures are made, but not painted, which takes most of the time."""
    dot = BytesIO()
    Image.new("L", (1, 1)).save(dot, "PNG")
    for module in (figures, openset_figures):
        monkeypatch.setattr(module, "encode_png", lambda figure: dot.getvalue())


@pytest.fixture
def openset(tmp_path, monkeypatch, capsys, sketched) -> Callable[..., str]:
    """`openset("ood", ...)`: what a command prints that must succeed, run in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> str:
        capsys.readouterr()
        assert cli.main(["openset", *map(str, words), "--resamples", "0"]) == 0
        return capsys.readouterr().out

    return command


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """The message of a command that must fail as an error of the user, before it writes anything."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> str:
        capsys.readouterr()
        assert cli.main(["openset", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mindvideo: error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "output").exists()
        return error.removeprefix("mindvideo: error: ").rstrip("\n")

    return command


# What is printed and written


def test_compare_prints_every_number_of_every_method(openset, run):
    printed = openset("compare", run, f"BALD={write_run(Path('dnn'), 'dnn', draws=10)}")
    notes = printed[: printed.index("method ")]
    assert (
        "dear, BALD: unknown classes of hmdb51 that are known after all (2): shoot_bow (Archery), punch (Punch)"
        in notes
    )
    lines = printed[printed.index("method ") :].splitlines()
    assert len(lines) == 1 + 2 * 4 + 1 + 1
    assert lines[0].split()[:3] == ["method", "score", "unknown"]
    assert lines[1].split()[:6] == ["dear", "vacuity", "hmdb51,", "4", "classes", "published"]
    assert lines[5].split()[:6] == ["BALD", "mutual_information", "hmdb51,", "4", "classes", "published"]
    result = json.loads(Path("output/openset_compare/result.json").read_text())
    auroc = result["methods"][4]["metrics"]["auroc"]
    assert f"{100 * auroc['value']:.2f}" == lines[5].split()[6]
    assert (result["experiment"], result["sources"][1], result["resamples"]) == ("compare", "BALD=dnn", 0)
    assert "commit" in result
    assert lines[-1] == f"report: {Path('output/openset_compare/report.html').resolve()}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_writes_report_result_and_figures(openset, tmp_path, experiment):
    run = write_run(tmp_path / "dear")
    openset(experiment, run, "--unknown", "mit")
    folder = run / "openset" / experiment
    page = (folder / "report.html").read_text()
    assert page.count("<table>") == 1
    assert page.count("<figure>") == len(list((folder / "figures").glob("*.png"))) >= 2
    assert [method["protocol"] for method in json.loads((folder / "result.json").read_text())["methods"]] == [
        "published",
        "clean",
    ]
    assert not Path("output").exists()


def test_the_report_goes_where_it_is_told(openset, run, tmp_path):
    openset("threshold", run / "scores", "--output", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "report.html").is_file()
    openset("threshold", run / "scores")
    assert Path("output/openset_threshold/report.html").is_file()


def test_a_second_call_replaces_the_first(openset, tmp_path):
    """DEAR reads an old result file back, whatever it was made of."""
    path = write_result(tmp_path / "r.npz", threshold=0.3)
    openset("threshold", path, f"s={path}")
    assert " 75.00 " in openset("threshold", path)
    assert [picture.name for picture in Path("output/openset_threshold/figures").iterdir()] == ["thresholds-0.png"]
    write_result(path, threshold=0.1)
    assert " 25.00 " in openset("threshold", path)


def test_options_choose_score_set_protocol_and_threshold(openset, run):
    printed = openset(
        "threshold", run, "--score", "entropy", "--unknown", "mit", "--protocol", "clean", "--threshold", "1"
    )
    assert "threshold: as given" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("dear  ")]
    assert line.split()[:7] == ["dear", "entropy", "mit,", "1", "class", "clean", "1"]
    assert len([line for line in openset("ood", run, "--score", "all").splitlines() if line.startswith("dear  ")]) == 28
    assert "openmax" in openset("ood", run, "--score", "openmax")


def test_sources_may_stand_after_options(openset, run):
    printed = openset("threshold", f"a={run}", "--unknown", "mit", f"b={run}")
    assert [line.split()[0] for line in printed.splitlines() if line[:3] in ("a  ", "b  ")] == ["a", "a", "b", "b"]


def test_a_path_with_an_equals_sign_is_a_path(openset, tmp_path):
    run = write_run(tmp_path / "lr=0.1")
    assert "lr=0.1  vacuity" in openset("threshold", run)


def test_a_narrow_terminal_shows_some_columns_at_a_time(openset, run, monkeypatch):
    monkeypatch.setattr(type(log.console), "is_terminal", True)
    monkeypatch.setattr(type(log.console), "width", 79)
    printed = openset("threshold", run, "--unknown", "mit")
    table = printed[printed.index("method ") : printed.index("report:")].split("\n\n")[:-1]
    assert len(table) == 3
    assert max(map(len, "\n".join(table).splitlines())) <= 79
    assert all(block.splitlines()[1].startswith("dear    vacuity  mit, 2 classes  published  ") for block in table)
    assert [heading in "".join(table) for heading in ("train kept %", "known kept %", "paper's AUC %")] == [True] * 3


def test_names_of_classes_are_no_markup(openset, tmp_path):
    run = write_run(tmp_path / "[red]run")
    assert "[red]run  vacuity" in openset("threshold", run)


def test_result_files_need_no_mindspore(tmp_path):
    path = write_result(tmp_path / "r.npz", threshold=0.3)
    script = (
        "import sys; from mindvideo.cli import main\n"
        f"status = main(['openset', 'threshold', {str(path)!r}, '--output', {str(tmp_path)!r}])\n"
        "print(status, 'mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert done.stderr == ""


# The results of DEAR's authors


@pytest.fixture(scope="module")
def thirdparty() -> Path:
    folder = outside_folder("MINDVIDEO_GOLDEN", "golden")
    if folder is None:
        pytest.skip("no golden arrays: set MINDVIDEO_GOLDEN to run these tests")
    return folder / "dear" / "thirdparty"


def test_dears_results_are_printed_as_published(openset, thirdparty):
    printed = openset("compare", thirdparty / "real_TSM_DEAR_HMDB.npz", "--protocol", "published")
    (line,) = [line for line in printed.splitlines() if line.startswith("real_TSM_DEAR_HMDB  ")]
    cells = line.split()
    for number in ("94.475", "78.65", "84.71", "0.20", "78.54", "71.81", "91.88"):
        assert number in cells


def test_every_result_of_dears_authors_is_printed_as_they_have_it(openset, thirdparty):
    files = sorted(thirdparty.glob("*.npz"))
    printed = openset("compare", *files, "--protocol", "published").splitlines()
    for path in files:
        (line,) = [line for line in printed if line.startswith(f"{path.stem}  ")]
        cells, expected = line.split(), np.load(path)
        free = next(expected[key] for key in expected.files if key.endswith("free_acc_auroc_aupr_fpr95"))
        thresholded = next(expected[key] for key in expected.files if key.endswith("thr_acc_auroc_aupr_fpr95"))
        assert f"{100 * free[0]:.3f}" in cells
        for value in (*free[1:], thresholded[1]):
            assert f"{100 * value:.2f}" in cells
        # Printed with three digits in the file: the last of two may be rounded twice.
        assert min(abs(float(cell) - expected["open_maF1_pct"]) for cell in cells if cell[0].isdigit()) < 0.0056


# What is refused


def test_mistakes_are_named(refused, run, tmp_path):
    result = write_result(tmp_path / "r.npz")
    assert refused("ood", "nowhere") == "nowhere: no such folder or .npz file."
    assert "it has no score 'vacancy'; there are: vacuity, " in refused("ood", run, "--score", "vacancy")
    assert "no unknown set 'ucf101'; there are: hmdb51, mit." in refused("ood", run, "--unknown", "ucf101")
    assert "only --protocol published" in refused("ood", result, "--protocol", "clean")
    assert "--threshold goes with one score" in refused("ood", run, "--score", "all", "--threshold", "1")
    assert refused("ood", run, run / "scores") == "2 sources are called 'dear': write NAME=SOURCE to tell them apart."
    assert refused("ood", run, result) == "r has 3 known classes, dear 6: they cannot be compared."
    (tmp_path / "config.yaml").touch()
    assert "is a run, whose report would be overwritten" in refused("ood", run, "--output", tmp_path)
    (tmp_path / "file").touch()
    assert "--output: cannot make the folder" in refused("ood", run, "--output", tmp_path / "file" / "folder")


def test_a_run_without_scores_is_told_how_to_get_them(refused, tmp_path):
    (tmp_path / "run").mkdir()
    assert "`mindvideo openset predict run unknown.dataset=NAME` writes it." in refused("openness", "run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "EXPERIMENT"), (["rank", "a"], "invalid choice: 'rank'"), (["ood"], "SOURCE"),
        (["ood", "a", "--threshold", "nan"], "nan is not a finite number"),
        (["ood", "a", "--threshold", "high"], "invalid finite_number value: 'high'"),
        (["ood", "a", "--resamples", "-1"], "-1 is less than 0"),
        (["ood", "a", "--protocol", "both", "--fast"], "unrecognized arguments: --fast"),
    ],
)  # fmt: skip
def test_wrong_words_show_the_usage(capsys, words, told):
    with pytest.raises(SystemExit) as stop:
        cli.main(["openset", *words])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_every_experiment_is_on_the_command_line(capsys):
    assert list(ABOUT) == list(EXPERIMENTS)
    with pytest.raises(SystemExit):
        cli.main(["openset", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("predict", *ABOUT))


# Predict


@pytest.fixture
def asked(monkeypatch) -> list[tuple[object, Path, Path]]:
    """What the task is asked to score; it does nothing."""
    calls: list[tuple[object, Path, Path]] = []
    monkeypatch.setattr("mindvideo.tasks.openset.predict", lambda *words: calls.append(words))
    return calls


def test_predict_takes_the_best_checkpoint_with_the_runs_config(asked, tmp_path):
    (tmp_path / "config.yaml").write_text("task: openset\nname: mine\neval: {clips: 3}\n")
    (tmp_path / "last.ckpt").touch()
    assert cli.main(["openset", "predict", str(tmp_path)]) == 0
    (tmp_path / "best.ckpt").touch()
    assert cli.main(["openset", "predict", str(tmp_path), "eval.clips=5", "--into", "there", "seed=7"]) == 0
    assert cli.main(["openset", "predict", str(tmp_path / "last.ckpt")]) == 0
    assert [call[1:] for call in asked] == [
        (tmp_path / "last.ckpt", tmp_path), (tmp_path / "best.ckpt", Path("there")), (tmp_path / "last.ckpt", tmp_path),
    ]  # fmt: skip
    configs = [call[0] for call in asked]
    assert [(config.name, config.eval.clips, config.seed) for config in configs] == [
        ("mine", 3, 1), ("mine", 5, 7), ("mine", 3, 1),
    ]  # fmt: skip


def test_predict_refuses_what_is_no_open_set_run(asked, refused, tmp_path):
    assert refused("predict", "nowhere") == "nowhere: no such run folder or checkpoint."
    assert refused("predict", tmp_path) == f"{tmp_path}: neither best.ckpt nor last.ckpt is there."
    (tmp_path / "best.ckpt").touch()
    assert refused("predict", tmp_path) == f"config {tmp_path / 'config.yaml'}: no such file."
    (tmp_path / "config.yaml").write_text("task: fewshot\n")
    assert "its task is fewshot" in refused("predict", tmp_path)
    (tmp_path / "config.yaml").write_text("task: openset\n")
    assert "unknown key 'evl'" in refused("predict", tmp_path, "evl.clips=3")
    assert asked == []


# Scripts


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_their_experiment(shell, script):
    command = ["-m", "mindvideo", "openset", SCRIPTS[script]]
    script = f"openset/{script}"
    assert shell.called(script, "HMDB", "output/dear_i3d", "output/my run") == [
        *command, "output/dear_i3d", "output/my run", "--unknown", "hmdb51",
    ]  # fmt: skip
    assert shell.called(script, "MiT", "r.npz")[-2:] == ["--unknown", "mit"]
    assert shell.called(script, "a", "b", "--score", "all") == [*command, "a", "b", "--score", "all"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_what_they_need(shell, script):
    for words in ([], ["HMDB"]):
        done = shell.run(f"openset/{script}", *words)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{script}: error: expected [HMDB|MiT] RUN-or-FILE ...")
        assert not (shell.venv / "called").exists()
