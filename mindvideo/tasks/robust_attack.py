# SPDX-License-Identifier: Apache-2.0
"""What defences are worth: every attack on every classifier, as the published table has it and as it should be.

A row is a checkpoint behind the defence that its config names. The published columns are naive: the attack takes the
gradient that the defended classifier hands it. The adaptive ones look past the defence: BPDA lets the gradient through
the concealment, EOT averages it over the random padding, both together where both are there; transfer attacks the same
weights without their defence (those of an undefended row: another row's weights), Square uses no gradient, APGD is the
strongest of all. A classifier that draws at random is right where its mean prediction over many draws is.

N images, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from mindvideo import attacks
from mindvideo.config import Config, to_yaml
from mindvideo.engine.checkpoint import load_checkpoint, read_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.log import progress_bar, say
from mindvideo.engine.run import new_run
from mindvideo.errors import InputError
from mindvideo.metrics import robustness
from mindvideo.metrics.robustness import Finding
from mindvideo.models.robust import Defended
from mindvideo.schema import SCHEMAS
from mindvideo.tasks.robust_attack_report import SHOWN, SWEEP, finish
from mindvideo.tasks.robust_data import find_images, read_images
from mindvideo.tasks.robust_objective import defend, make_network, make_target

_PUBLISHED_SIZE = 224  # pixels, of the L1 and L2 budgets


@dataclass
class Row:
    """One classifier: its name, weights and config, and what attacks came to: which images are right, by column.

    `losses` are those of naive PGD before each step, `[steps, N]`; `sweep` which images are right under adaptive PGD
    at each budget of SWEEP, and `shown` all images under the attack SHOWN.
    """

    name: str
    config: Config
    network: nn.Cell
    clean: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    right: dict[str, np.ndarray] = field(default_factory=dict)
    losses: list[np.ndarray] = field(default_factory=list)
    sweep: list[np.ndarray] = field(default_factory=list)
    shown: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_defended(self) -> bool:
        return bool(self.config.defence.concealment or self.config.defence.padding)


@dataclass(frozen=True)
class Budgets:
    """Largest perturbations by norm; L1 and L2 are given for 224 x 224 pixels and grow with their number, or its root,
    so that each pixel has the same share."""

    linf: float
    l2: float
    l1: float

    @classmethod
    def of(cls, config: Config) -> Budgets:
        """Those of the config, at its image size."""
        settings, ratio = config.attack, config.data.size / _PUBLISHED_SIZE
        return cls(settings.linf, settings.l2 * ratio, settings.l1 * ratio**2)


def attack(config: Config, checkpoints: Sequence[Path]) -> tuple[Path, list[tuple[str, Finding]]]:
    """Attack all checkpoints on the config's test images; the folder of the results, and by row the checks that
    failed.

    Model and defence are those of each checkpoint's own config; images, budgets and attacks those of `config`.
    """
    use_device(config.device)
    ms.set_seed(config.seed)
    data = find_images(config)
    samples = _evenly(data.parts["test"], config.attack.images)
    rows = [_load(config, path, data.classes) for path in checkpoints]
    for number, row in enumerate(rows, start=1):
        if [other.name for other in rows].count(row.name) > 1:
            row.name += f" ({number})"
    images, labels = read_images(data, samples, config.data.workers), data.labels(samples)
    folder = new_run(Path(config.output), f"{config.name}-attack", to_yaml(config))
    for number, row in enumerate(rows):
        started = time.monotonic()
        others = [other for other in rows if other is not row]
        run_attacks(row, None if row.is_defended or not others else others[0], config, images, labels)
        row.findings = checks(row, config, len(data.classes))
        row.seconds = time.monotonic() - started
        say(f"row {number + 1} of {len(rows)}, {row.name}: {row.seconds / 60:.1f} min")
    finish(config, folder, rows, images, labels, data.classes)
    return folder, [(row.name, finding) for row in rows for finding in row.findings if not finding.passed]


def _evenly(samples: Sequence, count: int) -> list:
    """So many samples, spread over all."""
    if count == 0 or count >= len(samples):
        return list(samples)
    return [samples[place * len(samples) // count] for place in range(count)]


def _load(config: Config, path: Path, classes: list[str]) -> Row:
    """A row of the table; InputError if the checkpoint is of another task, of other classes, or of another size."""
    _, state = read_checkpoint(path)
    own = state.config
    if own.get("task") != "robust":
        raise InputError(f"{path}: a checkpoint of a robust classifier is needed, with its config in it.")
    if state.classes and state.classes != classes:
        raise InputError(f"{path}: its classes are {', '.join(state.classes)}; these images show others.")
    if own["data"]["size"] != config.data.size:
        raise InputError(f"{path}: made for images of {own['data']['size']} pixels; data.size is {config.data.size}.")
    row_config = config.copy_and_resolve_references()
    for section in ("model", "defence", "loss"):
        row_config[section].update({key: own[section][key] for key in SCHEMAS["robust"][section]})
    network = make_network(row_config, len(classes))
    load_checkpoint(path, network, row_config.model.name)
    return Row(own["name"], row_config, network)


@dataclass(frozen=True)
class Targets:
    """A row as attacks see it: as it stands; with its gradient let through the concealment (`honest`), averaged over
    the draws of its padding too (`adaptive`); the classifier that transferred attacks are made on; and what decides
    which images are right."""

    victim: attacks.Target
    honest: attacks.Target
    adaptive: attacks.Target
    undefended: attacks.Target
    judge: attacks.Target

    @classmethod
    def of(cls, row: Row, source: nn.Cell, config: Config) -> Targets:
        """`source` is the network that transferred attacks are made on."""
        own, batch = row.config, config.eval.batch
        victim = make_target(own, defend(own, row.network), batch)
        honest = make_target(own, defend(own, row.network, identity_gradient=True), batch)
        undefended = make_target(own, Defended(source), batch)
        if not own.defence.padding:
            return cls(victim, honest, honest, undefended, victim)
        adaptive, judge = (attacks.Averaged(target, config.attack.draws) for target in (honest, victim))
        return cls(victim, honest, adaptive, undefended, judge)


def run_attacks(row: Row, other: Row | None, config: Config, images: np.ndarray, labels: np.ndarray) -> None:
    """Fill the row: `other` is whose weights transferred attacks are made on, None for the row's own, undefended."""
    targets = Targets.of(row, other.network if other else row.network, config)
    recipes = _recipes(row, targets, config, images, labels)
    if not (other or row.is_defended):
        del recipes["transfer"]
    row.clean = _right(targets.judge, images, labels)
    with progress_bar(f"attack {row.name}", len(recipes) + len(SWEEP)) as progress:
        for done, (name, recipe) in enumerate(recipes.items(), start=1):
            progress(done, name)
            moved = recipe()
            row.right[name] = row.clean & _right(targets.judge, moved, labels)
            say(f"{row.name}, {name}: {100 * row.right[name].mean():.1f} % right")
            if name == SHOWN:
                row.shown = moved
        for done, factor in enumerate(SWEEP, start=len(recipes) + 1):
            progress(done, f"budget x {factor:g}")
            moved = attacks.pgd(
                # With random draws each step has its own: averaging them as well costs much and changes little here.
                targets.honest, images, labels, epsilon=min(1.0, factor * config.attack.linf),
                steps=config.attack.steps, rng=_rng(config),
            )  # fmt: skip
            row.sweep.append(row.clean & _right(targets.judge, moved, labels))


