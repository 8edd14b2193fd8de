# SPDX-License-Identifier: Apache-2.0
"""The six networks of the robust-classification system's attack table, from MindCV.

Images `[B, 3, H, W]` in [0, 1] to logits `[B, K]`; ImageNet's mean and deviation are taken off inside, so that what
attacks a network sees pixels. MindCV is imported where one of them is made.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindvideo.models.layers import Normalize
from mindvideo.models.registry import register


class ImageNetClassifier(nn.Cell):
    """A MindCV network behind normalisation. Its dropout is MindSpore's and knows no seed."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)  # MindCV's checkpoints fit
        self.network, self.normalize = network, Normalize()

    def construct(self, images_BCHW: Tensor, seed: Tensor | None = None) -> Tensor:
        return self.network(self.normalize(images_BCHW))


@register
def resnet50(num_classes: int = 1000) -> ImageNetClassifier:
    """ResNet-50 (He et al., CVPR 2016)."""
    from mindcv.models import resnet50 as make

    return ImageNetClassifier(make(num_classes=num_classes))


@register
def wide_resnet50_2(num_classes: int = 1000) -> ImageNetClassifier:
    """Wide ResNet-50-2 (Zagoruyko and Komodakis, BMVC 2016): ResNet-50 with bottlenecks of twice the width."""
    from mindcv.models.resnet import Bottleneck, ResNet

    return ImageNetClassifier(ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, base_width=128))


@register
def densenet121(num_classes: int = 1000) -> ImageNetClassifier:
    """DenseNet-121 (Huang et al., CVPR 2017)."""
    from mindcv.models import densenet121 as make

    return ImageNetClassifier(make(num_classes=num_classes))


@register
def efficientnet_b4(num_classes: int = 1000) -> ImageNetClassifier:
    """EfficientNet-B4 (Tan and Le, ICML 2019)."""
    from mindcv.models import efficientnet_b4 as make

    return ImageNetClassifier(make(num_classes=num_classes))


@register
def vit_b_16(num_classes: int = 1000) -> ImageNetClassifier:
    """ViT-B/16 of 224 x 224 pixels (Dosovitskiy et al., ICLR 2021)."""
    from mindcv.models import vit_b_16_224 as make

    return ImageNetClassifier(make(num_classes=num_classes))


@register
def swin_small(num_classes: int = 1000) -> ImageNetClassifier:
    """Swin-S of 224 x 224 pixels (Liu et al., ICCV 2021)."""
    from mindcv.models.swintransformer import SwinTransformer

    network = SwinTransformer(
        image_size=224, patch_size=4, num_classes=num_classes, embed_dim=96, depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24], window_size=7, drop_path_rate=0.3,
    )  # fmt: skip
    return ImageNetClassifier(network)
