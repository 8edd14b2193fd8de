# SPDX-License-Identifier: Apache-2.0
"""Train a tiny network for so many epochs of made videos, and validate it in every tenth; a line an epoch, `resident`
and the bytes.

python tests/epochs.py FOLDER EPOCHS
"""

import os
import sys
from itertools import islice
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindvideo.data.loader import ClipReader, ViewReader, load_batches, load_views
from mindvideo.data.manifest import Sample
from mindvideo.data.transforms import TrainTransform, ViewTransform
from mindvideo.data.video import write_video
from mindvideo.engine.device import use_device
from mindvideo.engine.optim import make_sgd
from mindvideo.engine.step import Step
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models import create_model

CLASSES, VIDEOS, FRAMES, SIDE, BATCH = ("a", "b"), 16, 12, 48, 2


def make_videos(root: Path) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(VIDEOS):
        label = CLASSES[number % 2]
        path = root / label / f"{number}.avi"
        write_video(path, rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8))
        samples.append(Sample(path, label, path.stem))
    return samples


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(root: Path, epochs: int) -> None:
    use_device("cpu")
    samples = make_videos(root)
    counts = dict.fromkeys((sample.path for sample in samples), FRAMES)
    train = ClipReader(TrainTransform(SIDE, SIDE), "consecutive", 8, counts)
    test = ViewReader(ViewTransform(SIDE, SIDE), "dense", 8, counts, num_clips=2)
    model = create_model("i3d_r18", num_classes=2, width=4, dropout=0.0)

    class Objective(ms.nn.Cell):
        def __init__(self):
            super().__init__()
            self.model = model

        def construct(self, clips_BCTHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
            logits_BK = self.model(clips_BCTHW)
            return classification_loss(logits_BK, labels_B), logits_BK

    rates = np.full(epochs * VIDEOS // BATCH, 1e-3, np.float32)
    step = Step(Objective().set_train(), make_sgd([model], rates, momentum=0.9, nesterov=True, weight_decay=1e-4))
    per_epoch = VIDEOS // BATCH
    infer = ms.jit(model.construct)
    batches = load_batches(
        samples, CLASSES, train, batch=BATCH, seed=1, numbers=range(epochs * per_epoch), per_epoch=per_epoch, workers=2
    )
    for epoch in range(epochs):
        for clips, labels in islice(batches, per_epoch):
            float(step([(Tensor(clips), Tensor(labels))])[0][0])
        if epoch % 10 == 9:
            model.set_train(False)
            for views_VCTHW in load_views(samples[:4], test, workers=2):
                infer(Tensor(views_VCTHW)).asnumpy()
            model.set_train()
        print("resident", resident(), flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]))
