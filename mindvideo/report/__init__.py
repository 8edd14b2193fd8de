# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for people to look at: figures as PNG or GIF bytes, and one self-contained HTML page.

Everything takes plain numpy and Python values and knows nothing of models or tasks.
"""

from mindvideo.report.figures import bars, confusion, curves, episode_gif
from mindvideo.report.page import Figure, Figures, Preformatted, Section, Table, Text, write_page

__all__ = [
    "Figure",
    "Figures",
    "Preformatted",
    "Section",
    "Table",
    "Text",
    "bars",
    "confusion",
    "curves",
    "episode_gif",
    "write_page",
]
