# SPDX-License-Identifier: Apache-2.0
"""Evidential losses: what a network's logits say of a Dirichlet distribution over the classes. B clips, K classes.

Evidence e >= 0 makes alpha = e + 1; S = sum(alpha), the probabilities are alpha / S and the vacuity is u = K / S: 1
without any evidence, towards 0 with much (Sensoy et al., NeurIPS 2018). DEAR (Bao et al., ICCV 2021) calibrates it by
setting accuracy against uncertainty. `RECIPES` are the combinations that it reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindvideo.errors import InputError

AVU = ("none", "avu", "davu")
ANNEALING = ("step", "exp")
_EPSILON = 1e-10


def clipped_exp(logits_BK: Tensor) -> Tensor:
    """exp(z) of logits clipped to [-10, 10]; beyond these they have no gradient.

    MindSpore's exp is off by up to 5e-6 on a CPU, its expm1 by 1e-7, and 1 / exp(-z) keeps that for z < 0.
    """
    clipped_BK = ops.clamp(logits_BK, -10.0, 10.0)
    is_negative_BK = clipped_BK < 0
    growth_BK = ops.expm1(ops.where(is_negative_BK, -clipped_BK, clipped_BK)) + 1.0
    return ops.where(is_negative_BK, 1.0 / growth_BK, growth_BK)


EVIDENCE: dict[str, Callable[[Tensor], Tensor]] = {"relu": ops.relu, "exp": clipped_exp, "softplus": ops.softplus}


def one_hot(classes_B: Tensor, num_classes: int) -> Tensor:
    """Class numbers as rows `[B, K]` of zeros with a one."""
    return ops.one_hot(classes_B, num_classes, Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))


def likelihood_loss(alpha_BK: Tensor, target_BK: Tensor) -> Tensor:
    """ln S - ln alpha of a clip's own class `[B]`, the negative logarithm of its probability."""
    total_B1 = alpha_BK.sum(axis=1, keepdims=True)
    return (target_BK * (ops.log(total_B1) - ops.log(alpha_BK))).sum(axis=1)


def digamma_loss(alpha_BK: Tensor, target_BK: Tensor) -> Tensor:
    """psi(S) - psi(alpha) of a clip's own class `[B]`: the cross-entropy expected under the distribution."""
    total_B1 = alpha_BK.sum(axis=1, keepdims=True)
    return (target_BK * (ops.digamma(total_B1) - ops.digamma(alpha_BK))).sum(axis=1)


