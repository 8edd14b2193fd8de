# SPDX-License-Identifier: Apache-2.0
"""Numbers from scores: numpy in, numbers out."""
