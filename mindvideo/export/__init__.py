# SPDX-License-Identifier: Apache-2.0
"""Trained networks for other programs.

modelarts.py    a model package of Huawei Cloud's ModelArts
network.py      the network of a checkpoint;  scored.py  with what makes scores of its outputs
interface.py    inputs and outputs by task
graph.py        MINDIR and ONNX files, compared with the network;  onnx_graph.py  MINDIR to ONNX
"""

from mindvideo.export.graph import check_destination, export_graph
from mindvideo.export.modelarts import export_modelarts
from mindvideo.export.network import Trained, load_trained

__all__ = ["Trained", "check_destination", "export_graph", "export_modelarts", "load_trained"]
