# SPDX-License-Identifier: Apache-2.0
"""Each task joins data, model, loss, metric and report; nothing else does."""
