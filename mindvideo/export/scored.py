# SPDX-License-Identifier: Apache-2.0
"""What is exported: networks with what makes scores of their outputs, as `predict` and reports have them.

B clips, poses or images, K classes; P draws of a random network, S vectors of C features a clip; N classes of an
episode and M queries.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.heads import BayesianHead
from mindvideo.losses.evidential import EVIDENCE
from mindvideo.models.actionnet import ActionNet
from mindvideo.models.arn import ARN
from mindvideo.models.recognizer import Recognizer
from mindvideo.models.robust import Defended


class ScoredPoses(nn.Cell):
    """Logits `[B, K]`, their softmax, and 1 less the largest probability `[B]`."""

    def __init__(self, network: ActionNet):
        super().__init__(auto_prefix=False)  # the network's parameters keep their names
        self.network = network

    def construct(self, poses_BTJC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _softmax_scores(self.network(poses_BTJC, lengths_B))


class ScoredImages(nn.Cell):
    """The same of images. A graph has no random numbers: where the defence pads at random, its draws are inputs."""

    def __init__(self, model: Defended):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(
        self,
        images_BCHW: Tensor,
        sides_B: Tensor | None = None,
        lefts_B: Tensor | None = None,
        tops_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.model.padding is None:
            return _softmax_scores(self.model(images_BCHW))
        if self.model.concealment is not None:
            images_BCHW = self.model.concealment(images_BCHW)
        return _softmax_scores(self.model.network(self.model.padding.place(images_BCHW, sides_B, lefts_B, tops_B)))


class EvidentialClips(nn.Cell):
    """Logits, probabilities and evidence `[B, K]`, and the vacuity `[B]`, of clips.

    The probabilities are those that the evidence leads one to expect, or the logits' softmax if the config asks for it.
    """

    def __init__(self, network: Recognizer, evidence: str, *, softmax: bool):
        super().__init__(auto_prefix=False)
        self.network, self.to_evidence, self.takes_softmax = network, EVIDENCE[evidence], softmax

    def construct(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits_BK = self.network(clips_BCTHW)
        evidence_BK = self.to_evidence(logits_BK)
        total_B1 = evidence_BK.sum(axis=1, keepdims=True) + float(logits_BK.shape[1])
        probabilities_BK = ops.softmax(logits_BK, axis=1) if self.takes_softmax else (evidence_BK + 1.0) / total_B1
        return logits_BK, probabilities_BK, evidence_BK, (logits_BK.shape[1] / total_B1).squeeze(1)


class ScoredClips(nn.Cell):
    """Logits `[B, K]`, mean probabilities of random passes, and the passes' mutual information `[B]`, or where there
    are none their softmax and 1 less the largest probability.

    All randomness is drawn now, and is part of the graph: of the weights of a Bayesian head, or which of the vectors'
    values dropout takes. It is that of the first batch in a test. `clips` is the shape of what comes in.
    """

    def __init__(self, network: Recognizer, draws: int, clips: tuple[int, ...]):
        super().__init__(auto_prefix=False)
        self.network, self.draws, head = network, draws, network.head
        self.mean_noise, self.noise, self.masks = None, None, None
        seeds = [Tensor(seed) for seed in np.random.default_rng(0).integers(2**32, size=draws, dtype=np.uint32)]
        if isinstance(head, BayesianHead):
            size = (1, head.weight_mu.shape[0], head.weight_mu.shape[1] + 1)
            # The head averages over its own draws, and the mean of linear functions is the function of the mean.
            own = head.normal(head.test_seed, (head.draws, *size[1:]))
            self.mean_noise = Tensor((own.asnumpy().sum(axis=0, keepdims=True) / (head.draws + 1)).astype(np.float32))
            if draws:
                self.noise = Tensor(np.concatenate([head.normal(seed, size).asnumpy() for seed in seeds]))
        elif draws:
            vectors_BSC, _ = network.backbone(ops.zeros(clips, ms.float32))
            ones = ops.ones_like(vectors_BSC)
            self.masks = Tensor(np.stack([head.dropout(ones, seed).asnumpy() for seed in seeds]))

    def construct(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors_BSC, _ = self.network.backbone(clips_BCTHW)
        if self.mean_noise is None:
            logits_BK = self.network.head(vectors_BSC)
        else:
            logits_BK = self.network.head.logits_of(vectors_BSC, self.mean_noise).squeeze(0)
        if self.draws == 0:
            return _softmax_scores(logits_BK)
        if self.noise is not None:
            drawn_PBK = self.network.head.logits_of(vectors_BSC, self.noise)
        else:
            masked = (vectors_BSC.expand_dims(0) * self.masks).flatten(0, 1)
            drawn_PBK = self.network.head(masked).reshape((self.draws, *logits_BK.shape))
        probabilities_PBK = ops.softmax(drawn_PBK, axis=2)
        mean_BK = probabilities_PBK.mean(axis=0)
        return logits_BK, mean_BK, ops.relu(_entropy(mean_BK) - _entropy(probabilities_PBK).mean(axis=0))


class ScoredEpisode(nn.Cell):
    """The comparator's outputs `[M, N]`, the scores `[M, N]` and the knownness `[M]` of queries among examples."""

    def __init__(self, network: ARN):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, support_NKCTHW: Tensor, query_MCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        support_NK, query_M = self.network.encode_episode(support_NKCTHW, query_MCTHW)
        outputs_MN = self.network.relate(support_NK, query_M)
        return outputs_MN, self.network.scores(outputs_MN), self.network.knownness(outputs_MN)


def _softmax_scores(logits_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    probabilities_BK = ops.softmax(logits_BK, axis=1)
    return logits_BK, probabilities_BK, 1.0 - probabilities_BK.max(axis=1)


def _entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last axis; 0 ln 0 = 0."""
    return -(probabilities * ops.log(ops.clamp(probabilities, min=1e-30))).sum(axis=-1)
