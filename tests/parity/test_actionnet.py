# SPDX-License-Identifier: Apache-2.0
"""ActionNet, ML-Decoder, pooling, conversion and Adamax against golden arrays made with the authors' code, all of every
file found."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindvideo.data.pose import axis_angle_to_rotation6d, collate, padded_length, rotation6d_to_axis_angle
from mindvideo.engine.optim import make_adamax, make_step
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models.actionnet import ActionNet, pooling_weights
from mindvideo.models.mldecoder import MOST_GROUPS, MLDecoder
from tests.parity import recipe
from tests.parity.recipe_actionnet import each, fill, made, ours, real_clip, stored

pytestmark = pytest.mark.usefixtures("pynative")
LARGE, SMALL = 1e-4, 2e-5  # largest differences of logits, in networks of true size and in small ones


def close(actual: Tensor | np.ndarray, expected: np.ndarray, atol: float) -> None:
    actual = actual.asnumpy() if isinstance(actual, Tensor) else actual
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, atol=atol, rtol=0)


def number(golden: Any, name: str, default: int) -> int:
    return int(golden[name]) if name in golden.files else default


def weights_of(golden: Any, path: Path) -> dict[str, np.ndarray]:
    """The stored weights of a file, or those of the file that it names or whose small network it shares."""
    if stored(golden, "sd/"):
        return stored(golden, "sd/")
    named = str(golden["weights_from"]) if "weights_from" in golden.files else "actnet_small_T*.npz"
    return next(filter(None, (stored(np.load(other), "sd/") for other in sorted(path.parent.glob(named)))))


@functools.lru_cache(maxsize=2)
def filled(width: int, length: int, seed: int, num_classes: int) -> ActionNet:
    """A network of true size with the recipe's weights; drawing them takes a second."""
    model = ActionNet(num_classes, width=width, length=length)
    fill(model, made(model, seed))
    return model


def network(golden: Any, path: Path) -> ActionNet:
    width, length = int(golden["width"]), int(golden["action_length"])
    num_classes = golden["logits"].shape[1]
    if "recipe_seed" in golden.files:
        return filled(width, length, int(golden["recipe_seed"]), num_classes)
    model = ActionNet(
        num_classes, width=width, length=length, num_heads=number(golden, "heads", 8),
        decoder_width=number(golden, "decoder_embedding", 768),
    )  # fmt: skip
    fill(model, weights_of(golden, path))
    return model


def intermediates(model: ActionNet, poses_TJC: np.ndarray) -> dict[str, np.ndarray]:
    """Everything on the way from poses to logits, by the files' names."""
    poses = Tensor(poses_TJC.reshape(1, len(poses_TJC), -1))
    attention, decoder = model.attention, model.decoder
    pooled = model.tokens(poses)
    heads = attention.num_heads
    split = {
        name: layer(pooled)[0].asnumpy().reshape(len(pooled[0]), heads, -1).swapaxes(0, 1)
        for name, layer in {"Q": attention.query, "K": attention.key, "V": attention.value}.items()
    }
    prob = attention.weights(pooled, pooled)
    attended = attention(pooled, pooled)
    fused = pooled + attended
    memory = decoder.remember(fused)
    norm1 = decoder.norm1(2.0 * decoder.queries.expand_dims(0))
    crossed = decoder.attention(norm1, memory)
    found = decoder.decode(memory)
    return split | {
        name: np.asarray(value.asnumpy())
        for name, value in {
            "embedding": model.embed(poses[0]), "pooled": pooled, "attn_prob": prob[0],
            "attn_ctx": ops.matmul(prob[0], Tensor(split["V"])), "attn_out": attended, "fused": fused,
            "memory": memory, "query_norm1": norm1.swapaxes(0, 1), "cross_attn_out": crossed.swapaxes(0, 1),
            "cross_attn_w": decoder.attention.weights(norm1, memory).mean(axis=1),
            "after_norm2": decoder.norm2(norm1 + crossed).swapaxes(0, 1), "decoder_out": found.swapaxes(0, 1),
            "logits": model(poses),
        }.items()
    }  # fmt: skip


def sliced(golden: Any, name: str, full: np.ndarray) -> np.ndarray:
    """The part of an array that files of true size store."""
    time = int(golden["step_time"])
    if name == "attn_prob":
        return full[:, ::time, ::time]
    step = full.shape[-1] // 16
    return full[:: int(golden["embed_row_step"]), ::step] if name == "embedding" else full[:, ::time, ::step]


@each("actnet*.npz", holding="logits")
def test_network(path: Path):
    golden = np.load(path)
    atol = LARGE if "recipe_seed" in golden.files else SMALL
    poses = golden["x"] if "x" in golden.files else real_clip(str(golden["x_file"]))
    found = intermediates(network(golden, path), poses)
    compared = {name.removesuffix("_slice") for name in golden.files} & found.keys()
    assert {"logits", "decoder_out", "embedding", "pooled", "memory", "attn_prob"} <= compared
    for name in compared:
        if name in golden.files:
            close(found[name], golden[name], atol)
        else:
            close(sliced(golden, name, found[name]), golden[f"{name}_slice"], atol)
    if "fused_mean_std" in golden.files:
        close(np.array([found["fused"].mean(), found["fused"].std()]), golden["fused_mean_std"], 1e-4)


@each("actnet*.npz", holding="Q")
def test_a_padded_batch_is_as_many_single_clips(path: Path):
    """In small networks, the file's clip beside two of its parts."""
    golden = np.load(path)
    clips = [golden["x"][:5], golden["x"], golden["x"][3:]]
    batch, lengths = collate(clips, padded_length(len(golden["x"])))
    model = network(golden, path)
    logits = model(Tensor(batch), Tensor(lengths))
    close(logits[1:2], golden["logits"], SMALL)
    for clip, own in zip(clips, logits.asnumpy(), strict=True):
        close(own, model(Tensor(clip[None])).asnumpy()[0], 2e-6)


