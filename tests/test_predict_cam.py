# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM: its gradients are the network's, its maps the evidence, and its pictures show what the network saw."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.cli import main
from mindvideo.config import parse_config
from mindvideo.data.crops import center_box, crop_frames
from mindvideo.data.transforms import short_side_resize
from mindvideo.data.video import read_frames, write_video
from mindvideo.models import create_model, options_of
from mindvideo.models.c3d import C3D_CLIP
from mindvideo.models.layers import initialize_kaiming
from mindvideo.predict import GradCam, VideoClip, VideoPredictor
from mindvideo.predict.cam import heat_of, resize_linear
from mindvideo.predict.stream import frame_rate
from tests.serving import clip as poses
from tests.serving import make_video, npy, video_predictor, write_pose_checkpoint, write_video_checkpoint

CLASSES = ("a", "b", "c", "d")
CHOSEN = 2


def predictor(name: str, head: str = "linear", size: int = 32, length: int = 8) -> VideoPredictor:
    """A small network with random weights."""
    widths = {"width": 8} | ({"fast_width": 2} if "fast_width" in options_of(name) else {})
    widths |= {"width": 2} if name == "c3d" else {}
    model = create_model(name, num_classes=len(CLASSES), head=head, **widths)
    initialize_kaiming(model, 1)
    for parameter in model.head.get_parameters():
        if parameter.name.endswith(("fc.weight", "weight_mu", "centers")):
            values = np.random.default_rng(2).normal(0, 0.1, parameter.shape)
            parameter.set_data(Tensor(values.astype(np.float32)))
    data = {"length": length, "stride": 1, "short_side": size, "size": size}
    config = {"task": "openset", "data": data, "eval": {"clips": 1, "crops": "center", "size": size}}
    return VideoPredictor(model, parse_config(config, "here"), CLASSES)


def random_clip(found: VideoPredictor) -> VideoClip:
    size, length = found.reader.transform.size, found.reader.length
    blocks = np.random.default_rng(0).integers(0, 256, (length, size // 8, size // 8, 3), dtype=np.uint8)
    return found.gather([found.shrink(frame) for frame in blocks.repeat(8, axis=1).repeat(8, axis=2)])


def explained(found: VideoPredictor, seen: VideoClip) -> tuple[Tensor, list[np.ndarray], list[np.ndarray]]:
    """The clip, its maps and the gradients by them."""
    clips = Tensor(found.reader.views(seen.crops, seen.places))
    found.model.set_train(False)
    maps, gradients = GradCam(found)._explain(clips, Tensor(np.eye(len(CLASSES), dtype=np.float32)[CHOSEN]))
    return clips, [a.asnumpy() for a in maps], [a.asnumpy() for a in gradients]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "linear") for name in ("i3d_r18", "tsm_r18", "slowonly_r18", "slowfast_r18", "tpn_r18")),
        *(("ircsn_r50", "linear"), ("c3d", "linear"), ("tsm_r18", "bayesian"), ("slowonly_r18", "rpl_euclidean")),
    ],
)
def test_gradients_are_those_of_the_network(name, head, pynative):
    """The whole network is run with its maps moved a little, along the gradient and along random ways."""
    found = predictor(name, head, *((C3D_CLIP[1], C3D_CLIP[0]) if name == "c3d" else ()))
    network, rng = found.model, np.random.default_rng(1)
    for parameter in network.backbone.get_parameters():
        if parameter.name.endswith(("beta", "bias")):  # off the kinks: without zeros no maximum is reached twice
            lift = 10 if "conv5b" in parameter.name else 1
            parameter.set_data(Tensor(lift * rng.uniform(1, 2, parameter.shape).astype(np.float32)))
    clips, maps, gradients = explained(found, random_clip(found))

    def logit(moved: list[np.ndarray]) -> float:
        network.backbone.maps = lambda _: tuple(Tensor(a) for a in moved)
        return float(network(clips).asnumpy()[0, CHOSEN])

    for place, gradient in enumerate(gradients):
        steepest = gradient / np.linalg.norm(gradient)
        for share in (0.0, 1.0, 1.0):
            way = rng.standard_normal(gradient.shape).astype(np.float32)
            way = steepest + share * way / np.linalg.norm(way)
            step = 1e-4 * np.linalg.norm(maps[place])
            ends = []
            for sign in (1, -1):
                moved = list(maps)
                moved[place] = maps[place] + np.float32(sign * step) * way
                ends.append(logit(moved))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((gradient * way).sum(), rel=0.02)


