# SPDX-License-Identifier: Apache-2.0
"""Attacks on classifiers of images and clips in [0, 1]: numpy over a small protocol, for every network alike.

    target.py      what an attack sees: Target, Network (a MindSpore cell), Averaged (EOT), Split (BPDA), losses
    norms.py       balls in L-infinity, L2, L1: projections, steepest steps, random points
    gradient.py    FGSM, PGD, MIM; N-FGSM and TRADES for training
    apgd.py        APGD-CE, APGD-DLR, APGD-T
    carlini.py     Carlini & Wagner in L2
    square.py      the square attack, without gradients
    noise.py       the control
    inputs.py      what is asked of samples, and when a prediction is broken

A randomised classifier is judged anew on what an attack returns, as some of it was broken by a lucky draw alone.

An honest evaluation attacks with the strongest target that there is (for a defence that hides its gradient or draws at
random: `Split`, `Averaged`), without gradients too, and by transfer; metrics/robustness.py compares what comes out.
"""

from mindvideo.attacks.apgd import apgd, apgd_targeted
from mindvideo.attacks.carlini import carlini_wagner
from mindvideo.attacks.gradient import fgsm, mim, n_fgsm, pgd, trades
from mindvideo.attacks.inputs import is_broken, margins
from mindvideo.attacks.noise import sign_noise, uniform_noise
from mindvideo.attacks.norms import NORMS, Norm
from mindvideo.attacks.square import square
from mindvideo.attacks.target import LOSSES, Averaged, Network, Split, Target

__all__ = [
    "LOSSES", "NORMS", "Averaged", "Network", "Norm", "Split", "Target", "apgd", "apgd_targeted", "carlini_wagner",
    "fgsm", "is_broken", "margins", "mim", "n_fgsm", "pgd", "sign_noise", "square", "trades", "uniform_noise",
]  # fmt: skip
