# SPDX-License-Identifier: Apache-2.0
"""The training loop: one page, for every task."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from mindspore import Tensor, nn

from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.engine.distributed import sum_over_processes
from mindvideo.engine.log import RunLog, progress_bar, say
from mindvideo.engine.step import Average, Batch, Step
from mindvideo.errors import InputError


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Ctrl-C or SIGTERM came; the checkpoint of the step reached is written."""


def fit(
    step: Step,
    batches: Iterable[Batch],
    *,
    model: nn.Cell,
    state: TrainingState,
    num_steps: int,
    folder: Path,
    log: RunLog,
    measure: Callable[[Tensor, Batch], dict[str, float]],
    validate: Callable[[], float] | None,
    validate_every: int,
    save_every: int,
    log_every: int,
) -> None:
    """Train from `state.step` to `num_steps`; keep `last.ckpt`, `previous.ckpt` (the one before) and, by `validate` if
    given, `best.ckpt` in `folder`. Where the step keeps an average of the weights, that is what is validated and kept
    as the best, without `validate` at the end. Every line of the log has the means over the steps since the one before,
    also of the seconds that a step was `waiting` for data and `working`.

    `batches` yields what this process sees in the steps still to do; `measure` says what is logged of a batch's scores
    and inputs beside the loss, `accuracy` among it.
    Raises InputError when the loss is not finite, and Interrupted after Ctrl-C; `last.ckpt` can be resumed in both.
    """
    started = time.monotonic() - state.seconds
    recent: list[dict[str, float]] = []
    average = step.average
    with progress_bar("train", num_steps, state.step) as progress, _interruptible() as interrupted:
        for group, waiting in _groups(batches, step.batches):
            began = time.perf_counter()
            numbers, stop = _train(step, group, measure, interrupted)
            if not math.isfinite(numbers["loss"]):
                raise _diverged(state.step + 1, numbers["loss"], folder / "last.ckpt")
            recent.append(numbers | {"waiting": waiting, "working": time.perf_counter() - began})
            state.step += 1
            state.seconds = time.monotonic() - started
            is_last = state.step == num_steps
            if average:
                average.follow(state.step)
            progress(state.step, f"loss {numbers['loss']:.4f}")
            if state.step % log_every == 0 or is_last:
                _log_recent(log, state, recent, num_steps)
                recent.clear()
            if (validate and state.step % validate_every == 0) or is_last:
                _choose(model, state, folder, log, validate, average)
            if stop or state.step % save_every == 0 or is_last:
                state.seconds = time.monotonic() - started
                last, previous = folder / "last.ckpt", folder / "previous.ckpt"
                save_checkpoint(last, model, state, step.optimizer, step.kept, previous=previous)
            if stop and not is_last:
                raise Interrupted(
                    f"{folder / 'last.ckpt'} holds step {state.step} of {num_steps}, "
                    "train.resume=auto continues from there"
                )


def _groups(batches: Iterable[Batch], size: int) -> Iterator[tuple[list[Batch], float]]:
    """So many batches at a time, and for how many seconds the data kept us waiting."""
    source = iter(batches)
    while True:
        began = time.perf_counter()
        group = list(islice(source, size))
        if not group:
            return
        yield group, time.perf_counter() - began


def _train(
    step: Step,
    group: list[Batch],
    measure: Callable[[Tensor, Batch], dict[str, float]],
    interrupted: Callable[[], bool],
) -> tuple[dict[str, float], bool]:
    """Take a step; what it gave in the mean over all batches, and whether any process is to stop."""
    sums: dict[str, float] = {"batches": len(group)}
    for (loss, scores), batch in zip(step(group), group, strict=True):
        for name, value in {"loss": float(loss), **measure(scores, batch)}.items():
            sums[name] = sums.get(name, 0.0) + value
    sums = sum_over_processes(sums | {"stop": interrupted()})
    batches, stop = sums.pop("batches"), sums.pop("stop")
    return {name: value / batches for name, value in sums.items()}, stop > 0


def _diverged(step: int, loss: float, last: Path) -> InputError:
    kept = f"{last} holds the last good one saved" if last.exists() else "no checkpoint was written yet"
    return InputError(
        f"the loss of step {step} is {loss}: training stops, {kept}. Lower optim.lr or set optim.clip_norm."
    )


def _log_recent(log: RunLog, state: TrainingState, recent: list[dict[str, float]], num_steps: int) -> None:
    means = {name: sum(numbers[name] for numbers in recent) / len(recent) for name in recent[0]}
    waited = means["waiting"] / (means["waiting"] + means["working"])
    log.add(state.step, **means, seconds=round(state.seconds, 2))
    left = state.seconds / state.step * (num_steps - state.step)
    say(
        f"step {state.step}/{num_steps}  loss {means['loss']:.4f}  accuracy {100 * means['accuracy']:.1f} %  "
        f"{state.seconds / state.step:.2f} s/step  waiting for data {100 * waited:.0f} %  ETA {left / 60:.1f} min"
    )


def _choose(
    model: nn.Cell,
    state: TrainingState,
    folder: Path,
    log: RunLog,
    validate: Callable[[], float] | None,
    average: Average | None,
) -> None:
    """Score what is tested, the model or its average, on validation data and keep it if it is the best so far; without
    such data keep an average as it is."""
    if not validate and not average:
        return
    with average.applied() if average else nullcontext():
        if validate:
            model.set_train(False)
            value = validate()
            model.set_train(True)
            log.add(state.step, val_accuracy=value)
            is_best = value > state.best
            say(f"step {state.step}  validation accuracy {100 * value:.1f} %{'  (best so far)' if is_best else ''}")
            if not is_best:
                return
            state.best = value
        state.best_step = state.step
        save_checkpoint(folder / "best.ckpt", model, state)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait for the end of the step; a second one acts at once.

    Yields a function that tells whether one came.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, remember)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