def squared_loss(alpha_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Squared error `[B]` of the probabilities, added up over the classes."""
    return ops.square(target_BK - alpha_BK / alpha_BK.sum(axis=1, keepdims=True)).sum(axis=1)


def variance(alpha_BK: Tensor) -> Tensor:
    """Variance `[B]` of the distribution, added up over the classes."""
    total_B1 = alpha_BK.sum(axis=1, keepdims=True)
    probability_BK = alpha_BK / total_B1
    return (probability_BK * (1.0 - probability_BK) / (total_B1 + 1.0)).sum(axis=1)


def wrong_evidence(alpha_BK: Tensor, target_BK: Tensor) -> Tensor:
    """How far `[B]` the evidence for all classes but a clip's own is from none: a `divergence_from_uniform`."""
    return divergence_from_uniform((alpha_BK - 1.0) * (1.0 - target_BK) + 1.0)


def divergence_from_uniform(alpha_BK: Tensor) -> Tensor:
    """Kullback-Leibler divergence `[B]` of Dirichlet distributions, alpha >= 1, from the one with all alphas 1.

    The closed form is ln G(S) - sum ln G(alpha) - ln G(K) + sum (alpha - 1)(psi(alpha) - psi(S)). Its terms grow like
    S ln S and cancel, so that at S = 10^6 float32 is off by ones; with h(a) = ln G(a) - (a - 1) psi(a) + a, which
    grows like ln a, it is h(S) - sum h(alpha) - ln G(K) + (K - 1) psi(S).
    """
    num_classes = alpha_BK.shape[1]
    total_B = alpha_BK.sum(axis=1)
    rest_B = (num_classes - 1) * ops.digamma(total_B) - math.lgamma(num_classes)
    return _slow_part(total_B) - _slow_part(alpha_BK).sum(axis=1) + rest_B


def _slow_part(alpha: Tensor) -> Tensor:
    """h(a) = ln G(a) - (a - 1) psi(a) + a for a >= 1; above 8 by its asymptotic series, to 2e-7."""
    near, inverse = ops.clamp(alpha, max=8.0), 1.0 / ops.clamp(alpha, min=8.0)
    direct = ops.lgamma(near) - (near - 1.0) * ops.digamma(near) + near
    tail = inverse * (1 / 3 + inverse * (1 / 12 + inverse * (1 / 90 - inverse / 120)))
    series = 0.5 * (1.0 + math.log(2 * math.pi) - ops.log(inverse)) - tail
    return ops.where(alpha < 8.0, direct, series)


def logarithm(x: Tensor) -> Tensor:
    """ln x for x > 0, by log1p: MindSpore's log rounds otherwise from call to call on a CPU."""
    is_small = x < 1.0
    value = ops.log1p(ops.where(is_small, 1.0 / x, x) - 1.0)
    return ops.where(is_small, -value, value)


def accuracy_against_uncertainty(
    alpha_BK: Tensor, classes_B: Tensor, annealing: Tensor | float, disentangled: bool
) -> Tensor:
    """DEAR's calibration `[B]` (EUC): right clips should be certain, wrong ones uncertain.

    With p the largest probability, a right clip pays `annealing` times -p ln(1 - u), a wrong one 1 - `annealing`
    times -(1 - p) ln u; disentangled, these are -ln(p (1 - u)) and -ln((1 - p) u).
    """
    total_B = alpha_BK.sum(axis=1)
    surest_B = alpha_BK.max(axis=1) / total_B
    vacuity_B = alpha_BK.shape[1] / total_B
    certainty_B = (alpha_BK - 1.0).sum(axis=1) / total_B  # 1 - u, without the loss of digits where u is nearly 1
    right_B = _agrees(alpha_BK, classes_B)
    if disentangled:
        certain_B = -logarithm(surest_B * certainty_B + _EPSILON)
        uncertain_B = -logarithm((1.0 - surest_B) * vacuity_B + _EPSILON)
    else:
        certain_B = -surest_B * logarithm(certainty_B + _EPSILON)
        uncertain_B = -(1.0 - surest_B) * logarithm(vacuity_B + _EPSILON)
    return annealing * right_B * certain_B + (1.0 - annealing) * (1.0 - right_B) * uncertain_B


def annealing_weight(schedule: str, epoch: float, num_epochs: float) -> float:
    """The weight lambda in [0, 1] in an epoch, counted from 0: "step" rises to 1 in ten epochs, "exp" from 0.01 to 1
    over all of them."""
    return min(1.0, epoch / 10) if schedule == "step" else 0.01 ** (1.0 - epoch / num_epochs)


class EvidenceParts(NamedTuple):
    """What a loss is made of, weighted as it is in the total, and what to log beside it.

    The first four, `[B]`, add up to the loss of each clip; a part that the loss does not have is 0. Further the
    vacuity `[B]`, and the mean total evidence of the clips that are classified right, and wrong; 0 without any.
    """

    fit: Tensor
    variance: Tensor
    divergence: Tensor
    calibration: Tensor
    vacuity: Tensor
    evidence_right: Tensor
    evidence_wrong: Tensor


class EvidenceLoss(nn.Cell):
    """Logits `[B, K]`, class numbers `[B]` and the weight lambda (`annealing_weight`) to the loss, a mean over clips.

    Give lambda as a scalar Tensor, or every new value is compiled anew.

    Args:
        kind: "log", "digamma", "mse" or "cross_entropy"; the last two pay for the variance, the last always for the
            divergence too, as DEAR's do.
        evidence: "relu", "exp" or "softplus" of the logits.
        kl: whether to pay lambda times the divergence of wrong evidence from none.
        avu: "none", "avu" or "davu" (disentangled): the calibration; for "log" and "digamma" alone.
        annealing: the schedule of lambda, "step" or "exp"; read by whoever computes it.
    """

    def __init__(
        self,
        *,
        kind: str = "log",
        evidence: str = "exp",
        kl: bool = False,
        avu: str = "none",
        annealing: str = "exp",
    ):
        super().__init__()
        _check("kind", kind, _FITS)
        _check("evidence", evidence, EVIDENCE)
        _check("avu", avu, AVU)
        _check("annealing", annealing, ANNEALING)
        self.has_variance = kind in ("mse", "cross_entropy")
        if self.has_variance and avu != "none":
            raise InputError(f"avu {avu!r} does not go with kind {kind!r} of an evidence loss; use log or digamma.")
        self.fit, self.to_evidence = _FITS[kind], EVIDENCE[evidence]
        self.has_divergence = kl or kind == "cross_entropy"
        self.avu, self.annealing = avu, annealing

    def parts(self, logits_BK: Tensor, classes_B: Tensor, annealing: Tensor | float) -> EvidenceParts:
        """The parts of the loss, to look at: not in compiled functions, which lose the gradients of named tuples."""
        evidence_BK = self.to_evidence(logits_BK)
        evidence_B, num_classes = evidence_BK.sum(axis=1), logits_BK.shape[1]
        # By the logits, unlike the calibration: beyond 10 they tell apart what the clipped evidence does not.
        right_B = _agrees(logits_BK, classes_B)
        return EvidenceParts(
            *self._terms(evidence_BK + 1.0, classes_B, annealing),
            vacuity=num_classes / (evidence_B + num_classes),
            evidence_right=_mean_where(evidence_B, right_B),
            evidence_wrong=_mean_where(evidence_B, 1.0 - right_B),
        )

    def construct(self, logits_BK: Tensor, classes_B: Tensor, annealing: Tensor | float) -> Tensor:
        alpha_BK = self.to_evidence(logits_BK) + 1.0
        fit_B, variance_B, divergence_B, calibration_B = self._terms(alpha_BK, classes_B, annealing)
        return (fit_B + variance_B + divergence_B + calibration_B).mean()

    def _terms(
        self, alpha_BK: Tensor, classes_B: Tensor, annealing: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What adds up to the loss of each clip, `[B]` each."""
        target_BK = one_hot(classes_B, alpha_BK.shape[1])
        fit_B = self.fit(alpha_BK, target_BK)
        variance_B = divergence_B = calibration_B = ops.zeros_like(fit_B)
        if self.has_variance:
            variance_B = variance(alpha_BK)
        if self.has_divergence:
            divergence_B = annealing * wrong_evidence(alpha_BK, target_BK)
        if self.avu != "none":
            calibration_B = accuracy_against_uncertainty(alpha_BK, classes_B, annealing, self.avu == "davu")
        return fit_B, variance_B, divergence_B, calibration_B


_FITS = {
    "log": likelihood_loss,
    "digamma": digamma_loss,
    "mse": squared_loss,
    "cross_entropy": likelihood_loss,
}


class Recipe(NamedTuple):
    """The settings of an `EvidenceLoss` with exponential evidence and annealing, and how debiasing goes with it."""

    kl: bool = False
    avu: str = "none"
    debias: str = "none"  # or "joint" or "alternating", see `losses/debias.py`


# By the names of DEAR's configs; "edlnokl_avuc_debias" is the model that the paper calls DEAR.
RECIPES = {
    "edlloss": Recipe(kl=True),
    "edlloss_avuc": Recipe(kl=True, avu="avu"),
    "edlnokl": Recipe(),
    "edlnokl_avuc": Recipe(avu="avu"),
    "edlnokl_avuc_debias": Recipe(avu="avu", debias="joint"),
    "edlnokl_avuc_ced": Recipe(avu="avu", debias="alternating"),
    "edlnokl_davuc_debias": Recipe(avu="davu", debias="joint"),
}


def _agrees(scores_BK: Tensor, classes_B: Tensor) -> Tensor:
    """1 where the highest score (the first of equal ones) is that of the clip's class, else 0, `[B]`."""
    return (scores_BK.argmax(axis=1) == classes_B).astype(ms.float32)


def _mean_where(x_B: Tensor, chosen_B: Tensor) -> Tensor:
    return (x_B * chosen_B).sum() / ops.clamp(chosen_B.sum(), min=1.0)


def _check(setting: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise InputError(f"{setting} {value!r} of an evidence loss is not one of {', '.join(allowed)}.")
