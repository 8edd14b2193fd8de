# SPDX-License-Identifier: Apache-2.0
"""MINDIR, the graphs of MindSpore, to ONNX: a rule for each primitive of our networks.

MindSpore's own exporter to ONNX knows no three-dimensional pooling nor the error function, and so none of the networks
of videos. A MINDIR graph is a list of nodes in the order of their computation, each of a primitive, with the shape and
type of what it gives; all shapes are fixed. Inputs that say how to compute (axes, kernels) are constants in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore.train import mind_ir_pb2
from onnx import ModelProto as OnnxModel
from onnx import NodeProto as OnnxNode
from onnx import helper, numpy_helper

from mindvideo.errors import InputError

OPSET = 18
IR_VERSION = 9  # what runtimes of 2023 read
_MIND_IR: Any = mind_ir_pb2  # its classes are made while it is imported; `Proto` are objects of these
Proto = Any

# The name of a tensor in the ONNX graph, a constant tensor, what is no tensor (numbers, None), or several of these.
Value = Any


@dataclass(frozen=True)
class Node:
    """A node of the MINDIR graph: its primitive's name and attributes, its inputs, and shape and type of its output (of
    several: the first one's)."""

    primitive: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Value]
    shape: tuple[int, ...]
    dtype: Any


class Writer:
    """The ONNX graph that comes into being."""

    def __init__(self) -> None:
        self.nodes: list[OnnxNode] = []
        self.weights: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def add(self, op: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node of ONNX; the name of its output, or of several the names. Inputs may be arrays."""
        name = f"{op}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        words = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        self.nodes.append(helper.make_node(op, words, names, name, **attributes))
        return name if outputs == 1 else tuple(names)

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant; equal ones are stored once."""
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.weights[name] = array
        return self._constants[key]

    def shape(self, value: Value) -> tuple[int, ...]:
        """Of a tensor among the inputs of a node."""
        return self.shapes[value] if isinstance(value, str) else value.shape


Rule = Callable[[Writer, Node], Value]


def translate(mindir: bytes, inputs: Sequence[str], outputs: Sequence[str], name: str) -> OnnxModel:
    """The ONNX model of a MINDIR file's content, with these names of inputs and outputs.

    InputError, with the model's `name`, for a primitive that has no rule.
    """
    proto = _MIND_IR.ModelProto.FromString(mindir)
    graph, primitives = proto.graph, {primitive.name: primitive for primitive in proto.primitives}
    if proto.functions:
        raise InputError(f"{name} cannot be an ONNX file: its graph calls functions.")
    writer, values = Writer(), {}
    for parameter in graph.parameter:
        values[parameter.name] = label = parameter.name.rsplit(":", 1)[-1]
        writer.weights[label] = _array(parameter)
        _remember(writer, label, parameter)
    given = []
    for label, value in zip(inputs, graph.input, strict=True):
        values[value.name] = label
        _remember(writer, label, value.tensor[0])
        given.append(helper.make_tensor_value_info(label, value.tensor[0].data_type, value.tensor[0].dims))
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = _value(_attribute(node, "value"))
            continue
        read = _read_node(node, primitives, values)
        if read.primitive not in RULES:
            raise InputError(f"{name} cannot be an ONNX file: there is no rule for {read.primitive} of MindSpore.")
        values[node.output[0]] = result = RULES[read.primitive](writer, read)
        for label, tensor in zip(_flat(result), _tensors(_attribute(node, "shape")), strict=False):
            if isinstance(label, str):
                _remember(writer, label, tensor)
    (output,) = graph.output  # a tuple is one
    return _model(writer, given, dict(zip(outputs, _flat(values[output.name]), strict=True)), name)


def _model(writer: Writer, given: list[Any], results: Mapping[str, str], name: str) -> OnnxModel:
    """The model of what the results need; they get their names by a last node each."""
    for label, value in results.items():
        writer.nodes.append(helper.make_node("Identity", [value], [label], label))
    needed, nodes = set(results), []
    for node in reversed(writer.nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    weights = [numpy_helper.from_array(w, label) for label, w in writer.weights.items() if label in needed]
    wanted = [
        helper.make_tensor_value_info(
            label, helper.np_dtype_to_tensor_dtype(np.dtype(writer.dtypes[value])), writer.shapes[value]
        )
        for label, value in results.items()
    ]
    graph = helper.make_graph(nodes[::-1], name, given, wanted, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="mindvideo"
    )


def _read_node(node: Proto, primitives: Mapping[str, Any], values: Mapping[str, Value]) -> Node:
    """A node whose primitive may be one with attributes, which stands elsewhere in the file."""
    primitive, attributes = node.op_type, {}
    if primitive.startswith("REF::"):
        found = primitives[primitive.removeprefix("REF::")]
        primitive, attributes = found.op_type, {a.name: _value(a) for a in found.attribute}
    first = next(iter(_tensors(_attribute(node, "shape"))), None)
    shape = tuple(first.dims) if first is not None else ()
    dtype = helper.tensor_dtype_to_np_dtype(first.data_type) if first is not None else None
    return Node(primitive, attributes, [values[name] for name in node.input], shape, dtype)


def _attribute(node: Proto, name: str) -> Proto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def _value(attribute: Proto) -> Value:
    """What an attribute holds: an array, a number, a text, a tuple, or None."""
    kind = _MIND_IR.AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("TUPLE", "LIST"):
        return tuple(_value(part) for part in attribute.values)
    if kind == "TENSORS":
        return _array(attribute.tensors[0])
    if kind in ("FLOAT", "DOUBLE", "STRING"):
        field = {"FLOAT": "f", "DOUBLE": "d", "STRING": "s"}[kind]
    elif kind == "BOOL" or "INT" in kind:
        field = "i"
    else:
        return None
    repeated = {"f": "floats", "d": "doubles", "s": "strings", "i": "ints"}[field]
    number = next(iter(getattr(attribute, repeated)), getattr(attribute, field))  # within tuples: the former
    if isinstance(number, bytes):
        return number.decode()
    return bool(number) if kind == "BOOL" else number


def _array(tensor: Proto) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))


