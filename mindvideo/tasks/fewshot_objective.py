# SPDX-License-Identifier: Apache-2.0
"""What a few-shot model is trained for: its episodes, and beside them the tasks that serve training alone.

N classes of the episode, K support clips a class, M queries (those of no class last), B = N K + M clips.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.config import Config
from mindvideo.data.selfsupervision import Augmentation, TemporalJigsaw, make_augmentation
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss, episode_loss
from mindvideo.losses.selfsupervised import alignment_loss
from mindvideo.models.arn import ARN, Discriminator
from mindvideo.models.layers import initialize
from mindvideo.tasks.setup import add_head


def augmentation_of(config: Config) -> Augmentation | None:
    """The augmentation that `selfsupervision` asks for; InputError if its clips do not allow it."""
    settings, data = config.selfsupervision, config.data
    if settings.augmentation == "none":
        return None
    augmentation = make_augmentation(
        settings.augmentation, length=data.length, permutations=settings.permutations, block=settings.block
    )
    augmentation.apply(np.zeros((1, data.length, data.height, data.width), np.uint8), 0)
    return augmentation


class Objective(nn.Cell):
    """The training loss of an episode: L + beta L_ss + gamma L_att (eq. 15), plus classification into all classes by
    each stream of the model.

    `heads` serve training alone: checkpoints keep them with the optimizer's state.
    """

    def __init__(self, model: ARN, config: Config, num_classes: int):
        """`num_classes` is the number of all training classes. InputError where attention to align is missing."""
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        settings, data, shape = config.selfsupervision, config.data, config.episode
        self.model, self.kind = model, model.kind
        self.match, self.classify = config.loss.match, config.loss.classify
        self.beta, self.gamma = settings.weight, settings.alignment
        self.strictness = settings.strictness
        self.heads = nn.CellList(auto_prefix=False)
        self.classifiers = nn.CellList(auto_prefix=False)
        self.discriminator, self.orders_KL = None, None
        for stream in range(model.num_streams if self.classify > 0 else 0):
            head = nn.Dense(model.num_features, num_classes)
            self.classifiers.append(add_head(self.heads, head, f"classifier{stream}.", initialize, config.seed))
        augmentation = augmentation_of(config)
        frames = data.length - 1 if model.takes_differences else data.length
        features_THW = (frames // 4, data.height // 4, data.width // 4)
        if augmentation is not None and self.beta > 0:
            discriminator = Discriminator(
                model.encoder.num_features, features_THW, augmentation.num_classes, momentum=config.model.momentum
            )
            self.discriminator = add_head(self.heads, discriminator, "discriminator.", initialize, config.seed)
        self.over_time = isinstance(augmentation, TemporalJigsaw)
        if augmentation is not None and self.gamma > 0:
            _check_unit(model, settings, "temporal" if self.over_time else "spatial")
            self.orders_KL = Tensor(augmentation.map_order(features_THW))
        labels_M = np.repeat(np.arange(shape.way), shape.query)
        known = np.eye(shape.way, dtype=np.float32)[labels_M]
        self.target_MN = Tensor(np.concatenate([known, np.zeros((shape.unknown, shape.way), np.float32)]))

    def construct(
        self,
        support_NKCTHW: Tensor,
        query_MCTHW: Tensor,
        classes_B: Tensor,
        annealing: Tensor,
        augmented_BCTHW: Tensor | None = None,
        labels_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss, and scores `[M, N]`. `classes_B` number the clips' classes among all of training; `annealing` is the
        weight of wrong evidence; `labels_B` say which augmentation each augmented clip underwent."""
        support_NK, query_M, temporal, spatial = self.model.encode_episode_with_maps(support_NKCTHW, query_MCTHW)
        outputs_MN = self.model.relate(support_NK, query_M)
        loss = self.match * episode_loss(self.kind, outputs_MN, self.target_MN, annealing)
        if len(self.classifiers) > 0:
            vectors_BSD = self.model.to_vectors(ops.cat((support_NK.flatten(0, 1), query_M)))
            for stream, classifier in enumerate(self.classifiers):
                loss = loss + self.classify * classification_loss(classifier(vectors_BSD[:, stream]), classes_B)
        if self.discriminator is not None or self.orders_KL is not None:
            phi = self.model.features(augmented_BCTHW)
            if self.discriminator is not None:
                loss = loss + self.beta * classification_loss(self.discriminator(phi), labels_B)
            if self.orders_KL is not None:
                _, temporal_hat, spatial_hat = self.model.attend(phi)
                own, other = (temporal, temporal_hat) if self.over_time else (spatial, spatial_hat)
                order_BL = self.orders_KL[labels_B]
                loss = loss + self.gamma * alignment_loss(own.flatten(1), other.flatten(1), order_BL, self.strictness)
        return loss, self.model.scores(outputs_MN)


def _check_unit(model: ARN, settings: Config, unit: str) -> None:
    if (model.temporal_attention if unit == "temporal" else model.spatial_attention) is None:
        raise InputError(
            f"selfsupervision.alignment is {settings.alignment}: {settings.augmentation} aligns {unit} attention, "
            f"which the model does not have; set model.attention={unit} (of arn), or the weight to 0."
        )
