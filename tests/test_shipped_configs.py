# SPDX-License-Identifier: Apache-2.0
"""Every shipped config is read, built and run forward, at the length it says and on small frames; configs of one
network once, as most differ in the videos and in how long they train."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.config import REPOSITORY, Config, load_config
from mindvideo.data.splits import read_split
from mindvideo.models import resnet3d
from mindvideo.tasks.fewshot import make_model
from mindvideo.tasks.fewshot_objective import Objective, augmentation_of
from mindvideo.tasks.openset_objective import Objective as RecognitionObjective
from mindvideo.tasks.openset_objective import TrainingInputs, check_fit
from mindvideo.tasks.openset_objective import make_model as make_recognizer

CONFIGS = REPOSITORY / "configs"
DEAR = CONFIGS / "dear"
FEWSHOT = sorted(path for folder in ("arn", "two_stream") for path in (CONFIGS / folder).rglob("*.yaml"))
RECOGNITION = [
    *sorted((DEAR / "ucf101").glob("*.yaml")),
    *sorted((DEAR / "ucf101_small").glob("*.yaml")),
    *sorted(DEAR.glob("sample*.yaml")),
]
BACKBONES = ("i3d", "tsm", "slowfast", "tpn")
METHODS = ("dnn", "bnn", "rpl", "edlloss", "edlnokl", "edlnokl_avuc", "edlnokl_avuc_debias")
SIZE = 16
ROWS = (
    "protonet", "relationnet", "sosn", "ta", "sa", "sata", "ts_temporal_jigsaw", "ss_spatial_jigsaw", "ss_rotation",
    "tsa_temporal_jigsaw", "ssa_spatial_jigsaw", "ssa_rotation",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_by_one(pynative: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling a hundred graphs would take longer than running them once."""
    # Half of a ResNet-18, which still has blocks of every kind.
    monkeypatch.setitem(resnet3d.DEPTHS, 18, (resnet3d.BasicBlock3d, (1, 1, 1, 1)))


FOUND: dict[str, tuple[float, np.ndarray]] = {}


def once_a_network(config: Config, run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, np.ndarray]:
    """The loss and the scores that `run` gives, or gave for a config that differs in nothing that they depend on."""
    shown = config.to_dict()
    # Of the data their length alone; and running statistics, which have a momentum, are not read in training.
    length = shown.pop("data")["length"]
    shown["model"].pop("momentum", None)
    for unseen in ("name", "output", "second", "unknown", "optim"):
        shown.pop(unseen, None)
    key = json.dumps([length, shown], sort_keys=True)
    if key not in FOUND:
        loss, scores = run()
        FOUND[key] = float(loss), scores.asnumpy()
    return FOUND[key]


