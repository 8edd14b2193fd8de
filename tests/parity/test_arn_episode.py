# SPDX-License-Identifier: Apache-2.0
"""Whole ARN episodes, its self-supervision and its training steps against golden arrays made with its authors' code:
every file of each family that is found is run, with the weights, clips and settings that it names.

Tolerances are those the arrays' own float32/float64 twins show: a few 1e-6 absolute for scores, 2e-2 relative for
gradients of whole training episodes (max pooling and ReLU flip, and the comparator's batch norms amplify), 2e-2 for
logits after a step of Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from numpy.lib.npyio import NpzFile
from scipy.special import logit

from mindvideo.data.selfsupervision import Augmentation, Rotation, SpatialJigsaw, TemporalJigsaw
from mindvideo.losses.fewshot import classification_loss, relation_loss
from mindvideo.losses.selfsupervised import alignment_loss
from mindvideo.metrics.fewshot import episode_accuracy
from mindvideo.models.arn import ARN, Discriminator
from mindvideo.models.layers import is_native
from tests.parity import recipe
from tests.parity.checks import check, check_buffers, check_gradients, each, each_group, gradients, value

ATTENTION = {  # of the files' variants: unit, alpha_t, alpha_s
    "none": ("none", 1.0, 1.0),
    "sa": ("spatial", 1.0, 1.0),
    "ta": ("temporal", 1.0, 1.0),
    "sata_hmdb51": ("both", 0.5, 1.0),
    "sata_ucf101": ("both", 1.0, 1.5),
    "sata_other": ("both", 0.25, 2.0),
}


def make_arn(golden: NpzFile, attention: str, alpha_temporal: float, alpha_spatial: float, joint: bool = False) -> ARN:
    model = ARN(
        attention=attention, alpha_temporal=alpha_temporal, alpha_spatial=alpha_spatial, joint=joint,
        sigma=float(golden["sigma"]) if "sigma" in golden.files else 100.0, momentum=1.0,
    )  # fmt: skip
    fill(model, golden)
    return model


def fill(model: nn.Cell, golden: NpzFile) -> None:
    relation_seed = int(golden["relation_seed"]) if "relation_seed" in golden.files else None
    recipe.fill(model, int(golden["weight_seed"]), relation_seed)


def make_discriminator(golden: NpzFile, num_classes: int) -> Discriminator:
    frames, height, width = golden["clip_shape"][-3:].tolist()
    model = Discriminator(64, (frames // 4, height // 4, width // 4), num_classes, momentum=1.0)
    model.update_parameters_name("discriminator.")
    recipe.fill(model, int(golden["weight_seed"]), prefix="discriminator.")
    return model


def episode_clips(golden: NpzFile) -> tuple[Tensor, Tensor]:
    """Support `[N, K, ...]` and query `[M, ...]`."""
    way, shot, queries = (int(golden[k]) for k in ("way", "shot", "query_per_class"))
    shape = golden["clip_shape"].tolist()
    support = recipe.clips(int(golden["support_seed"]), way * shot, *shape[1:])
    query = recipe.clips(int(golden["query_seed"]), way * queries, *shape[1:])
    return Tensor(support.reshape(way, shot, *shape)), Tensor(query)


def one_hot_target(golden: NpzFile) -> Tensor:
    return Tensor(np.eye(int(golden["way"]), dtype=np.float32)[golden["query_labels"]])


def check_episode(golden: NpzFile, key: str, model: ARN, support: Tensor, query: Tensor, suffix: str = "") -> None:
    """Run the model once and compare all it computes on the way."""
    way, shot = support.shape[:2]
    support_psi, query_psi, temporal, spatial = model.encode_episode_with_maps(support, query)
    scores = model.compare(support_psi, query_psi).asnumpy()
    check(golden, f"{key}scores", scores, atol=1e-5)
    assert (scores.argmax(axis=1) == golden[f"{key}predictions"]).all()
    accuracy = episode_accuracy(scores, golden["query_labels"])
    assert accuracy == pytest.approx(float(golden[f"{key}accuracy"]), abs=1e-6)
    check(golden, f"{key}proto_slice", support_psi.mean(axis=1), atol=3e-6)
    check(golden, f"{key}psi_q_slice", query_psi, atol=3e-6)
    for letter, attention in (("T", temporal), ("S", spatial)):
        if f"{key}{letter}_s{suffix}" in golden.files:
            check(golden, f"{key}{letter}_s{suffix}", attention[: way * shot], atol=5e-6)
            check(golden, f"{key}{letter}_q{suffix}", attention[way * shot :], atol=5e-6)


@each("episode_*.npz")
@pytest.mark.usefixtures("pynative")
def test_episode(path: Path):
    golden = np.load(path)
    (support, query), target = episode_clips(golden), one_hot_target(golden)
    variants = list(dict.fromkeys(name.split("/")[0] for name in golden.files if name.endswith("/eval/scores")))
    if not variants:  # the authors' own evaluation, with the unit and the mode they evaluate
        model = make_arn(golden, *ATTENTION["sa"])
        model.set_train(False)
        check_episode(golden, "", model, support, query, suffix="_slice")
    for variant in variants:
        name, _, joint = variant.partition("+")
        model = make_arn(golden, *ATTENTION[name], joint=joint == "joint")

        def loss_of(support: Tensor, query: Tensor, target: Tensor, model: ARN = model) -> Tensor:
            return relation_loss(model(support, query), target)

        for mode in [m for m in ("eval", "train") if f"{variant}/{m}/scores" in golden.files]:
            key = f"{variant}/{mode}"
            model.set_train(mode == "train")
            check_episode(golden, f"{key}/", model, support, query)
            if f"{key}/grad_names" in golden.files:
                check_buffers(golden, key, model)
                fill(model, golden)
                loss, grads = gradients(loss_of, model, support, query, target)
                check(golden, f"{key}/mse_mean", loss, atol=2e-6)
                check(golden, f"{key}/mse_sum", loss * target.size, atol=2e-4)
                check_gradients(golden, key, grads, 2e-2)


def make_augmentation(permutations: np.ndarray, temporal: bool) -> Augmentation:
    """The augmentation whose classes the file lists; a rotation has only their numbers."""
    if permutations.shape[1] == 1:
        return Rotation()
    return TemporalJigsaw(permutations.tolist()) if temporal else SpatialJigsaw(permutations.tolist())


def augment(augmentation: Augmentation, clips: np.ndarray, labels: np.ndarray) -> Tensor:
    """Each clip disturbed as its label says."""
    each_CTHW = [augmentation.apply(clip, int(label)) for clip, label in zip(clips, labels, strict=True)]
    return Tensor(np.stack(each_CTHW))


def map_order(augmentation: Augmentation, clip_shape: np.ndarray, labels: np.ndarray) -> Tensor:
    """How the attention maps of the clips move with them, for `alignment_loss`."""
    frames, height, width = clip_shape[-3:].tolist()
    return Tensor(augmentation.map_order((frames // 4, height // 4, width // 4))[labels])


@each("ssl_small*.npz")
@pytest.mark.parametrize("kind", ["temporal_jigsaw", "spatial_jigsaw", "rotation"])
@pytest.mark.usefixtures("pynative")
def test_self_supervision(path: Path, kind: str):
    """Discriminator, maps of clips and augmented clips, both losses, and their gradients."""
    golden = np.load(path)
    if f"{kind}/labels" not in golden.files:
        pytest.skip("not in this file")
    is_temporal, labels = kind == "temporal_jigsaw", golden[f"{kind}/labels"]
    augmentation = make_augmentation(golden[f"{kind}/perms"], is_temporal)
    clips = recipe.clips(int(golden["input_seed"]), *np.delete(golden["clip_shape"], 1).tolist())
    augmented, order = augment(augmentation, clips, labels), map_order(augmentation, golden["clip_shape"], labels)
    model = make_arn(golden, *ATTENTION["ta" if is_temporal else "sa"])
    discriminator = make_discriminator(golden, augmentation.num_classes)
    both = nn.CellList([model, discriminator], auto_prefix=False)

    def maps_and_logits(clips: Tensor, augmented: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        unit = model.temporal_attention if is_temporal else model.spatial_attention
        assert unit is not None
        attention = unit(model.encoder(clips))
        phi_hat = model.encoder(augmented)
        return attention, unit(phi_hat), discriminator(phi_hat), phi_hat.mean(axis=(2, 3, 4))

    def classification(clips: Tensor, augmented: Tensor) -> Tensor:
        return classification_loss(maps_and_logits(clips, augmented)[2], Tensor(labels))

    def alignment(strictness: float) -> Callable:
        def loss_of(clips: Tensor, augmented: Tensor) -> Tensor:
            attention, attention_hat, _, _ = maps_and_logits(clips, augmented)
            return alignment_loss(attention.flatten(1), attention_hat.flatten(1), order, strictness)

        return loss_of

    check(golden, f"{kind}/aug_clip_slice", augmented, atol=1e-6)
    for mode in ("eval", "train"):
        key = f"{kind}/{mode}"
        both.set_train(mode == "train")
        attention, attention_hat, logits, phi_hat_mean = maps_and_logits(Tensor(clips), augmented)
        check(golden, f"{key}/A", attention, atol=5e-6)
        check(golden, f"{key}/A_hat", attention_hat, atol=5e-6)
        check(golden, f"{key}/logits", logits, atol=5e-5)
        check(golden, f"{key}/phi_hat_mean_nc", phi_hat_mean, atol=3e-6)
        moved = np.take_along_axis(attention.flatten(1).asnumpy(), order.asnumpy(), axis=1)
        check(golden, f"{key}/aug_A", moved.reshape(attention.shape), atol=5e-6)
        losses = {"": (classification, "L_ss", len(clips))}
        for strictness in golden["lambdas"].tolist():
            losses[f"/lambda{strictness:.3g}"] = (alignment(strictness), "L_att", order.size)
        for group, (loss_of, name, count) in losses.items():
            fill(model, golden)
            loss, grads = gradients(loss_of, both, Tensor(clips), augmented)
            check(golden, f"{key}{group}/{name}_sum", loss * count, atol=1e-5, rtol=1e-5)
            check(golden, f"{key}{group}/{name}_mean", loss, atol=1e-7, rtol=1e-5)
            if mode == "train":
                check_gradients(golden, f"{key}{group}/of_{name}_mean", grads, 2e-2)


PARTS = ("total", "scores", "L", "ssl_logits", "L_ss", "L_att")  # what `step_losses` gives, by the files' names


def step_losses(golden: NpzFile, key: str, model: ARN, discriminator: Discriminator | None) -> Callable:
    """A function of support and query: L + beta L_ss + gamma L_att, then its parts, without a discriminator only L's.

    In the groups called so the losses are sums, as the paper writes them, in the others means over all there is.
    """
    is_sum, target = "_sums" in key, one_hot_target(golden)
    pairs = target.size if is_sum else 1

    def main_loss(support: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        scores = model(support, query)
        loss = relation_loss(scores, target) * pairs
        return loss, scores, loss

    if discriminator is None:
        return main_loss
    labels = golden[f"{key}/ssl_labels"]
    support, query = (tensor.asnumpy() for tensor in episode_clips(golden))
    augmentation = make_augmentation(golden[f"{key}/perms"], temporal=model.spatial_attention is None)
    augmented = augment(augmentation, np.concatenate([support.reshape(-1, *query.shape[1:]), query]), labels)
    order, classes = map_order(augmentation, golden["clip_shape"], labels), Tensor(labels)
    which = 1 if isinstance(augmentation, TemporalJigsaw) else 2  # of `attend`'s results
    beta, gamma, strictness = (float(golden[f"{key}/{name}"]) for name in ("beta", "gamma", "lambda"))
    clips, entries = (len(labels), order.size) if is_sum else (1, 1)

    def all_losses(support: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        support_psi, query_psi, *maps = model.encode_episode_with_maps(support, query)
        scores = model.compare(support_psi, query_psi)
        main = relation_loss(scores, target) * pairs
        phi_hat = model.encoder(augmented)
        logits = discriminator(phi_hat)
        classification = classification_loss(logits, classes) * clips
        attention, attention_hat = maps[which - 1].flatten(1), model.attend(phi_hat)[which].flatten(1)
        alignment = alignment_loss(attention, attention_hat, order, strictness) * entries
        total = main + beta * classification + gamma * alignment
        return total, scores, main, logits, classification, alignment

    return all_losses


def attention_of_step(golden: NpzFile, key: str) -> str:
    """Which units a group's parameters belong to."""
    modules = {name.split(".")[0] for name in golden[f"{key}/param_names"].tolist()}
    units = [unit for unit in ("spatial", "temporal") if f"{unit}_detector" in modules]
    return {0: "none", 1: "".join(units), 2: "both"}[len(units)]


