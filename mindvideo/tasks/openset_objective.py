# SPDX-License-Identifier: Apache-2.0
"""What a video classifier is trained for, by the name of a method of DEAR's tables.

B clips, K known classes, T frames of the feature map.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from mindvideo.config import Config
from mindvideo.engine.device import operator_by_operator
from mindvideo.errors import InputError
from mindvideo.losses.debias import debias_loss
from mindvideo.losses.evidential import RECIPES, EvidenceLoss, annealing_weight
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models import create_model
from mindvideo.models.debias import DebiasHead, draw_orders
from mindvideo.models.layers import initialize_kaiming
from mindvideo.models.recognizer import Recognizer
from mindvideo.models.tpn import AUXILIARY_WEIGHT, TPN, AuxiliaryHead
from mindvideo.tasks.setup import add_head, known_options, model_options

# The head that each method needs; the others have an evidential one.
HEADS = {"dnn": "linear", "bnn": "bayesian", "rpl": "rpl", "gcpl": "gcpl"}


def head_of(method: str) -> str:
    """The kind of head that a method trains."""
    return HEADS.get(method, "evidential")


def evidence_of(config: Config) -> str:
    """The function of logits that is evidence; empty for methods that have none."""
    return config.loss.evidence if head_of(config.loss.name) == "evidential" else ""


def make_model(config: Config, num_classes: int) -> Recognizer:
    """The classifier, with fresh weights; InputError for a model of another task or an option that it does not have."""
    if "num_classes" not in known_options(config):
        raise InputError(f"model.name: {config.model.name} is no video classifier; see `mindvideo models`.")
    options = model_options(config)
    if config.eval.average == "evidence" and not evidence_of(config):
        raise InputError(f"eval.average is evidence, which loss.name {config.loss.name} does not give.")
    if config.eval.draws and evidence_of(config):
        raise InputError(f"eval.draws is {config.eval.draws}; loss.name {config.loss.name} is tested by one pass, 0.")
    if config.loss.name == "bnn":  # the layer is its own regulariser, and DEAR's has no dropout
        options["dropout"] = 0.0
    elif config.eval.draws and not options["dropout"]:
        raise InputError(f"eval.draws is {config.eval.draws}, but model.dropout is 0: nothing is random here.")
    model = create_model(config.model.name, num_classes=num_classes, head=head_of(config.loss.name), **options)
    assert isinstance(model, Recognizer)
    initialize_kaiming(model, config.seed)
    return model


class Objective(nn.Cell):
    """The training loss of a batch: the method's own, what its head adds, debiasing, and TPN's auxiliary head.

    `heads` serve training alone: checkpoints keep them with the optimizer's state.
    """

    def __init__(self, model: Recognizer, config: Config, num_classes: int):
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        method, settings = config.loss.name, config.loss
        self.model = model
        self.heads = nn.CellList(auto_prefix=False)
        self.evidence_loss, self.debias_head, self.auxiliary_head = None, None, None
        self.debiasing = "none"
        if method in RECIPES:
            recipe = RECIPES[method]
            if recipe.debias == "alternating" and settings.debias == "corrected":
                raise InputError(f"loss.name {method} alternates: loss.debias must be published or head.")
            self.evidence_loss = EvidenceLoss(
                kind=settings.kind,
                evidence=settings.evidence,
                kl=recipe.kl,
                avu=recipe.avu,
                annealing=settings.annealing,
            )
            if recipe.debias != "none":
                self.debiasing = "minimax" if settings.debias == "corrected" else recipe.debias
                head = DebiasHead(
                    model.backbone.num_map_channels, num_classes, form=settings.debias, dropout=config.model.dropout
                )
                self.debias_head = add_head(self.heads, head, "debias.", initialize_kaiming, config.seed + 1)
        if isinstance(model.backbone, TPN):
            head = AuxiliaryHead(model.backbone.num_map_channels, num_classes, dropout=config.model.dropout)
            self.auxiliary_head = add_head(self.heads, head, "auxiliary.", initialize_kaiming, config.seed + 2)

    def construct(
        self,
        clips_BCTHW: Tensor,
        classes_B: Tensor,
        annealing: Tensor,
        seed: Tensor,
        orders_BT: Tensor | None = None,
        first_turn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss, and logits `[B, K]`. `annealing` is the weight of calibration and divergence, and dropout and random
        weights are by the seed; debiasing also takes the orders of the map's frames and, alternating, whether it is the
        first branch's turn."""
        vectors_BSC, features_BDTHW = self.model.backbone(clips_BCTHW)
        logits_BK, penalty = self.model.head.outputs(vectors_BSC, classes_B, seed)
        if self.evidence_loss is None:
            loss = classification_loss(logits_BK, classes_B) + penalty
        else:
            loss = self.evidence_loss(logits_BK, classes_B, annealing)
        if self.debias_head is not None:
            features_GBD, logits_GBK = self.debias_head(features_BDTHW, orders_BT, seed)
            loss = loss + debias_loss(features_GBD, logits_GBK, classes_B, self.debiasing, first_turn)
        if self.auxiliary_head is not None:
            auxiliary = classification_loss(self.auxiliary_head(features_BDTHW, seed), classes_B)
            loss = loss + AUXILIARY_WEIGHT * auxiliary
        return loss, logits_BK