def _tensors(attribute: Proto) -> list[Proto]:
    """Shape and type of each output of a node."""
    return [*attribute.tensors, *(tensor for part in attribute.values for tensor in _tensors(part))]


def _flat(value: Value) -> list[Value]:
    return list(value) if isinstance(value, tuple) else [value]


def _remember(writer: Writer, name: str, tensor: Proto) -> None:
    writer.dtypes[name] = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    writer.shapes[name] = tuple(tensor.dims)


def _operands(writer: Writer, node: Node) -> list[Value]:
    """Inputs of one type: numbers become tensors of the type that the first tensor among them has."""
    tensors = [x for x in node.inputs if isinstance(x, (str, np.ndarray))]
    dtype = writer.dtypes[tensors[0]] if isinstance(tensors[0], str) else tensors[0].dtype
    return [x if isinstance(x, (str, np.ndarray)) else np.array(x, dtype) for x in node.inputs]


def _same(op: str) -> Rule:
    """A primitive that ONNX has too."""
    return lambda writer, node: writer.add(op, *_operands(writer, node))


def _reshaped(writer: Writer, node: Node) -> Value:
    return writer.add("Reshape", node.inputs[0], np.array(node.shape, np.int64))


def _reduced(op: str) -> Rule:
    def rule(writer: Writer, node: Node) -> Value:
        x, axes, keeps = node.inputs[:3]
        axes = range(len(writer.shape(x))) if axes is None or axes == () else _flat(axes)
        return writer.add(op, x, np.array(axes, np.int64), keepdims=int(keeps))

    return rule


def _largest(writer: Writer, node: Node) -> Value:
    """Where along an axis the largest values are, and these."""
    x, axis, keeps = node.inputs
    places = writer.add("Cast", writer.add("ArgMax", x, axis=axis, keepdims=int(keeps)), to=_onnx_type(node.dtype))
    return places, writer.add("ReduceMax", x, np.array([axis], np.int64), keepdims=int(keeps))


def _convolution(writer: Writer, node: Node) -> Value:
    x, weight = node.inputs
    extents = writer.shape(weight)[2:]
    axes, attributes = len(extents), node.attributes
    mode = str(attributes["pad_mode"]).upper()
    pads: dict[str, Any] = {"auto_pad": {"SAME": "SAME_UPPER"}.get(mode, mode)}
    if mode == "PAD":
        around = attributes["pad_list"]  # before and after, axis by axis
        pads = {"pads": [*around[::2], *around[1::2]]}
    dilations = attributes.get("dilations", attributes.get("dilation"))
    return writer.add(
        "Conv", x, weight, kernel_shape=extents, strides=attributes["stride"][-axes:], dilations=dilations[-axes:],
        group=attributes["groups"], **pads,
    )  # fmt: skip


def _pooled(writer: Writer, node: Node) -> Value:
    """Pooling whose windows are attributes, or further inputs."""
    if node.primitive == "AvgPool":
        x, kernel, strides, mode = node.inputs[:4]
    else:
        (x,) = node.inputs
        kernel, strides, mode = (node.attributes[name] for name in ("kernel_size", "strides", "pad_mode"))
    op, names = "AveragePool" if node.primitive == "AvgPool" else "MaxPool", {1: "SAME", 2: "VALID"}
    padding = {"SAME": "SAME_UPPER", "VALID": "VALID"}[names.get(mode, str(mode).upper())]
    return writer.add(op, x, kernel_shape=kernel[-2:], strides=strides[-2:], auto_pad=padding)