@pytest.mark.parametrize("name", ["i3d_r18", "tsm_r18", "slowfast_r18"])
def test_behind_pooling_and_a_linear_head_the_mean_heat_is_the_logit(name):
    found = predictor(name)
    weights = found.model.head.fc.weight
    weights.set_data(Tensor(np.abs(weights.asnumpy())))  # so that nothing speaks against a class
    clips, maps, gradients = explained(found, random_clip(found))
    heat = heat_of([a[0] for a in maps], [a[0] for a in gradients])
    assert heat.shape == tuple(np.max([a.shape[2:] for a in maps], axis=0))
    (logit,) = found.model(clips).asnumpy()[:, CHOSEN]
    assert heat.mean() == pytest.approx(logit - found.model.head.fc.bias.asnumpy()[CHOSEN], rel=1e-5)


def test_on_i3d_it_is_the_class_activation_map():
    """Zhou et al., CVPR 2016: the classifier's weights at every place of the map, here brought to size by OpenCV."""
    found = predictor("i3d_r18", size=96)
    seen = random_clip(found)
    clips = Tensor(found.reader.views(seen.crops, seen.places))
    (features_DTHW,) = found.model.backbone(clips)[1].asnumpy()
    assert features_DTHW.shape[1:] == (1, 3, 3)
    weights_KD, mean_D = found.model.head.fc.weight.asnumpy(), features_DTHW.mean(axis=(1, 2, 3))
    weights_KD -= np.outer(weights_KD @ mean_D, mean_D) / (mean_D @ mean_D)  # now as much speaks for it as against it
    found.model.head.fc.weight.set_data(Tensor(weights_KD))
    cam = np.maximum(np.tensordot(weights_KD[CHOSEN], features_DTHW[:, 0], 1), 0)
    assert 0 < (cam > 0).sum() < cam.size
    heat = GradCam(found)(seen, CHOSEN)
    assert (heat.shape, heat.dtype) == ((8, 96, 96), np.float32)
    expected = cv2.resize(cam, (96, 96), interpolation=cv2.INTER_LINEAR)
    for frame in heat:
        np.testing.assert_allclose(frame, expected / expected.max(), atol=1e-4)


def test_resizing_is_linear_along_every_axis():
    values = np.random.default_rng(0).standard_normal((3, 4, 5))
    found = resize_linear(values, (7, 12, 5))
    in_time = [np.interp((np.arange(7) + 0.5) * 3 / 7 - 0.5, range(3), column) for column in values.reshape(3, -1).T]
    expected = np.transpose(in_time).reshape(7, 4, 5)
    for frame, slower in zip(found, expected, strict=True):
        np.testing.assert_allclose(frame, cv2.resize(slower, (5, 12), interpolation=cv2.INTER_LINEAR), atol=1e-6)
    np.testing.assert_array_equal(resize_linear(values, values.shape), values)


def test_heat_is_where_and_when_the_evidence_is():
    """A network whose weights are all positive, and so sees brightness, on a patch that flashes up."""
    found = predictor("slowonly_r18", size=128)
    for _, cell in found.model.cells_and_names():
        if isinstance(cell, nn.Cell) and hasattr(cell, "operator") and hasattr(cell, "weight"):
            cell.weight.set_data(Tensor(np.abs(cell.weight.asnumpy())))
    fc = found.model.head.fc
    weights = np.zeros(fc.weight.shape, np.float32)
    weights[CHOSEN], weights[CHOSEN + 1] = 1, -1
    fc.weight.set_data(Tensor(weights))
    frames = np.zeros((8, 128, 128, 3), np.uint8)
    frames[5:7, 80:112, 16:48] = 255
    seen = found.gather([found.shrink(frame) for frame in frames])
    cam = GradCam(found)
    heat = cam(seen, CHOSEN)
    assert heat.max() == 1
    when, y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert when in (5, 6)
    assert 64 <= y < 128
    assert 0 <= x < 64
    assert heat[5:7].mean() > 2 * heat[:2].mean()
    # Where all of it speaks against the class, nothing is hot.
    assert (cam(seen, CHOSEN + 1) == 0).all()


