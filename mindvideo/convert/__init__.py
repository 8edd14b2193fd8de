# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other programs into ours: `families.py` knows the names, `files.py` reads, matches and writes."""
