# SPDX-License-Identifier: Apache-2.0
"""The zoo: sizes are counted again, numbers have their sources, and the tables say what the zoo does."""

from __future__ import annotations

import re

import pytest

from mindvideo import cli
from mindvideo.config import REPOSITORY
from mindvideo.models import list_models
from mindvideo.zoo import ZOO
from mindvideo.zoo_pages import BEGIN, END, count_model, list_zoo, pages, tell_model

NUMBERS = [(name, number) for name, entry in ZOO.items() for number in entry.measured]
# torchvision's weights files: parameters, and its `_ops` in 10^9.
TORCHVISION = {
    "convnext_tiny": (28_589_128, 4.456), "resnet50": (25_557_032, 4.089), "wide_resnet50_2": (68_883_240, 11.398),
    "densenet121": (7_978_856, 2.834), "efficientnet_b4": (19_341_616, 4.394), "vit_b_16": (86_567_656, 17.564),
    "swin_small": (49_606_258, 8.741),
}  # fmt: skip


def test_every_model_is_in_it():
    assert sorted(ZOO) == list_models()


@pytest.mark.parametrize("name", ZOO)
def test_sizes_are_those_of_the_models(name):
    counted = count_model(name)
    assert (counted.parameters, counted.macs) == (ZOO[name].parameters, ZOO[name].macs)
    assert sum(counted.by_kind().values()) == sum(counted.by_part().values()) == counted.macs


@pytest.mark.parametrize("name", TORCHVISION)
def test_image_networks_as_torchvision_counts_them(name):
    parameters, giga = TORCHVISION[name]
    # MindCV multiplies a one-hot table [49 49, 169] by each Swin block's [169, heads].
    lookups = 49**2 * 13**2 * (2 * 3 + 2 * 6 + 18 * 12 + 2 * 24) if name == "swin_small" else 0
    assert ZOO[name].parameters == parameters
    assert round((ZOO[name].macs - lookups) / 1e9, 3) == giga
    assert f"{parameters:,} parameters, {giga} GFLOPs" in ZOO[name].published


@pytest.mark.parametrize(("name", "number"), NUMBERS)
def test_measured_numbers_stand_in_the_guides_and_name_their_configs(name, number):
    texts = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts += [
        REPOSITORY / config for config in re.findall(r"configs/[\w/]+\.yaml", number.source) if "DATASET" not in config
    ]
    written = "".join(path.read_text(encoding="utf-8") for path in texts if path.name != "models.md")
    for value in re.findall(r"\d+\.\d+", number.value):
        assert value in written.split(BEGIN)[0] + written.split(END)[-1], value
    for commit in re.findall(r"\b[0-9a-f]{7}\b", number.source):
        assert commit in written, commit
    for config in re.findall(r"configs/[\w/]+\.yaml", number.source):
        assert (REPOSITORY / config.replace("DATASET", "ucf101")).is_file(), config


def test_all_numbers_have_a_source():
    numbers = [number for entry in ZOO.values() for number in (*entry.quoted, *entry.measured)]
    assert all(all(number) for number in numbers)
    assert all("commit" in number.source or "docs/" in number.source for _, number in NUMBERS)


def test_tables_are_up_to_date():
    """`python -m mindvideo.zoo_pages` writes them."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, path


def test_what_the_tables_say():
    readme, docs = pages().values()
    assert "| `i3d_r50` | 27.43 | 43.27 | 32x256x256 | video |" in readme
    assert "| `resnet50` | 25.56 | 4.09 | 224x224 | ResNet-50 | He et al., Deep Residual Learning" in docs
    assert "| `tsm_r50` | DEAR, UCF101, closed-set accuracy | 94.48 % | quoted | DEAR paper and repository |" in docs
    assert "58.39 ± 0.81 / 70.70 ± 0.61 % | measured | configs/two_stream/ucf101_small.yaml, commit 3c5becf" in docs


def test_the_command_lists_all(capsys):
    assert cli.main(["models"]) == 0
    told = capsys.readouterr().out
    assert told == list_zoo() + "\n"
    (line,) = (line for line in told.splitlines() if line.startswith("actionnet "))
    assert line.split()[1:4] == ["13.25", "8.92", "928x24x6"]
    assert "1 multiply-add = 1 FLOP" in told


def test_the_command_tells_of_one(capsys):
    assert cli.main(["models", "arn"]) == 0
    told = capsys.readouterr().out
    assert told == tell_model("arn") + "\n"
    for words in (
        "options     input='frames', width=64", "parameters  493,122", "GFLOPs      7.809",
        "1,698.69  encoder.block1", "20.97  matrix product", "63.73 ± 1.08 / 82.19 ± 0.70 % [ARN paper",
        "measured    5-way accuracy, 1-shot / 5-shot, embedded sample: 96.39 ± 0.39", "commit 2924b17",
    ):  # fmt: skip
        assert words in told


def test_an_unknown_model_is_a_mistake(capsys):
    assert cli.main(["models", "i3dr50"]) == 2
    assert "unknown model 'i3dr50', did you mean 'i3d_r50'?" in capsys.readouterr().err
