# SPDX-License-Identifier: Apache-2.0
"""The two errors that mean "the input is wrong", as opposed to "the program is wrong".

The command line shows their message as one line, without a traceback, and exits with status 2. Every
message names the value, the place it came from and what is allowed.
"""


class InputError(ValueError):
    """A mistake in what the user gave: a config key, a path, a data set, a checkpoint."""


class VideoError(InputError):
    """A video that cannot be decoded as asked: missing, empty, truncated, corrupt or too short."""
