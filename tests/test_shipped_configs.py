# SPDX-License-Identifier: Apache-2.0
"""Every shipped config is read, built and run forward, at the length it says and on small frames."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.config import REPOSITORY, load_config
from mindvideo.data.splits import read_split
from mindvideo.tasks.fewshot import make_model
from mindvideo.tasks.fewshot_objective import Objective, augmentation_of

SHIPPED = sorted((REPOSITORY / "configs").rglob("*.yaml"))
SIZE = 16
ROWS = (
    "protonet", "relationnet", "sosn", "ta", "sa", "sata", "ts_temporal_jigsaw", "ss_spatial_jigsaw", "ss_rotation",
    "tsa_temporal_jigsaw", "ssa_spatial_jigsaw", "ssa_rotation",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_by_one():
    """Compiling eighty graphs would take longer than running them once."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_it_runs(path):
    config = load_config(path, (f"data.height={SIZE}", f"data.width={SIZE}", "episode.way=2", "episode.query=1"))
    if config.data.split:
        read_split(REPOSITORY / config.data.split)
    objective = Objective(make_model(config), config, num_classes=3).set_train()
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((4 + config.episode.unknown, 3, config.data.length, SIZE, SIZE)).astype(np.float32)
    labels = np.zeros(len(clips), np.int32)
    arrays = [clips[:2].reshape(2, 1, *clips.shape[1:]), clips[2:], labels, np.float32(1.0)]
    augmentation = augmentation_of(config)
    if augmentation:
        arrays += [np.stack([augmentation.apply(clip, 1) for clip in clips]), labels]
    loss, scores = objective(*(Tensor(array) for array in arrays))
    assert np.isfinite(float(loss))
    assert scores.shape == (len(clips) - 2, 2)
    assert ((scores.asnumpy() >= 0) & (scores.asnumpy() <= 1)).all()


@pytest.mark.parametrize("dataset", ["hmdb51", "ucf101", "minimit", "kinetics100"])
def test_every_row_of_the_paper_s_tables_is_there_in_its_setting(dataset):
    folder = REPOSITORY / "configs" / "arn" / dataset
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