def check_step(golden: NpzFile, key: str, parts: nn.Cell, before: dict[str, np.ndarray]) -> None:
    """Compare the weights after a step of Adam: the stored ones, and the norms of all and of what they moved by.

    Adam's first step is the sign of the gradient; where that is tiny, rounding decides, which 1 % may be hit by.
    """
    after = {p.name: p.asnumpy() for p in parts.get_parameters()}
    stored = [name.split("/after/")[1] for name in golden.files if name.startswith(f"{key}/after/")]
    for reference in [name for name in stored if not name.endswith("_f64") and ".running_" not in name]:
        if not recipe.feeds_a_norm(reference):
            far = np.abs(after[recipe.ours(reference)] - value(golden, f"{key}/after/{reference}")) > 2e-5
            assert far.sum() <= max(1, 0.01 * far.size), reference
    norms, moves = value(golden, f"{key}/after_norms"), value(golden, f"{key}/after_delta_norms")
    for reference, norm, move in zip(golden[f"{key}/param_names"].tolist(), norms, moves, strict=True):
        name = recipe.ours(reference)
        if not recipe.feeds_a_norm(reference):
            assert np.linalg.norm(after[name]) == pytest.approx(norm, rel=1e-3), reference
            assert np.linalg.norm(after[name] - before[name]) == pytest.approx(move, rel=2e-2), reference


