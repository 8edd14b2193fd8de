# SPDX-License-Identifier: Apache-2.0
"""`python -m mindvideo` is `mindvideo`."""

import sys

from mindvideo.cli import main

sys.exit(main())
