# SPDX-License-Identifier: Apache-2.0
"""Where and when a video classifier sees its evidence for a class: Grad-CAM (Selvaraju et al., ICCV 2017).

    clip = predictor.read(Path("one.mp4"))
    (found,) = predictor.classify([clip])
    heat_THW = GradCam(predictor)(clip, found.number)  # over the frames `found.seen`

With y the logit of the class and A_k the channels of the last map that still knows time and place,

    alpha_k = mean over positions of dy / dA_k        heat = ReLU(sum over k of alpha_k A_k)

The gradient is that of the network from there on, through pooling, necks, hidden layers and head, whatever these are.
The vectors of two backbones are made of two such maps: SlowFast's of its slow and its fast pathway's, TPN's of the
third and the fourth stage's. There the sums over k are brought to one size and added before the ReLU, each times the
number of its positions, as a mean over many positions weighs each of them less: where pooling and a linear head follow,
as in SlowFast, the mean over the map is then the logit without its bias.

T frames, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor
from scipy import ndimage

from mindvideo.predict.predictors import VideoClip, VideoPredictor


class GradCam:
    """Explains what a predictor says, by one graph that is compiled once. Not thread-safe.

    A head that is random in training or by draws is explained as it is without them.
    """

    def __init__(self, predictor: VideoPredictor):
        self.predictor = predictor
        backbone, head = predictor.model.backbone, predictor.model.head

        def score(maps: tuple[Tensor, ...], chosen_K: Tensor) -> Tensor:
            return (head(backbone.vectors(maps)) * chosen_K).sum()

        def explain(views_BCTHW: Tensor, chosen_K: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            maps = backbone.maps(views_BCTHW)
            return maps, ms.grad(score)(maps, chosen_K)

        self._explain = ms.jit(explain)

    def __call__(self, clip: VideoClip, number: int) -> np.ndarray:
        """Heat `[T, H, W]` in [0, 1], float32, of the view in the middle, for the class of this place among the labels.

        1 is the hottest place of the clip; 0 everywhere means that nothing in it speaks for the class.
        """
        self.predictor.model.set_train(False)
        middle = clip.middle
        views_BCTHW = self.predictor.reader.views(middle.crops, middle.places)
        chosen_K = np.eye(len(self.predictor.labels), dtype=np.float32)[number]
        maps, gradients = self._explain(Tensor(views_BCTHW), Tensor(chosen_K))
        heat_THW = heat_of([a.asnumpy()[0] for a in maps], [a.asnumpy()[0] for a in gradients])
        heat_THW = resize_linear(heat_THW, middle.frames.shape[:3])
        return heat_THW / (heat_THW.max() or 1.0)


def heat_of(maps: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Grad-CAM `[T, H, W]` of maps and the logit's gradients by them, each `[C, T, H, W]`, at the finest map's size and
    times the number of positions."""
    finest = tuple(np.max([a.shape[1:] for a in maps], axis=0))
    # The sum over positions is the mean times their number.
    sums = [np.einsum("k,kthw->thw", g.sum(axis=(1, 2, 3)), a) for a, g in zip(maps, gradients, strict=True)]
    return np.maximum(sum(resize_linear(a, finest) for a in sums), 0.0)


def resize_linear(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An array at another size along every axis, linearly between the middles of its cells and constant beyond."""
    factors = [wanted / own for wanted, own in zip(shape, values.shape, strict=True)]
    return np.asarray(ndimage.zoom(values, factors, order=1, mode="nearest", grid_mode=True))
