# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other programs into ours and ours into theirs: `families.py` knows the names, `sources.py` reads,
`files.py` matches and writes, `torch_file.py` reads and writes PyTorch's own files."""