def _pooled_3d(writer: Writer, node: Node) -> Value:
    attributes = node.attributes
    pads = attributes["pads"]
    pooled = writer.add(
        "MaxPool", node.inputs[0], kernel_shape=attributes["ksize"], strides=attributes["strides"],
        pads=[*pads, *pads], dilations=attributes["dilation"], ceil_mode=int(attributes["ceil_mode"]),
    )  # fmt: skip
    return pooled, None


def _batch_norm(writer: Writer, node: Node) -> Value:
    x, gamma, beta, mean, variance, _, epsilon = node.inputs[:7]
    return writer.add("BatchNormalization", x, gamma, beta, mean, variance, epsilon=epsilon), None


def _layer_norm(writer: Writer, node: Node) -> Value:
    x, gamma, beta, axis, _, epsilon = node.inputs
    return writer.add("LayerNormalization", x, gamma, beta, axis=axis, epsilon=epsilon), None


def _matrix_product(writer: Writer, node: Node) -> Value:
    """Of matrices, or of as many of them, either of which may have to be transposed."""
    *factors, first_transposed, second_transposed = node.inputs
    for place, transposed in enumerate((first_transposed, second_transposed)):
        if transposed:
            axes = list(range(len(writer.shape(factors[place]))))
            factors[place] = writer.add("Transpose", factors[place], perm=[*axes[:-2], axes[-1], axes[-2]])
    return writer.add("MatMul", *factors)


def _bias_added(writer: Writer, node: Node) -> Value:
    x, bias = node.inputs[:2]
    behind = len(writer.shape(x)) - 2
    if behind:
        bias = writer.add("Reshape", bias, np.array([-1] + [1] * behind, np.int64))
    return writer.add("Add", x, bias)


def _added_in_place(writer: Writer, node: Node) -> Value:
    x, y, factor = node.inputs[:3]
    return writer.add("Add", x, y if factor == 1 else writer.add("Mul", y, np.array(factor, node.dtype)))


def _floor_divided(writer: Writer, node: Node) -> Value:
    """ONNX divides whole numbers towards 0, but its remainder has the divisor's sign."""
    x, y = _operands(writer, node)
    return writer.add("Div", writer.add("Sub", x, writer.add("Mod", x, y)), y)


def _clamped(writer: Writer, node: Node) -> Value:
    x, low, high = node.inputs
    bounds = ["" if bound is None else np.array(bound, node.dtype) for bound in (low, high)]
    return writer.add("Clip", x, *bounds)


