# SPDX-License-Identifier: Apache-2.0
"""What other programs call the parameters of our models: for each program a table of layers, or rules for their names.

Both serve both ways, as no two layers share a name. Nothing here knows MindSpore: the command line lists the families
from it at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]

PROJECTIONS = ("query", "key", "value")  # in the order in which PyTorch stacks them


@dataclass(frozen=True)
class Layout:
    """How one program names the parameters of a model.

    `layers` maps our layers to its layers, or else `rules` replace regular expressions in a name one after another;
    `leaves` maps our parameters within a layer to its own where they differ, before that.
    `zeros` matches those of our names that the program lacks because they are zero there, `fresh` those that it lacks
    and that are drawn anew; `ignored` says which of its names are no weights of the model, by what they are.

    Three differences of shape are known. With `inflates` a kernel of height and width becomes one of as many frames as
    ours has, each with its share of it. What `stacked` matches, its group being one of `PROJECTIONS`, is a third of
    one tensor there. What `columns` matches has two more axes of length 1 there.

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
    stacked: re.Pattern[str] | None = None
    columns: re.Pattern[str] | None = None

    def theirs(self, name: str) -> str:
        """The program's name of a parameter of ours."""
        layer, dot, leaf = name.rpartition(".")
        leaf = self.leaves.get(leaf, leaf)
        if self.layers is not None:
            return f"{self.layers.get(layer, layer)}.{leaf}"
        name = f"{layer}{dot}{leaf}"
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def third(self, name: str) -> int | None:
        """Which third of the program's tensor a parameter of ours is, or None if it is all of it."""
        found = self.stacked and self.stacked.fullmatch(name)
        return PROJECTIONS.index(found[1]) if found else None


PYTORCH_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
OURS = Layout(
    program="MindVideo",
    leaves={},
    ignored={"tensors of the optimizer": re.compile(r"optimizer\..+")},
    advice="Options that leave no trace in the weights are those of the config that it was trained with.",
)


@dataclass(frozen=True)
class Family:
    """A model and the programs whose checkpoints become its weights.

    A layout is recognised by the parameter `first`, ours too. `options` reads the options of `create_model` off the
    shapes of a file; `task` is the one whose configs name them. `written` gives the layout that a network with
    parameters of these shapes, by our names, is written in for PyTorch. `refused` says of a tensor's name which
    architecture, that is not ours, it belongs to.
    """

    first: str
    options: Callable[[Layout, Shapes], dict[str, int | str]]
    task: str
    layouts: tuple[Layout, ...] = ()
    written: Callable[[Shapes], Layout] = lambda _: OURS
    refused: Mapping[str, str] = field(default_factory=dict)


def sizes(layout: Layout, shapes: Shapes, *names: str) -> tuple[int, ...]:
    """The shape of the first of these parameters of ours that a file holds, or (0,)."""
    return next((shapes[theirs] for name in names if (theirs := layout.theirs(name)) in shapes), (0,))


def unwrapped(name: str) -> str:
    """A PyTorch name without the `module` that DataParallel puts somewhere in front."""
    return ".".join(word for word in name.split(".") if word != "module")