def check_fit(config: Config, objective: Objective) -> int:
    """The frames of the feature map in training; InputError where the network cannot see the config's clips, or its map
    has too few frames for the debiasing head."""
    map_frames = look_once(config, objective.model)
    if objective.debias_head is not None:
        draw_orders(config.loss.debias, 1, map_frames, np.random.default_rng(0))
    return map_frames


def look_once(config: Config, model: Recognizer) -> int:
    """Look at one black clip of the test's and one of the training's size; the frames of the latter's feature map.

    InputError where the network cannot see such clips.
    """
    length, map_frames = config.data.length, 0
    with operator_by_operator():
        for key, size in (("eval.size", config.eval.size), ("data.size", config.data.size)):
            try:
                _, map_BDTHW = model.backbone(Tensor(np.zeros((1, 3, length, size, size), np.float32)))
            except (ValueError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                clips = f"clips of data.length {length} and {key} {size}"
                raise InputError(f"model.name: {config.model.name} cannot see {clips}: {reason}") from error
            map_frames = map_BDTHW.shape[2]
    return map_frames


class TrainingInputs:
    """What `Objective` takes beside clips and classes, by the number of the batch, so that a run can be resumed and
    dealt among processes; a step has `train.accumulate` batches.

    `map_frames` is the number of frames of the feature map.
    """

    def __init__(self, objective: Objective, config: Config, steps_per_epoch: int, map_frames: int):
        self.config, self.steps_per_epoch, self.num_frames = config, steps_per_epoch, map_frames
        self.form = config.loss.debias if objective.debias_head is not None else ""

    def __call__(self, number: int) -> tuple[np.ndarray, ...]:
        step = number // self.config.train.accumulate
        epoch, last = step // self.steps_per_epoch, self.config.train.epochs
        annealing = np.float32(annealing_weight(self.config.loss.annealing, epoch, last))
        # 3: another stream than the orders', and than the data's.
        seed = np.random.default_rng((self.config.seed, number, 3)).integers(2**32, dtype=np.uint32)
        if not self.form:
            return np.asarray(annealing), np.asarray(seed)
        # DEAR counts iterations from 0 and gives the odd ones to the first branch.
        return np.asarray(annealing), np.asarray(seed), self._orders(number), np.asarray(np.float32(step % 2))

    def _orders(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self.config.seed, number, 2))  # 2: another stream than the data's
        return draw_orders(self.form, self.config.train.batch, self.num_frames, rng)
