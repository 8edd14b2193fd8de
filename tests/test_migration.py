# SPDX-License-Identifier: Apache-2.0
"""docs/migration.md: every old key is in it, and every key, command and name that it tells exists."""

from __future__ import annotations

import itertools
import re

import pytest

from mindvideo import cli
from mindvideo.config import load_config
from mindvideo.convert.families import FAMILIES
from mindvideo.schema import FEWSHOT, Field
from tests.conftest import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "migration.md").read_text(encoding="utf-8")


def guide_rows(columns: int) -> list[list[str]]:
    """The rows of the guide's tables with so many columns, without their heads."""
    rows = [line.strip("|").split("|") for line in GUIDE.splitlines() if re.match(r"\| (`|\|)", line)]
    return [[cell.strip() for cell in row] for row in rows if len(row) == columns]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def entry(key: str) -> object:
    """What FEWSHOT has for a dotted key, or None."""
    found: object = FEWSHOT
    for word in key.split("."):
        found = found.get(word) if isinstance(found, dict) else None
    return found


OLD_KEYS = """
model_name base_config dataset_sink_mode context.mode context.device_target model.type model.support_num_per_class
model.query_num_per_class model.class_num model.is_c3d model.in_channels model.out_channels model.jigsaw model.sigma
learning_rate.lr learning_rate.lr_scheduler learning_rate.lr_epochs learning_rate.lr_gamma learning_rate.eta_min
learning_rate.t_max learning_rate.max_epoch learning_rate.warmup_epochs optimizer.type loss.type train.pre_trained
train.pretrained_model train.ckpt_path train.epochs train.save_checkpoint_epochs train.save_checkpoint_steps
train.keep_checkpoint_max train.run_distribute infer.pretrained_model export.pretrained_model export.do_export
export.include_dataset export.input_shape export.file_name export.file_format data_loader.group_size dataset.type
dataset.path dataset.batch_size dataset.split dataset.shuffle dataset.seq dataset.num_parallel_workers dataset.suffix
dataset.task_num dataset.task_n dataset.task_k dataset.task_q map.operations map.input_columns
--dataset_path --model_name --device_target --device_id --step_size --pretrained --batch_size --keep_checkpoint_max
--ckpt_save_dir --epoch_size --pretrained_model_dir --learning_rate --milestone --dataset_sink_mode --run_distribute
--num_parallel_workers --data_url --pretrained_model --pretrained_path --config_path --load_pre_model --device
"""


def test_the_guide_names_every_old_key_and_flag():
    told = {word for row in guide_rows(2) for word in quoted(row[0])}
    assert [word for word in OLD_KEYS.split() if word not in told] == []


FILE = re.compile(r".+\.(txt|ckpt|csv|jsonl?|yaml|html)")


def test_every_new_key_of_the_guide_exists():
    words = [word for _, new in guide_rows(2) for word in quoted(new)]
    settings = [w for w in words if re.fullmatch(r"[a-z_]+\.[a-z_.]+|[a-z_.]+=.*", w) and not FILE.fullmatch(w)]
    assert len(settings) > 40
    for key, _, value in (setting.partition("=") for setting in settings):
        field = entry(key)
        assert isinstance(field, Field), key
        if value and not value.isupper():  # `key=FILE` stands for any value
            field.parse(type(field.default)(value))


def test_every_command_of_the_guide_exists(capsys):
    commands = set(re.findall(r"mindvideo ([a-z]+)", GUIDE))
    assert {"train", "eval", "convert"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
    for line in re.findall(r"^    mindvideo (?:train|eval) (\S+) (.+)$", GUIDE, re.M):
        load_config(REPOSITORY / line[0], [word for word in line[1].split() if "=" in word])
    for script in re.findall(r"bash (scripts/\S+)", GUIDE):
        assert (REPOSITORY / script).is_file()


def spelled_out(cell: str) -> list[str]:
    """The names that `a{1,2}.b` stands for; none for an empty cell."""
    pieces = [piece.split(",") for piece in re.split(r"[{}]", cell.strip("`"))]
    return ["".join(words) for words in itertools.product(*pieces)] if cell else []


def test_the_names_of_the_guide_are_those_that_are_converted():
    older, authors = {}, {}
    for row in guide_rows(3):
        theirs, ours, published = map(spelled_out, row)
        older |= dict(zip(ours, theirs, strict=False))
        authors |= dict(zip(ours, published, strict=True))
    assert [older, authors] == [layout.layers for layout in FAMILIES["arn"].layouts]