@pytest.mark.parametrize("path", FEWSHOT, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_it_runs(path):
    config = load_config(path, (f"data.height={SIZE}", f"data.width={SIZE}", "episode.way=2", "episode.query=1"))
    if config.data.split:
        read_split(REPOSITORY / config.data.split)
    loss, scores = once_a_network(config, lambda: run_episode(config))
    assert np.isfinite(loss)
    assert scores.shape == (2 + config.episode.unknown, 2)
    assert ((scores >= 0) & (scores <= 1)).all()


def run_episode(config: Config) -> tuple[Tensor, Tensor]:
    objective = Objective(make_model(config), config, num_classes=3).set_train()
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((4 + config.episode.unknown, 3, config.data.length, SIZE, SIZE)).astype(np.float32)
    labels = np.zeros(len(clips), np.int32)
    arrays = [clips[:2].reshape(2, 1, *clips.shape[1:]), clips[2:], labels, np.float32(1.0)]
    augmentation = augmentation_of(config)
    if augmentation:
        arrays += [np.stack([augmentation.apply(clip, 1) for clip in clips]), labels]
    return objective(*(Tensor(array) for array in arrays))


@pytest.mark.parametrize("dataset", ["hmdb51", "ucf101", "minimit", "kinetics100"])
def test_every_row_of_the_paper_s_tables_is_there_in_its_setting(dataset):
    folder = CONFIGS / "arn" / dataset
    assert {path.stem for path in folder.glob("*.yaml")} >= set(ROWS)
    for row in ROWS:
        config = load_config(folder / f"{row}.yaml")
        assert config.name == f"{dataset}_{row}"
        assert (config.data.length, config.data.height, config.data.width) == (20, 128, 128)
        assert (config.train.episodes, config.eval.episodes, config.eval.query, config.episode.query) == (
            10**5,
            600,
            5,
            3,
        )
        assert (config.optim.lr, config.optim.decay_every, config.optim.decay_factor) == (1e-3, 50_000, 0.5)
        assert (config.model.sigma, config.model.momentum, config.loss.classify) == (100.0, 1.0, 0.0)
        self_supervised = "jigsaw" in row or "rotation" in row
        assert (config.selfsupervision.augmentation != "none") == self_supervised
        assert (config.selfsupervision.alignment > 0) == row.startswith(("tsa", "ssa"))
    alphas = load_config(folder / "sata.yaml").model
    expected = {"hmdb51": (0.5, 1.0), "ucf101": (1.0, 1.5)}.get(dataset, (1.0, 1.0))
    assert (alphas.alpha_temporal, alphas.alpha_spatial) == expected


@pytest.mark.parametrize("path", RECOGNITION, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_it_recognises(path):
    """On clips of its own length, in networks of an eighth of its width."""
    name = load_config(path).model.name.replace("r50", "r18")
    narrow = [f"model.name={name}", "model.width=8", f"data.size={2 * SIZE}", f"eval.size={2 * SIZE}", "train.batch=4"]
    fast = ["model.fast_width=1"] if "slowfast" in path.stem else []
    config = load_config(path, [*narrow, *fast])
    loss, logits = once_a_network(config, lambda: run_batch(config))
    assert np.isfinite(loss)
    assert logits.shape == (4, 3)


def run_batch(config: Config) -> tuple[Tensor, Tensor]:
    objective = RecognitionObjective(make_recognizer(config, num_classes=3), config, num_classes=3)
    assert (len(objective.heads) > 0) == ("debias" in config.loss.name or "tpn" in config.model.name)
    map_frames = 0
    if "debias" in config.loss.name:
        map_frames = check_fit(config, objective)
    inputs = TrainingInputs(objective.set_train(), config, 10, map_frames)(0)
    clips = np.random.default_rng(0).standard_normal((4, 3, config.data.length, 2 * SIZE, 2 * SIZE)).astype(np.float32)
    return objective(Tensor(clips), Tensor(np.array([0, 1, 2, 0], np.int32)), *map(Tensor, inputs))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_dear_s_setting(backbone, method):
    config = load_config(DEAR / "ucf101" / f"{backbone}_{method}.yaml")
    assert (config.name, config.loss.name) == (f"ucf101_{backbone}_{method}", method)
    optim, train, shape = config.optim, config.train, config.eval
    doubled = backbone == "tpn" and method in ("dnn", "bnn", "rpl", "edlloss")
    assert (optim.lr, optim.momentum, optim.weight_decay) == (2e-3 if doubled else 1e-3, 0.9, 1e-4)
    assert (optim.nesterov, optim.clip_norm) == ((False, 20.0) if backbone == "tsm" else (True, 40.0))
    assert (optim.groups == "tsm") == (backbone == "tsm" and method not in ("bnn", "rpl"))
    assert (optim.schedule, optim.warmup) == (("cosine", 5) if backbone == "slowfast" else ("step", 0))
    assert (optim.decay_every, optim.decay_factor, train.epochs, train.batch) == (20, 0.1, 50, 8)
    assert (config.data.length, config.data.stride) == ((8, 8) if backbone in ("tsm", "tpn") else (32, 2))
    assert (shape.clips, shape.crops, shape.size) == (10, *(("center", 224) if backbone == "tsm" else ("three", 256)))
    assert shape.average == ("probability" if method in ("dnn", "bnn", "rpl") else "evidence")
    assert (config.data.validation, config.loss.debias) == (0.0, "published")


def test_every_part_of_dear_s_configs_is_read():
    for path in DEAR.rglob("*.yaml"):
        assert load_config(path).task == "openset"
    names = {str(path.relative_to(DEAR).with_suffix("")) for path in RECOGNITION}
    small = [f"{b}_{method}" for b in BACKBONES for method in ("dnn", "edlnokl_avuc_debias")]
    small += [f"tsm_{method}" for method in ("bnn", "rpl", "edlnokl", "edlnokl_avuc")]  # the README's table
    published = [f"{b}_{method}" for b in BACKBONES for method in METHODS]
    assert names == {
        "sample",
        "sample_debias",
        *(f"ucf101/{n}" for n in published),
        *(f"ucf101_small/{n}" for n in small),
    }
