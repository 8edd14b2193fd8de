# SPDX-License-Identifier: Apache-2.0
"""From files to batches.

video.py opens and decodes, sampling.py says which frames, crops.py where, transforms.py makes the clip; manifest.py,
datasets.py, annotations.py, splits.py and episodes.py say which videos; loader.py joins them through mindspore.dataset.
stickfigures.py films the sample. pose.py reads joint rotations, pose_sets.py says which and in which folds.
"""
