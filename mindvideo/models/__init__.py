# SPDX-License-Identifier: Apache-2.0
"""Networks: one paper, one file. `create_model(name, **options)` builds one; `list_models()` names them all."""

from mindvideo.models import actionnet as _actionnet  # noqa: F401  (importing a file registers its models)
from mindvideo.models import arn as _arn  # noqa: F401
from mindvideo.models import c3d as _c3d  # noqa: F401
from mindvideo.models import convnext as _convnext  # noqa: F401
from mindvideo.models import csn as _csn  # noqa: F401
from mindvideo.models import i3d as _i3d  # noqa: F401
from mindvideo.models import imagenet as _imagenet  # noqa: F401
from mindvideo.models import slowfast as _slowfast  # noqa: F401
from mindvideo.models import tpn as _tpn  # noqa: F401
from mindvideo.models import tsm as _tsm  # noqa: F401
from mindvideo.models import two_stream as _two_stream  # noqa: F401
from mindvideo.models.registry import create_model, describe, list_models, options_of

__all__ = ["create_model", "describe", "list_models", "options_of"]
