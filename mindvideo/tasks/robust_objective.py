# SPDX-License-Identifier: Apache-2.0
"""What a robust image classifier is trained for: images as they are, mixed with one another, and attacked.

B images of a batch, N all that are made of them, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo import attacks
from mindvideo.config import Config
from mindvideo.data.mixing import cutmix, draw_box, mixup
from mindvideo.errors import InputError
from mindvideo.models import create_model
from mindvideo.models.convnext import ConvNeXt
from mindvideo.models.imagenet import ImageNetClassifier
from mindvideo.models.robust import Defended, GradientConcealment, ResizedPadding
from mindvideo.tasks.setup import model_options

# The published range of FGSM's step in training: one of so many, drawn for each batch.
FGSM_STEPS = np.linspace(0.001, 0.08, 20)


def make_network(config: Config, num_classes: int) -> nn.Cell:
    """The classifier with fresh weights; InputError for a model of another task or an option that it does not have."""
    network = create_model(config.model.name, num_classes=num_classes, **model_options(config))
    if isinstance(network, ConvNeXt):
        network.initialize(config.seed)
    elif not isinstance(network, ImageNetClassifier):
        raise InputError(f"model.name: {config.model.name} is no image classifier; see `mindvideo models`.")
    return network


def defend(config: Config, network: nn.Cell, *, padded: bool = True, identity_gradient: bool = False) -> Defended:
    """The network behind what the config's `defence` puts before it; `padded` is false in the first stage of training.

    `identity_gradient` lets the gradient through the concealment, as an attacker would who knows of it.
    """
    settings, size = config.defence, config.data.size
    concealment = GradientConcealment(identity_gradient=identity_gradient) if settings.concealment else None
    padding = ResizedPadding(size, settings.padding) if settings.padding and padded else None
    return Defended(network, concealment, padding)


def make_target(config: Config, model: Defended, batch: int) -> attacks.Network:
    """The classifier as attacks and tests see it, `batch` images at a time; random padding has its draws from the
    config's seed."""
    return attacks.Network(model, batch, seed=config.seed)