def _sliced(writer: Writer, x: Value, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Value:
    axes = range(len(starts))
    return writer.add("Slice", x, *(np.array(numbers, np.int64) for numbers in (starts, stops, axes, steps)))


def _cut(writer: Writer, node: Node) -> Value:
    x, starts, extents = node.inputs
    shape = writer.shape(x)
    stops = [start + (e if e >= 0 else n - start) for start, e, n in zip(starts, extents, shape, strict=True)]
    return _sliced(writer, x, starts, stops, [1] * len(starts))


def _strided(writer: Writer, node: Node) -> Value:
    """Bit i of a mask is on where the axis' start, or stop, does not count, or the axis is dropped."""
    x, starts, stops, steps, no_start, no_stop, ellipsis, new_axes, dropped = node.inputs
    if ellipsis or new_axes or min(steps) < 1:
        raise InputError("an ONNX file cannot have StridedSlice of MindSpore with an ellipsis or a new axis.")
    starts = [0 if no_start >> i & 1 else start for i, start in enumerate(starts)]
    most = np.iinfo(np.int64).max
    stops = [most if no_stop >> i & 1 else stop for i, stop in enumerate(stops)]
    # An axis that is dropped may have the stop 0 for a start of -1.
    stops = [(starts[i] + 1 or most) if dropped >> i & 1 else stop for i, stop in enumerate(stops)]
    found = _sliced(writer, x, starts, stops, steps)
    return writer.add("Reshape", found, np.array(node.shape, np.int64)) if dropped else found


def _reversed(writer: Writer, node: Node) -> Value:
    x, axes = node.inputs if len(node.inputs) == 2 else (node.inputs[0], node.attributes["axis"])
    axes = np.array(_flat(axes), np.int64)
    lowest = np.full(len(axes), np.iinfo(np.int64).min)
    return writer.add("Slice", x, np.full(len(axes), -1), lowest, axes, np.full(len(axes), -1))


def _stacked(writer: Writer, node: Node) -> Value:
    parts = _flat(node.inputs[0]) if len(node.inputs) == 1 else node.inputs
    axis = node.attributes["axis"]
    return writer.add("Concat", *(writer.add("Unsqueeze", x, np.array([axis])) for x in parts), axis=axis)


def _unstacked(writer: Writer, node: Node) -> Value:
    axis, count = node.attributes["axis"], node.attributes["num"]
    parts = writer.add("Split", node.inputs[0], outputs=count, axis=axis, num_outputs=count)
    return tuple(writer.add("Reshape", part, np.array(node.shape, np.int64)) for part in _flat(parts))


def _joined(writer: Writer, node: Node) -> Value:
    *parts, axis = node.inputs
    return writer.add("Concat", *(x for part in parts for x in _flat(part)), axis=axis)


def _padded(writer: Writer, node: Node) -> Value:
    before, after = zip(*node.attributes["paddings"], strict=True)
    return writer.add("Pad", node.inputs[0], np.array([*before, *after], np.int64))


def _softmax(writer: Writer, node: Node) -> Value:
    (axis,) = _flat(node.inputs[1])
    return writer.add("Softmax", node.inputs[0], axis=axis)


def _gelu_by_tanh(writer: Writer, node: Node) -> Value:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    (x,), number = node.inputs, node.dtype.type
    cube = writer.add("Mul", writer.add("Mul", x, x), x)
    inner = writer.add("Add", x, writer.add("Mul", cube, number(0.044715)))
    wave = writer.add("Tanh", writer.add("Mul", inner, number(math.sqrt(2 / math.pi))))
    return writer.add("Mul", writer.add("Mul", x, number(0.5)), writer.add("Add", wave, number(1.0)))


def _expm1(writer: Writer, node: Node) -> Value:
    return writer.add("Sub", writer.add("Exp", node.inputs[0]), node.dtype.type(1.0))


def _onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


RULES: dict[str, Rule] = {
    **{name: _same(name) for name in ("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal", "Neg", "Abs", "Floor")},
    **{name: _same(name) for name in ("Sqrt", "Log", "Sin", "Sigmoid", "Erf", "Softplus")},
    "Muls": _same("Mul"), "ReLU": _same("Relu"), "GreaterEqual": _same("GreaterOrEqual"), "LogicalAnd": _same("And"),
    "MatMulExt": _same("MatMul"), "FloorDiv": _floor_divided, "Expm1": _expm1, "GeLU": _gelu_by_tanh,
    "Square": lambda writer, node: writer.add("Mul", node.inputs[0], node.inputs[0]),
    "Select": lambda writer, node: writer.add("Where", *node.inputs), "ClampScalar": _clamped, "Softmax": _softmax,
    "Cast": lambda writer, node: writer.add("Cast", node.inputs[0], to=_onnx_type(node.dtype)),
    "Reshape": _reshaped, "ExpandDims": _reshaped, "Squeeze": _reshaped, "FlattenExt": _reshaped,
    "Transpose": lambda writer, node: writer.add("Transpose", node.inputs[0], perm=node.inputs[1]),
    "BroadcastTo": lambda writer, node: writer.add("Expand", node.inputs[0], np.array(node.shape, np.int64)),
    "Tile": lambda writer, node: writer.add("Tile", node.inputs[0], np.array(node.inputs[1], np.int64)),
    "Gather": lambda writer, node: writer.add("Gather", *node.inputs[:2], axis=int(node.inputs[2])),
    "Concat": _joined, "Stack": _stacked, "Unstack": _unstacked, "Slice": _cut, "StridedSlice": _strided,
    "ReverseV2": _reversed, "Pad": _padded,
    "ReduceMean": _reduced("ReduceMean"), "ReduceMax": _reduced("ReduceMax"), "SumExt": _reduced("ReduceSum"),
    "ArgMaxWithValue": _largest, "Conv2D": _convolution, "Conv3D": _convolution, "MaxPool": _pooled,
    "AvgPool": _pooled, "MaxPool3DWithArgmax": _pooled_3d, "BatchNorm": _batch_norm, "LayerNorm": _layer_norm,
    "MatMul": _matrix_product, "BatchMatMul": _matrix_product, "BiasAdd": _bias_added, "InplaceAddExt": _added_in_place,
    # Tuples, and the order in which things happen, which ONNX has none of.
    "MakeTuple": lambda writer, node: tuple(node.inputs), "make_list": lambda writer, node: tuple(node.inputs),
    "TupleGetItem": lambda writer, node: node.inputs[0][node.inputs[1]],
    "Load": lambda writer, node: node.inputs[0], "Depend": lambda writer, node: node.inputs[0],
    "UpdateState": lambda writer, node: None,
}  # fmt: skip
