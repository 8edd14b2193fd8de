# SPDX-License-Identifier: Apache-2.0
"""Models by name: `create_model("arn", width=64)` and `list_models()`. The only registry of the package."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import TypeVar

from mindspore import nn

from mindvideo.errors import InputError

Factory = TypeVar("Factory", bound=Callable[..., nn.Cell])
_FACTORIES: dict[str, Callable[..., nn.Cell]] = {}


def register(factory: Factory, name: str = "") -> Factory:
    """Make a factory of keyword arguments, a function or a class, known under its name or another one."""
    name = name or factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"two models are called {name!r}")
    _FACTORIES[name] = factory
    return factory


def create_model(name: str, **options: object) -> nn.Cell:
    """Build a model; InputError for an unknown name or option, with what is known."""
    known = options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"model {name!r} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")
    return _FACTORIES[name](**options)


def options_of(name: str) -> list[str]:
    """The options of a model; InputError for an unknown name."""
    return list(defaults_of(name))


def defaults_of(name: str) -> dict[str, object]:
    """The options of a model with their defaults (`inspect.Parameter.empty`: none); InputError for an unknown name."""
    if name not in _FACTORIES:
        close = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise InputError(f"unknown model {name!r}{hint} Known: {', '.join(list_models())}.")
    return {option: known.default for option, known in inspect.signature(_FACTORIES[name]).parameters.items()}


def list_models() -> list[str]:
    """All model names, sorted."""
    return sorted(_FACTORIES)


def describe(name: str) -> str:
    """The first line of the model's docstring."""
    return (inspect.getdoc(_FACTORIES[name]) or "").split("\n")[0]