@each_group("train_step_*.npz", "total")
def test_training_step(path: Path, key: str):
    """Losses, gradients and one step of Adam, in graph mode."""
    golden = np.load(path)
    supervises_itself = f"{key}/perms" in golden.files
    if supervises_itself and golden["clip_shape"][-1] >= 128 and not is_native():
        pytest.skip("needs 20 GiB with MindSpore's own operators")
    support, query = episode_clips(golden)
    model = make_arn(golden, attention_of_step(golden, key), *golden[f"{key}/alphas_t_s"].tolist())
    discriminator = make_discriminator(golden, len(golden[f"{key}/perms"])) if supervises_itself else None
    parts = nn.CellList([model, discriminator] if discriminator else [model], auto_prefix=False).set_train()
    before = {p.name: p.asnumpy().copy() for p in parts.get_parameters()}
    parameters = parts.trainable_params()
    losses = step_losses(golden, key, model, discriminator)
    computed, grads = ms.value_and_grad(losses, None, parameters, has_aux=True)(support, query)
    for name, tensor in zip(PARTS, computed, strict=False):
        check(golden, f"{key}/{name}", tensor, atol=1e-4 if "logits" in name else 1e-5, rtol=2e-5)
    named = {p.name: gradient.asnumpy() for p, gradient in zip(parameters, grads, strict=True)}
    check_gradients(golden, key, named, 2e-2)
    check_buffers(golden, key, parts)
    # MindSpore adds eps before it corrects the bias: at the first step this is the reference's 1e-8.
    optimizer = nn.Adam(parameters, learning_rate=float(golden["lr"]), eps=1e-8 * (1 - 0.999) ** 0.5)
    optimizer(grads)
    check_step(golden, key, parts, before)
    if f"{key}/logits_after_step_train_mode" in golden.files:
        scores = model(support, query).asnumpy().astype(np.float64)
        check(golden, f"{key}/logits_after_step_train_mode", logit(scores), atol=2e-2)