def test_the_middle_view_is_explained(tmp_path):
    """Of three crops and two windows: the crop in the middle, the second window."""
    found = video_predictor()
    path = make_video(tmp_path / "a.avi")
    seen = found.read(path)
    assert (seen.crops.shape[0], len(seen.places)) == (3, 2)
    (said,) = found.classify([seen])
    resized = short_side_resize(read_frames(path, range(12)), 36)
    middle = crop_frames(resized, center_box(*resized.shape[1:3], 32))
    frames = [int(np.abs(middle.astype(int) - frame).sum(axis=(1, 2, 3)).argmin()) for frame in said.seen]
    np.testing.assert_array_equal(said.seen, middle[frames])
    assert frames == list(range(frames[0], frames[0] + 4))
    heat = GradCam(found)(seen, said.number)
    views = found.reader.views(seen.crops, seen.places)
    features_BDTHW = found.model.backbone(Tensor(views[-1:]))[1].asnumpy()
    weights = found.model.head.fc.weight.asnumpy()[said.number]
    cam = resize_linear(np.maximum(np.tensordot(weights, features_BDTHW[0], 1), 0), (4, 32, 32))
    np.testing.assert_allclose(heat, cam / (cam.max() or 1), atol=1e-4)


def test_at_the_command_line(tmp_path, capsys):
    checkpoint = write_video_checkpoint(tmp_path)
    blocks = np.random.default_rng(1).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
    write_video(tmp_path / "a.avi", blocks.repeat(8, axis=1).repeat(8, axis=2), fps=5, codec="ffv1")
    words = ["predict", "--ckpt", str(checkpoint), "--device", "cpu", str(tmp_path / "a.avi")]
    assert main(words) == 0
    plain = capsys.readouterr().out
    both = ["--cam", str(tmp_path / "heat"), "--annotate", str(tmp_path / "shown")]
    assert main([*words, *both]) == 0
    assert capsys.readouterr().out == plain
    shown = read_frames(tmp_path / "heat" / "a.mp4", range(4))
    # 32 pixels enlarged to 320, above the caption.
    assert shown.shape[:1] + shown.shape[2:] == (4, 320, 3)
    assert shown.shape[1] > 340
    assert frame_rate(tmp_path / "heat" / "a.mp4") == 5
    assert read_frames(tmp_path / "shown" / "a.mp4", range(12)).shape[0] == 12
    assert main([*words, "--cam", str(tmp_path / "heat")]) == 2
    assert "a.mp4: it is there already" in capsys.readouterr().err
    assert main([*words, "--cam", str(tmp_path / "heat"), "--gif", "--threshold", "-1"]) == 0
    assert sorted(path.name for path in (tmp_path / "heat").iterdir()) == ["a.gif", "a.mp4"]


def test_where_there_is_no_map_it_is_refused(tmp_path, capsys):
    videos, pose_network = write_video_checkpoint(tmp_path), write_pose_checkpoint(tmp_path)
    (tmp_path / "a.npy").write_bytes(npy(poses(9)))
    path, heat = make_video(tmp_path / "a.avi"), tmp_path / "heat"

    def refusal(checkpoint: Path, source: Path, *words: str) -> str:
        status = main(["predict", "--ckpt", str(checkpoint), "--device", "cpu", str(source), *words])
        said = capsys.readouterr()
        assert (status, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err

    assert "--cam is for video classifiers" in refusal(pose_network, tmp_path / "a.npy", "--cam", str(heat))
    assert "leave out --every" in refusal(videos, path, "--cam", str(heat), "--every", "1")
    assert "need a folder each" in refusal(videos, path, "--cam", str(heat), "--annotate", str(heat))
    assert "--cam does not go with --support" in refusal(videos, path, "--cam", str(heat), "--support", str(tmp_path))
    assert not heat.exists()
