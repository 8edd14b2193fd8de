# SPDX-License-Identifier: Apache-2.0
"""How unsure a classifier is of a video. Every score is larger for what is less known.

N videos, P random draws of a network, K known classes. Probabilities sum to 1 over the classes; alpha are the
parameters of a Dirichlet distribution over them, 1 + the evidence for each class.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, logsumexp, xlogy


def entropy(probabilities_NK: np.ndarray) -> np.ndarray:
    """-sum_k p_k ln p_k over the last axis, in nats: 0 to ln K."""
    probabilities = np.asarray(probabilities_NK, np.float64)
    return -xlogy(probabilities, probabilities).sum(axis=-1)


def mutual_information(probabilities_NPK: np.ndarray) -> np.ndarray:
    """How much a draw of the network tells of the class, `[N]`, 0 to ln P: the entropy of the mean probabilities minus
    the mean of the entropies (Houlsby et al. 2011, "BALD")."""
    probabilities = np.asarray(probabilities_NPK, np.float64)
    return np.maximum(entropy(probabilities.mean(axis=1)) - entropy(probabilities).mean(axis=1), 0.0)


def dirichlet_mutual_information(alpha_NK: np.ndarray) -> np.ndarray:
    """The same, `[N]`, where the probabilities are drawn from Dir(alpha), in closed form (Malinin & Gales 2018)."""
    alpha = np.asarray(alpha_NK, np.float64)
    total = alpha.sum(axis=1, keepdims=True)
    mean = alpha / total
    expected_entropy = (mean * (digamma(total + 1) - digamma(alpha + 1))).sum(axis=1)
    return np.maximum(entropy(mean) - expected_entropy, 0.0)


def vacuity(alpha_NK: np.ndarray) -> np.ndarray:
    """K / sum_k alpha_k, `[N]`: 1 without evidence, towards 0 with much, of whichever class (Sensoy et al. 2018)."""
    alpha = np.asarray(alpha_NK, np.float64)
    return alpha.shape[1] / alpha.sum(axis=1)


def uncertainties(
    logits_NK: np.ndarray,
    probabilities_NK: np.ndarray,
    *,
    alpha_NK: np.ndarray | None = None,
    mutual_information_N: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every score that a method has, float64 `[N]`, by name.

    Evidential methods give `alpha_NK`, and have "vacuity", "total_evidence" (minus it; it ranks as vacuity does) and
    the mutual information of their Dirichlet; networks with random draws give `mutual_information_N`.
    "max_probability" is 1 - max p, "max_logit" -max z, and "energy" -ln sum exp z (Liu et al. 2020).
    """
    logits, probabilities = np.asarray(logits_NK, np.float64), np.asarray(probabilities_NK, np.float64)
    scores = {} if alpha_NK is None else {"vacuity": vacuity(alpha_NK)}
    scores |= {"max_probability": 1 - probabilities.max(axis=1), "entropy": entropy(probabilities)}
    if alpha_NK is not None:
        scores["mutual_information"] = dirichlet_mutual_information(alpha_NK)
        scores["total_evidence"] = -(np.asarray(alpha_NK, np.float64) - 1).sum(axis=1)
    elif mutual_information_N is not None:
        scores["mutual_information"] = np.asarray(mutual_information_N, np.float64)
    return scores | {"max_logit": -logits.max(axis=1), "energy": -logsumexp(logits, axis=1)}
