# SPDX-License-Identifier: Apache-2.0
"""Models by name: what is known, and what is said of the unknown."""

import pytest
from mindspore import nn

from mindvideo.errors import InputError
from mindvideo.models import create_model, describe, list_models, registry


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