class Objective(nn.Cell):
    """The weighted cross-entropy of all images; with TRADES (Zhang et al., ICML 2019) the last B are attacked ones, and
    beta times KL(p(image) || p(attacked image)) is added, the images being the first B."""

    def __init__(self, model: Defended, batch: int, beta: float):
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        self.model, self.batch, self.beta = model, batch, beta

    def construct(
        self,
        images_NCHW: Tensor,
        first_N: Tensor,
        second_N: Tensor,
        share_N: Tensor,
        weight_N: Tensor,
        draw: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss, and logits `[N, K]`. An image counts as of class `first_N` by `share_N`, as of `second_N` by the rest;
        `draw` and `seed` are those of padding and dropout."""
        logits_NK = self.model(images_NCHW, draw, seed).astype(ms.float32)  # of mixed precision
        log_NK = ops.log_softmax(logits_NK, axis=1)
        of_first_N = ops.gather_elements(log_NK, 1, first_N.expand_dims(1)).squeeze(1)
        of_second_N = ops.gather_elements(log_NK, 1, second_N.expand_dims(1)).squeeze(1)
        loss = -(weight_N * (share_N * of_first_N + (1.0 - share_N) * of_second_N)).sum()
        if self.beta > 0.0:
            clean_BK, attacked_BK = log_NK[: self.batch], log_NK[-self.batch :]
            divergence_B = (ops.exp(clean_BK) * (clean_BK - attacked_BK)).sum(axis=1)
            loss = loss + self.beta * divergence_B.mean()
        return loss, logits_NK


@dataclass
class Portion:
    """Some of the images that a step learns from, as `Objective` takes them; they weigh `weight` together."""

    images: np.ndarray
    first: np.ndarray
    second: np.ndarray
    share: float
    weight: float


class TrainingInputs:
    """What `Objective` takes, made of a batch of images and labels by the number of the batch, so that a run can be
    resumed and dealt among processes. `target` is the network as attacks on it see it."""

    def __init__(self, config: Config, num_classes: int, target: attacks.Network):
        self.config, self.num_classes, self.target = config, num_classes, target

    def __call__(self, number: int, images_BCHW: np.ndarray, labels_B: np.ndarray) -> tuple[Tensor, ...]:
        self.target.restart(self.config.seed, number)
        rng = np.random.default_rng((self.config.seed, number, 2))  # 2: another stream than those of order and crops
        portions = list(self._portions(images_BCHW, labels_B, rng))
        counts = [len(portion.images) for portion in portions]
        shares_N = np.repeat([portion.share for portion in portions], counts).astype(np.float32)
        weights_N = np.repeat([portion.weight / len(portion.images) for portion in portions], counts)
        draw, seed = rng.integers(2**32, size=2, dtype=np.uint32)
        arrays = (
            np.concatenate([portion.images for portion in portions]),
            np.concatenate([portion.first for portion in portions]),
            np.concatenate([portion.second for portion in portions]),
            shares_N, weights_N.astype(np.float32), draw, seed,
        )  # fmt: skip
        return tuple(Tensor(array) for array in arrays)

    def _portions(self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Iterator[Portion]:
        loss = self.config.loss
        if loss.clean > 0:
            yield Portion(images, labels, labels, 1.0, loss.clean)
        if loss.mixup > 0:
            partners, share = rng.permutation(len(images)), float(rng.beta(1.0, 1.0))
            yield Portion(mixup(images, partners, share), labels, labels[partners], share, loss.mixup)
        if loss.cutmix > 0:
            partners, share = rng.permutation(len(images)), float(rng.beta(1.0, 1.0))
            height, width = images.shape[2:]
            mixed, share = cutmix(images, partners, draw_box(height, width, share, rng))
            yield Portion(mixed, labels, labels[partners], share, loss.cutmix)
        if loss.fgsm > 0:
            yield self._along_gradient(images, labels, labels, loss.fgsm, rng)
        if loss.targeted > 0:
            others = (labels + rng.integers(1, self.num_classes, len(labels))) % self.num_classes
            yield self._along_gradient(images, labels, others.astype(np.int32), loss.targeted, rng)
        if loss.attack != "none":
            weight = 0.0 if loss.attack == "trades" else loss.adversarial
            yield Portion(self._attacked(images, labels, rng), labels, labels, 1.0, weight)

    def _along_gradient(
        self, images: np.ndarray, labels: np.ndarray, classes: np.ndarray, weight: float, rng: np.random.Generator
    ) -> Portion:
        """The images changed along and against the sign of the gradient of the loss of `classes`, as published."""
        _, gradient, _ = self.target.gradient(images, classes, "cross_entropy")
        change = np.float32(rng.choice(FGSM_STEPS)) * np.sign(gradient)
        both = np.clip(np.concatenate([images + change, images - change]), 0.0, 1.0)
        twice = np.concatenate([labels, labels])
        return Portion(both, twice, twice, 1.0, weight)

    def _attacked(self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        loss = self.config.loss
        if loss.attack == "n_fgsm":
            return attacks.n_fgsm(self.target, images, labels, epsilon=loss.epsilon, rng=rng)
        if loss.attack == "pgd":
            return attacks.pgd(self.target, images, labels, epsilon=loss.epsilon, steps=loss.steps, rng=rng)
        return attacks.trades(self.target, images, epsilon=loss.epsilon, steps=loss.steps, rng=rng)


def check_loss(config: Config) -> None:
    """InputError if the losses leave nothing to learn, or TRADES nothing to compare with."""
    loss = config.loss
    if loss.attack == "none" and not any(loss[key] for key in ("clean", "mixup", "cutmix", "fgsm", "targeted")):
        raise InputError("all weights of `loss` are 0: there is nothing to learn.")
    if loss.attack == "trades" and loss.clean == 0:
        raise InputError("loss.attack trades compares with the images as they are: loss.clean must be above 0.")