def _recipes(
    row: Row, targets: Targets, config: Config, images: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[], np.ndarray]]:
    """By column, what makes attacked images."""
    settings, budgets, victim = config.attack, Budgets.of(config), targets.victim

    def pgd(target: attacks.Target, epsilon: float = budgets.linf, **options) -> np.ndarray:
        return attacks.pgd(target, images, labels, epsilon=epsilon, steps=settings.steps, rng=_rng(config), **options)

    def apgd(loss: str) -> np.ndarray:
        return attacks.apgd(
            targets.adaptive, images, labels, epsilon=budgets.linf, steps=settings.apgd_steps, rng=_rng(config),
            loss=loss,
        )  # fmt: skip

    recipes: dict[str, Callable[[], np.ndarray]] = {
        "FGSM Linf": lambda: attacks.fgsm(victim, images, labels, epsilon=budgets.linf),
        "PGD Linf": lambda: pgd(victim, watch=row.losses.append),
        "PGD L2": lambda: pgd(victim, budgets.l2, norm="l2"),
        # As published: steps along the whole gradient, which are weak in L1.
        "PGD L1": lambda: pgd(victim, budgets.l1, norm="l1_dense"),
        "C&W L2": lambda: attacks.carlini_wagner(
            victim, images, labels, epsilon=budgets.l2, searches=settings.cw_searches, steps=settings.cw_steps
        ),
        "noise": lambda: attacks.sign_noise(images, epsilon=budgets.linf, rng=_rng(config)),
        "transfer": lambda: pgd(targets.undefended),
        "Square": lambda: attacks.square(
            victim, images, labels, epsilon=budgets.linf, queries=settings.queries, rng=_rng(config)
        ),
        "APGD-CE": lambda: apgd("cross_entropy"),
        "APGD-DLR": lambda: apgd("dlr"),
    }
    if row.config.defence.concealment:
        recipes["BPDA"] = lambda: pgd(targets.honest)
    if row.config.defence.padding:
        recipes["EOT"] = lambda: pgd(targets.adaptive)
    return recipes


def _rng(config: Config) -> np.random.Generator:
    return np.random.default_rng((config.seed, 4))  # 4: another stream than those of training


def _right(judge: attacks.Target, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return judge.logits(images).argmax(axis=1) == labels


def checks(row: Row, config: Config, num_classes: int) -> list[Finding]:
    """Whether the naive columns of a row can be believed."""
    naive = {name: row.right[name] for name in ("FGSM Linf", "PGD Linf")}
    black = {name: row.right[name] for name in ("Square", "transfer", "noise") if name in row.right}
    found = [
        robustness.check_iterations(row.clean, row.right["FGSM Linf"], row.right["PGD Linf"]),
        robustness.check_white_box(row.clean, naive, black),
        robustness.check_losses(np.stack(row.losses)),
        robustness.check_budgets(
            [factor * config.attack.linf for factor in SWEEP], row.clean, np.stack(row.sweep), 1 / num_classes
        ),
    ]
    adaptive = {name: row.right[name] for name in ("BPDA", "EOT") if name in row.right}
    if adaptive:
        worst = robustness.worst_case(row.clean, adaptive)
        found.insert(2, robustness.check_adaptive(row.clean, row.right["PGD Linf"], worst))
    return found
