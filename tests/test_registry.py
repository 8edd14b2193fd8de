# SPDX-License-Identifier: Apache-2.0
"""Models by name: what is known, and what is said of the unknown; any head on any backbone."""

import inspect

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.errors import InputError
from mindvideo.heads import HEADS, make_head
from mindvideo.models import create_model, describe, list_models, options_of, registry
from mindvideo.models.c3d import C3D_CLIP
from mindvideo.models.layers import initialize_kaiming
from mindvideo.models.recognizer import Recognizer
from mindvideo.zoo import ZOO

CLASSIFIERS = [name for name in list_models() if ZOO[name].task == "video"]


@pytest.fixture
def two_models(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", {})

    @registry.register
    def wide_net(*, width: int = 4, bias: bool = True) -> nn.Cell:
        """A wide net.

        More about it.
        """
        return nn.Dense(2, width, has_bias=bias)

    @registry.register
    def deep_net() -> nn.Cell:
        return nn.ReLU()

    return wide_net, deep_net


def test_arn_is_known():
    assert "arn" in list_models()
    assert isinstance(create_model("arn", width=16), nn.Cell)
    assert describe("arn").startswith("ARN")


def test_every_model_says_what_it_is():
    assert all(describe(name) for name in list_models())


def test_models_are_built_with_their_options(two_models):
    assert list_models() == ["deep_net", "wide_net"]
    net = create_model("wide_net", width=3, bias=False)
    assert isinstance(net, nn.Dense)
    assert net.weight.shape == (3, 2)
    assert net.bias is None
    assert describe("wide_net") == "A wide net."
    assert describe("deep_net") == ""


def test_options_have_their_defaults(two_models):
    assert registry.defaults_of("wide_net") == {"width": 4, "bias": True}
    assert registry.defaults_of("deep_net") == {}
    registry.register(nn.Dense, "dense")
    assert registry.defaults_of("dense")["in_channels"] is inspect.Parameter.empty


def test_registering_returns_the_factory(two_models):
    assert create_model("wide_net").weight.shape == two_models[0]().weight.shape == (4, 2)


def test_an_unknown_name_lists_the_closest_and_all(two_models):
    with pytest.raises(InputError) as caught:
        create_model("widenet")
    assert "unknown model 'widenet', did you mean 'wide_net'?" in str(caught.value)
    assert "deep_net, wide_net" in str(caught.value)
    with pytest.raises(InputError, match="unknown model 'xyz'") as caught:
        create_model("xyz")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_option_lists_those_there_are(two_models):
    with pytest.raises(InputError, match=r"'wide_net' has no option 'depth', 'heads'; it has width, bias\."):
        create_model("wide_net", width=3, heads=1, depth=2)


def test_a_name_cannot_be_taken_twice(two_models):
    with pytest.raises(ValueError, match="two models are called 'deep_net'"):
        registry.register(two_models[1])


def test_these_are_the_classifiers():
    assert {
        *("i3d_r50", "tsm_r50", "slowfast_r50", "tpn_r50", "slowonly_r50", "ircsn_r50", "ircsn_r152", "c3d"),
        *("i3d_r18", "tsm_r18", "slowfast_r18", "tpn_r18", "slowonly_r18"),
    } <= set(CLASSIFIERS)
    assert not {"arn", "two_stream", "actionnet"} & set(CLASSIFIERS)


class Kept(nn.Cell):
    """A backbone that keeps what it gives."""

    def __init__(self, backbone: nn.Cell):
        super().__init__()
        self.backbone = backbone
        self.num_features, self.num_map_channels = backbone.num_features, backbone.num_map_channels

    def construct(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        self.given = self.backbone(clips_BCTHW)
        return self.given


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_any_head_goes_on_any_backbone(name):
    """Each gives `[2, K]` of vectors that the backbone gives once, which tell the two clips apart."""
    widths = {"width": 8} | ({"fast_width": 2} if "fast_width" in options_of(name) else {})
    widths |= {"width": 4} if name == "c3d" else {}  # its fc6 and fc7 grow with the square
    shape = C3D_CLIP if name == "c3d" else (8, 32, 32)
    clips = Tensor(np.random.default_rng(0).standard_normal((2, 3, *shape)).astype(np.float32))
    model = create_model(name, num_classes=5, head="linear", **widths)
    assert isinstance(model, Recognizer)
    initialize_kaiming(model, 1)
    model.backbone = backbone = Kept(model.backbone)
    logits = model(clips).asnumpy()
    vectors_BSC, map_BDTHW = backbone.given
    assert vectors_BSC.shape == (2, shape[0] if name.startswith("tsm") else 1, backbone.num_features)
    assert map_BDTHW.shape[:2] == (2, backbone.num_map_channels)
    np.testing.assert_array_equal(logits, model.head(vectors_BSC).asnumpy())
    for kind in HEADS:
        logits = Recognizer(backbone, kind, 5, 0.5).head(vectors_BSC).asnumpy()
        assert logits.shape == (2, 5), kind
        assert np.isfinite(logits).all(), kind
        assert (logits[0] != logits[1]).all(), kind


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_chosen_by_name(kind):
    model = create_model("slowonly_r18", num_classes=5, head=kind, width=8)
    assert isinstance(model, Recognizer)
    assert type(model.head) is type(make_head(kind, 8, 5))


def test_an_unknown_head_lists_the_closest_and_all():
    with pytest.raises(InputError) as caught:
        create_model("i3d_r18", width=8, head="evidental")
    assert str(caught.value) == (
        "unknown head 'evidental', did you mean 'evidential'? Known: linear, evidential, bayesian, rpl, gcpl, "
        "rpl_euclidean, gcpl_euclidean."
    )