@each("actnet*.npz", holding="loss0")
def test_training(path: Path):
    """Losses, first gradients and the weights after Adamax steps, on padded clips of different lengths."""
    golden = np.load(path)
    start, count = stored(golden, "sd0/"), sum(name.startswith("loss") for name in golden.files)
    width, decoder_width = start["map.weight"].shape[0], start["decoder.decoder.embed_standart.weight"].shape[0]
    classes = start["decoder.decoder.duplicate_pooling_bias"].shape[0]
    model = ActionNet(
        classes, width=width, length=number(golden, "action_length", 8), decoder_width=decoder_width, dropout=0.0
    )
    fill(model, start)

    def forward(poses, lengths, classes):
        logits = model(poses, lengths)
        return classification_loss(logits, classes), logits

    frames = padded_length(max(len(golden[f"x{i}"]) for i in range(count)))
    batches = [
        [Tensor(array) for array in (*collate([golden[f"x{i}"]], frames), np.array([golden[f"y{i}"]], np.int32))]
        for i in range(count)
    ]
    trained = model.trainable_params()
    gradients = ms.value_and_grad(forward, None, trained, has_aux=True)(*batches[0])[1]
    expected = ours(stored(golden, "grad0/"), model)
    assert expected
    found = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(trained, gradients, strict=True)}
    for name, gradient in expected.items():
        if name in found:
            close(found[name], gradient, 1e-5 * max(1.0, float(np.abs(gradient).max())))
    assert golden["betas"].tolist() == [0.9, 0.999]
    assert float(golden["eps"]) == 1e-8
    rates = np.full(count, float(golden["lr"]), np.float32)
    ms.set_context(mode=ms.GRAPH_MODE)
    step = make_step(forward, make_adamax([model], rates, weight_decay=float(golden["weight_decay"])))
    for i, batch in enumerate(batches):
        close(step(*batch)[0], golden[f"loss{i}"], SMALL)
    after = {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}
    for name, value in ours(stored(golden, "sd3/"), model).items():
        # Where a gradient is nothing but rounding, Adamax makes whole steps of it.
        certain = np.abs(expected[name]) > 1e-6 if name in expected else np.ones(value.shape, bool)
        close(after[name][certain], value[certain], 1e-6)
        close(after[name], value, 2.1 * float(golden["lr"]) * count)
    np.testing.assert_array_equal(after["decoder.queries"], start["decoder.decoder.query_embed.weight"])


@each("mldecoder*.npz")
def test_decoder(path: Path):
    golden = np.load(path)
    is_true_size = "recipe_seed" in golden.files
    if "x" in golden.files:
        x = golden["x"]
    else:
        x = np.random.RandomState(int(golden["x_seed"])).standard_normal(golden["x_shape"]).astype(np.float32)
    groups = int(golden["num_of_groups"])
    model = MLDecoder(
        x.shape[1] if x.ndim == 4 else x.shape[2], int(golden["num_classes"]),
        width=number(golden, "decoder_embedding", 768), num_groups=groups if groups > 0 else MOST_GROUPS,
    )  # fmt: skip
    fill(model, made(model, int(golden["recipe_seed"])) if is_true_size else stored(golden, "sd/"))
    if "duplicate_factor" in golden.files:
        assert model.pooling.shape[0] == int(golden["n_queries"])
        assert model.pooling.shape[2] == int(golden["duplicate_factor"])
    if "decoder_out" in golden.files:
        close(model.decode(model.remember(Tensor(x))).swapaxes(0, 1), golden["decoder_out"], SMALL)
    close(model(Tensor(x)), golden["logits"], LARGE if is_true_size else SMALL)


@each("adaptive_avgpool1d*.npz")
def test_pooling(path: Path):
    golden = np.load(path)
    sizes = [tuple(map(int, name.split("_")[1:])) for name in golden.files if name.startswith("x_")]
    assert sizes
    for num_frames, length in sizes:
        x, y = (golden[f"{name}_{num_frames}_{length}"].swapaxes(1, 2) for name in "xy")
        close(ops.matmul(pooling_weights(None, num_frames, length), Tensor(x)), y, 1e-6)


@each("rot6d*.npz")
def test_conversion(path: Path):
    golden = np.load(path)
    rotations = axis_angle_to_rotation6d(golden["axis_angle"])
    close(rotations, golden["rot6d"], 1e-6)
    close(golden["matrix"][..., :2, :].reshape(rotations.shape), rotations, 1e-6)
    close(axis_angle_to_rotation6d(rotation6d_to_axis_angle(golden["rot6d"])), golden["rot6d"], 2e-6)


@each("service*.npz")
def test_service(path: Path):
    golden = np.load(path)
    rotations = axis_angle_to_rotation6d(golden["axis_angle_72"].reshape(-1, 24, 3))
    close(rotations, golden["rot6d"], 1e-6)
    other = np.load(path.parent / str(golden["weights_from"]))
    logits = network(other, path.parent / str(golden["weights_from"]))(Tensor(rotations[None]))
    close(logits, golden["logits"], SMALL)
    close(logits, golden["response_action_class"], SMALL)


def test_there_are_files_of_each_family():
    if not recipe.golden_files("actionnet", "*.npz"):
        pytest.skip("no golden arrays")
    for pattern in ("actnet*", "mldecoder*", "adaptive_avgpool1d*", "rot6d*", "service*"):
        assert recipe.golden_files("actionnet", f"{pattern}.npz"), pattern
