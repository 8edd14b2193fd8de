# SPDX-License-Identifier: Apache-2.0
"""What other programs call the parameters of our models: for each program a table of layers, or rules for their names.

Both serve both ways, as no two layers share a name. Nothing here knows MindSpore: the command line lists the families
from it at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How one program names the parameters of a model.

    `layers` maps our layers to its layers, or else `rules` replace regular expressions in a name one after another;
    `leaves` maps our parameters within a layer to its own where they differ, before that.
    `zeros` matches those of our names that the program lacks because they are zero there, `fresh` those that it lacks
    and that are drawn anew; `ignored` says which of its names are no weights of the model, by what they are. With
    `inflates` a kernel of height and width becomes one of as many frames as ours has, each with its share of it.
    `advice` is what else a user of its checkpoints must know.
    """

    program: str
    leaves: Mapping[str, str]
    ignored: Mapping[str, re.Pattern[str]]
    advice: str
    layers: Mapping[str, str] | None = None
    rules: tuple[tuple[str, str], ...] = ()
    zeros: re.Pattern[str] | None = None
    fresh: re.Pattern[str] | None = None
    inflates: bool = False

    def theirs(self, name: str) -> str:
        """The program's name of a parameter of ours."""
        layer, _, leaf = name.rpartition(".")
        leaf = self.leaves.get(leaf, leaf)
        if self.layers is not None:
            return f"{self.layers[layer]}.{leaf}"
        name = f"{layer}.{leaf}"
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def parts(self, names: Iterable[str]) -> set[str]:
        """The parts of our model (first words of our names) of which a file with these `names` holds anything."""
        held = {name.rpartition(".")[0] for name in names}
        return {ours.partition(".")[0] for ours, theirs in (self.layers or {}).items() if theirs in held}


@dataclass(frozen=True)
class Family:
    """A model and the programs whose checkpoints become its weights.

    A layout is recognised by the parameter `first`. `options` reads the options of `create_model` off the shapes of
    a file; `refused` says of a tensor's name which architecture, that is not ours, it belongs to.
    """

    layouts: tuple[Layout, ...]
    first: str
    options: Callable[[Layout, Shapes], dict[str, int | str]]
    refused: Mapping[str, str]


PYTORCH_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def unwrapped(name: str) -> str:
    """A PyTorch name without the `module` that DataParallel puts somewhere in front."""
    return ".".join(word for word in name.split(".") if word != "module")
