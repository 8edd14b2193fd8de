# SPDX-License-Identifier: Apache-2.0
"""Scoring episodes: both BatchNorm policies against the model called directly, rejection against brute force."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.data.datasets import READERS
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.loader import ClipReader
from mindvideo.data.transforms import ClipTransform
from mindvideo.metrics.fewshot import CONTROLS
from mindvideo.models import create_model
from mindvideo.models.layers import initialize
from mindvideo.tasks.fewshot_episodes import queries, run_episodes

FRAMES = 6


@pytest.fixture
def samples(make_videos):
    return READERS["folder"](make_videos([f"{label}/{i}.avi" for label in "ABCD" for i in range(5)], FRAMES))


@pytest.fixture
def reader(samples):
    return ClipReader(ClipTransform((32, 32)), "uniform", 4, {sample.path: FRAMES for sample in samples})


def run(model, samples, reader, batch_norm, **options):
    sampler = EpisodeSampler(samples, way=2, shot=2, query=2, seed=3, unknown=3)
    return run_episodes(
        model,
        sampler,
        samples,
        reader,
        num_episodes=4,
        batch=6,
        batch_norm=batch_norm,
        controls=CONTROLS,
        **{"workers": 1, **options},
    )


def back_to_graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("batch_norm", ["running", "episode"])
@pytest.mark.parametrize("comparator", ["relation", "distance", "evidential"])
def test_scores_are_those_of_the_model(samples, reader, batch_norm, comparator, request):
    model = create_model("arn", width=16, comparator=comparator, momentum=0.5)
    initialize(model, 1)
    model.encoder.block1.norm.moving_mean.set_data(Tensor(np.full(16, 0.1, np.float32)))
    before = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
    results = run(model, samples, reader, batch_norm)
    for name, parameter in model.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name], err_msg=name)
    clips = np.stack([reader(sample) for sample in samples])
    ms.set_context(mode=ms.PYNATIVE_MODE)
    request.addfinalizer(back_to_graph_mode)
    for number in range(4):
        episode = results.sampler.episode(number)
        model.set_train(batch_norm == "episode")
        support, query = Tensor(clips[episode.support_NK]), Tensor(clips[queries(episode)])
        outputs = model.relate(*model.encode_episode(support, query))
        scores, knownness = model.scores(outputs).asnumpy(), model.knownness(outputs).asnumpy()
        np.testing.assert_allclose(results.scores["model"][number], scores, atol=2e-5)
        np.testing.assert_allclose(results.knownness["model"][number], knownness, rtol=1e-4, atol=2e-5)
        right = scores[:4].argmax(axis=1) == [0, 0, 1, 1]
        assert results.accuracies()[number] == right.mean()
        above = [[a > b for b in knownness[4:]] for a in knownness[:4]]
        assert results.rejection()[number] == pytest.approx(np.mean(above), abs=1e-9)


def test_the_episodes_do_not_depend_on_the_workers(samples, reader):
    model = create_model("arn", width=16)
    initialize(model, 1)
    for batch_norm in ("running", "episode"):
        one, two = (run(model, samples, reader, batch_norm, workers=workers) for workers in (1, 2))
        assert one.classes == two.classes
        for method in one.scores:
            np.testing.assert_array_equal(one.scores[method], two.scores[method])


def test_controls_see_the_frames_alone(samples, reader):
    model = create_model("protonet", width=16)
    initialize(model, 1)
    results = run(model, samples, reader, "running")
    assert set(results.scores) == {"model", "thumbnails", "motion", "colours"}
    for control in ("thumbnails", "motion", "colours"):
        assert results.scores[control].shape == (4, 7, 2)
        np.testing.assert_array_equal(results.knownness[control], results.scores[control].max(axis=2))
    matrix = results.confusion()
    assert matrix.sum() == 4 * 4
    assert np.trace(matrix) == round(results.accuracies().sum() * 4)
