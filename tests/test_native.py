# SPDX-License-Identifier: Apache-2.0
"""The native operators against brute force in float64, and against MindSpore's own operators."""

import itertools
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mindspore import Tensor, ops
from scipy import special

from mindvideo import native
from mindvideo.native import build

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native operators: {native.reason()}")
if native.available():
    from mindvideo.native import operators as nat
    from mindvideo.native import tokens

sweep = settings(max_examples=25, deadline=None, derandomize=True)

# --- running a cell both ways -----------------------------------------------------------------------------


def first(out):
    return out[0] if isinstance(out, tuple) else out


def both_modes(cell, *inputs):
    """Output and gradients of sum(output * r), and r; PyNative, graph and a second run agree to the bit."""
    tensors = [Tensor(i.astype(np.float32)) for i in inputs]
    alone = first(cell(*tensors))
    r = Tensor(np.random.default_rng(1).standard_normal(alone.shape).astype(np.float32))

    def loss(*args):
        output = first(cell(*args))
        return (output * r).sum(), output

    value_and_grad = ms.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)

    def both(*args):
        return value_and_grad(*args)

    def run(f):
        (_, output), grads = f(*tensors)
        return [a.asnumpy() for a in (output, *(grads if isinstance(grads, tuple) else (grads,)))]

    compiled = ms.jit(both)
    pynative, graph, again = run(both), run(compiled), run(compiled)
    assert np.array_equal(alone.asnumpy(), pynative[0])
    for a, b, c in zip(pynative, graph, again, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(b, c)
    return pynative, r.asnumpy().astype(np.float64)


def assert_close(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def last(array):
    return np.moveaxis(array, 1, -1)


def first_again(array):
    """Channels first, as the oracles have them."""
    return np.moveaxis(array, -1, 1)


# --- float64 oracles, channels first ----------------------------------------------------------------------


def window_slices(extents_out, kernel, stride, dilation):
    """For each offset in the kernel, the offset and the slices of the padded input that meet it."""
    for offset in itertools.product(*map(range, kernel)):
        yield (
            offset,
            tuple(
                slice(o * d, o * d + s * (e - 1) + 1, s)
                for o, d, s, e in zip(offset, dilation, stride, extents_out, strict=True)
            ),
        )


def padded(x, padding, value=0.0):
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=value)


def unpadded(x, padding):
    return x[(..., *(slice(p, -p or None) for p in padding))]


def slid(extents, kernel, stride, padding, dilation):
    zipped = zip(extents, kernel, stride, padding, dilation, strict=True)
    return [(e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, p, d in zipped]


def conv_oracle(x, w, b, r, stride, padding, dilation, groups):
    """Output and gradients of x, w and b."""
    n, o = x.shape[0], w.shape[0]
    out = slid(x.shape[2:], w.shape[2:], stride, padding, dilation)
    xp = padded(x, padding)
    dxp, dw, y = np.zeros_like(xp), np.zeros_like(w), np.zeros((n, groups, o // groups, *out))
    wg = w.reshape(groups, o // groups, *w.shape[1:])
    dy = r.reshape(y.shape)
    for offset, where in window_slices(out, w.shape[2:], stride, dilation):
        at = (slice(None), slice(None), *where)
        seen = xp[at].reshape(n, groups, -1, *out)
        tap = wg[(..., *offset)]
        y += np.einsum("ngc...,goc->ngo...", seen, tap)
        dxp[at] += np.einsum("ngo...,goc->ngc...", dy, tap).reshape(n, -1, *out)
        dw[(..., *offset)] = np.einsum(
            "ngox,ngcx->goc", dy.reshape(*y.shape[:3], -1), seen.reshape(*seen.shape[:3], -1)
        ).reshape(o, -1)
    axes = (0, *range(2, r.ndim))
    return y.reshape(r.shape) + b.reshape(-1, *[1] * len(out)), unpadded(dxp, padding), dw, r.sum(axes)


def wide(vector, like):
    """A vector of channels, to be broadcast over a tensor."""
    return vector.reshape(1, -1, *[1] * (like.ndim - 2))


def batch_norm_oracle(x, scale, shift, r, relu, epsilon, statistics=None, residual=None):
    """Output and gradients of x, scale, shift and residual."""
    axes = (0, *range(2, x.ndim))
    mean, var = statistics or (x.mean(axes), x.var(axes))
    inv = 1 / np.sqrt(var + epsilon)
    xhat = (x - wide(mean, x)) * wide(inv, x)
    y = xhat * wide(scale, x) + wide(shift, x) + (0.0 if residual is None else residual)
    dy = r * (y > 0) if relu else r
    dscale, dshift = (dy * xhat).sum(axes), dy.sum(axes)
    count = x.size / x.shape[1]
    pull = 0.0 if statistics else (wide(dshift, x) + xhat * wide(dscale, x)) / count
    return np.maximum(y, 0) if relu else y, wide(scale * inv, x) * (dy - pull), dscale, dshift, dy


def max_pool_oracle(x, r, kernel, stride, padding):
    out, ones = r.shape[2:], [1] * len(kernel)
    xp = padded(x, padding, -np.inf)
    taps = [(slice(None), slice(None), *where) for _, where in window_slices(out, kernel, stride, ones)]
    stack = np.stack([xp[at] for at in taps])
    dxp = np.zeros_like(xp)
    for i, at in enumerate(taps):
        dxp[at] += r * (stack.argmax(0) == i)
    return stack.max(0), unpadded(dxp, padding)


def avg_pool_oracle(x, r, kernel, stride, padding, include):
    out, ones = r.shape[2:], [1] * len(kernel)
    xp, inside = padded(x, padding), padded(np.ones_like(x), padding)
    taps = [(slice(None), slice(None), *where) for _, where in window_slices(out, kernel, stride, ones)]
    count = np.prod(kernel) if include else sum(inside[at] for at in taps)
    dxp = np.zeros_like(xp)
    for at in taps:
        dxp[at] += r / count
    return sum(xp[at] for at in taps) / count, unpadded(dxp, padding)


# --- the sweeps -------------------------------------------------------------------------------------------


@st.composite
def windows(draw, max_dilation=1, max_padding=2):
    """extents, kernel, stride, padding, dilation of a window that fits."""
    n = draw(st.sampled_from([2, 3]))

    def numbers(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    extents, kernel, stride = numbers(1, 11), numbers(1, 4), numbers(1, 3)
    dilation = numbers(1, max_dilation)
    padding = tuple(min(p, k // 2) for p, k in zip(numbers(0, max_padding), kernel, strict=True))
    assume(min(slid(extents, kernel, stride, padding, dilation)) >= 1)
    return extents, kernel, stride, padding, dilation


batches = st.integers(1, 3)
channels = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32])


def plain_convolution(w, stride, padding, dilation, groups):
    """MindSpore's own, channels first; it knows neither groups nor dilation over three extents on a CPU."""
    pads = tuple(p for p in padding for _ in range(2))
    conv = ops.Conv3D if len(stride) == 3 else ops.Conv2D
    return conv(w.shape[0], w.shape[2:], pad_mode="pad", pad=pads, stride=stride, dilation=dilation, group=groups)


@sweep
@given(windows(max_dilation=3), batches, channels, channels, st.sampled_from([1, 1, 2, 4]), st.booleans())
def test_convolution(window, batch, c_in, c_out, groups, biased):
    extents, kernel, stride, padding, dilation = window
    c_in, c_out = c_in * groups, c_out * groups
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((batch, c_in, *extents)), rng.standard_normal(c_out) * biased
    w = rng.standard_normal((c_out, c_in // groups, *kernel))
    cell = (nat.BiasedConvolution if biased else nat.Convolution)(stride, padding, dilation, groups=groups)
    (y, dx, *rest), r = both_modes(cell, last(x), w, *([b] if biased else []))
    got = [first_again(y), first_again(dx), *rest]
    assert_close(got, conv_oracle(x, w, b, first_again(r), stride, padding, dilation, groups)[: 3 + biased])
    if len(extents) == 2 or (groups == 1 and max(dilation) == 1):
        plain = plain_convolution(w, stride, padding, dilation, groups)
        y, dx, dw = plain_results(plain, first_again(r), x, w)
        assert_close(got[:3], [y + wide(b, y), dx, dw])


def plain_results(plain, r, *inputs):
    """Output and gradients of sum(output * r) of an operator of MindSpore."""
    tensors = [Tensor(i.astype(np.float32)) for i in inputs]
    r = Tensor(r.astype(np.float32))

    def loss(*args):
        output = plain(*args)
        return (output * r).sum(), output

    (_, output), grads = ms.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)(*tensors)
    return [a.asnumpy() for a in (output, *(grads if isinstance(grads, tuple) else (grads,)))]


@sweep
@given(windows(max_dilation=2), batches, channels, channels, st.sampled_from([1, 1, 2]), st.booleans(), st.booleans())
def test_folded_convolution(window, batch, c_in, c_out, groups, relu, has_residual):
    extents, kernel, stride, padding, dilation = window
    c_in, c_out = c_in * groups, c_out * groups
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((batch, c_in, *extents)), rng.standard_normal((c_out, c_in // groups, *kernel))
    scale, shift = rng.standard_normal((2, c_out))
    out = (batch, c_out, *slid(extents, kernel, stride, padding, dilation))
    residual = rng.standard_normal(out) * has_residual
    kind = nat.FoldedResidual if has_residual else nat.FoldedConvolution
    cell = kind(stride, padding, dilation, groups=groups, relu=relu)
    got, r = both_modes(cell, last(x), w, scale, shift, *([last(residual)] if has_residual else []))
    window = stride, padding, dilation, groups
    convolved = conv_oracle(x, w, np.zeros(c_out), np.zeros(out), *window)[0]
    y = convolved * wide(scale, x) + wide(shift, x) + residual
    dy = first_again(r) * (y > 0) if relu else first_again(r)
    _, dx, dw, _ = conv_oracle(x, w, np.zeros(c_out), dy * wide(scale, x), *window)
    axes = (0, *range(2, x.ndim))
    want = [np.maximum(y, 0) if relu else y, dx, dw, (dy * convolved).sum(axes), dy.sum(axes), dy]
    got = [first_again(a) if a.ndim == x.ndim and i != 2 else a for i, a in enumerate(got)]
    assert_close(got, want[: len(got)])


@sweep
@given(
    batches,
    channels,
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.booleans(),
    st.sampled_from(["batch", "residual", "frozen"]),
)
def test_batch_norm(batch, c, extents, relu, kind):
    assume(batch * np.prod(extents) >= 8)  # fewer values make the gradient of x a difference of nearly equal numbers
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, batch, c, *extents)).astype(np.float32).astype(np.float64) * 2 + 1
    scale, shift, mean, var = rng.standard_normal((4, c)).astype(np.float32).astype(np.float64)
    statistics = [mean, var**2] if kind == "frozen" else []
    residual = residual if kind == "residual" else None
    cells = {"batch": nat.BatchNorm, "residual": nat.ResidualBatchNorm, "frozen": nat.FrozenBatchNorm}
    cell = cells[kind](1e-3, relu=relu)
    inputs = [last(x), scale, shift, *statistics, *([last(residual)] if kind == "residual" else [])]
    got, r = both_modes(cell, *inputs)
    got = [first_again(a) if a.ndim == x.ndim else a for a in got]
    want = batch_norm_oracle(x, scale, shift, first_again(r), relu, 1e-3, statistics, residual)
    assert_close(got[:5] if kind == "residual" else got[:4], want[: 5 if kind == "residual" else 4])
    if kind != "frozen":
        _, mean, var = cell(*(Tensor(a.astype(np.float32)) for a in inputs))
        axes = (0, *range(2, x.ndim))
        assert_close([mean.asnumpy(), var.asnumpy()], [x.mean(axes), x.var(axes)])
        assert_close(plain_batch_norm(x, scale, shift, first_again(r), relu, residual), want[:4])


def plain_batch_norm(x, scale, shift, r, relu, residual):
    mean, var = Tensor(np.zeros(len(scale)), ms.float32), Tensor(np.ones(len(scale)), ms.float32)
    norm = ops.BatchNorm(is_training=True, epsilon=1e-3)
    extra = Tensor(np.float32(0.0) if residual is None else residual.astype(np.float32))

    def plain(x, scale, shift):  # it takes four dimensions
        y = norm(x.reshape((*x.shape[:2], -1, x.shape[-1])), scale, shift, mean, var)[0].reshape(x.shape) + extra
        return ops.relu(y) if relu else y

    return plain_results(plain, r, x, scale, shift)


@sweep
@given(windows(), batches, channels, st.sampled_from(["max", "include", "exclude"]))
def test_pooling(window, batch, c, kind):
    extents, kernel, stride, padding, _ = window
    x = np.random.default_rng(0).standard_normal((batch, c, *extents))
    include = kind == "include"
    if kind == "max":
        cell = nat.MaxPool(kernel, stride, padding)
    else:
        cell = nat.AvgPool(kernel, stride, padding, count_include_pad=include)
    got, r = both_modes(cell, last(x))
    r = first_again(r)
    if kind == "max":
        want = max_pool_oracle(x, r, kernel, stride, padding)
    else:
        want = avg_pool_oracle(x, r, kernel, stride, padding, include)
    assert_close([first_again(a) for a in got], want)
    if len(extents) == 3 and (kind == "max" or not any(padding)):
        assert_close([first_again(a) for a in got], plain_pooling(x, r, kind, kernel, stride, padding))


def plain_pooling(x, r, kind, kernel, stride, padding):
    def plain(x):
        if kind == "max":
            return ops.max_pool3d(x, kernel, stride, padding)
        return ops.avg_pool3d(x, kernel, stride)

    return plain_results(plain, r, x)


@sweep
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(4, 70), st.sampled_from([1e-6, 1e-5, 1e-3]))
def test_layer_norm(extents, c, epsilon):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*extents, c)).astype(np.float32).astype(np.float64) * 2 + 1
    scale, shift = rng.standard_normal((2, c)).astype(np.float32).astype(np.float64)
    got, r = both_modes(tokens.LayerNorm(epsilon), x, scale, shift)
    mean, deviation = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + epsilon)
    normal, rows = (x - mean) / deviation, tuple(range(len(extents)))
    pulled = r * scale
    dx = pulled - pulled.mean(-1, keepdims=True) - normal * (pulled * normal).mean(-1, keepdims=True)
    assert_close(got, [normal * scale + shift, dx / deviation, (r * normal).sum(rows), r.sum(rows)])


@sweep
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_gelu(extents):
    x = np.random.default_rng(0).standard_normal(extents).astype(np.float32).astype(np.float64) * 3
    got, r = both_modes(tokens.GELU(), x)
    share, density = special.ndtr(x), np.exp(-np.square(x) / 2) / np.sqrt(2 * np.pi)
    assert_close(got, [x * share, r * (share + x * density)])


# --- the rest of the contract -----------------------------------------------------------------------------


def normal(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def same_convolution(**options):
    return nat.Convolution((1, 1), (1, 1), (1, 1), **options)


def test_strides_of_one_shape_do_not_share_a_result():
    x, w = normal(1, 8, 8, 3), normal(4, 3, 3, 3)
    shapes = [nat.Convolution((s, s), (1, 1), (1, 1))(x, w).shape for s in (1, 2, 1)]
    assert shapes == [(1, 8, 8, 4), (1, 4, 4, 4), (1, 8, 8, 4)]


def test_view_that_is_not_contiguous():
    x, w, conv = normal(2, 3, 7, 6), normal(4, 3, 3, 3), same_convolution()
    copy = Tensor(np.ascontiguousarray(x.asnumpy().transpose(0, 2, 3, 1)))
    assert np.array_equal(conv(x.transpose(0, 2, 3, 1), w).asnumpy(), conv(copy, w).asnumpy())


def test_input_that_is_data_gets_no_gradient():
    x, w = normal(2, 7, 6, 3), normal(4, 3, 3, 3)
    conv, data_conv = same_convolution(), same_convolution(input_grad=False)

    def loss(cell):
        def f(x, w):
            return cell(x, w).sum()

        return f

    (_, dw), (dx_data, dw_data) = (ms.grad(loss(c), (0, 1))(x, w) for c in (conv, data_conv))
    assert not dx_data.asnumpy().any()
    assert np.array_equal(dw.asnumpy(), dw_data.asnumpy())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: (same_convolution(), normal(2, 7, 6, 5), normal(4, 3, 3, 3)),
            ValueError,
            r"\[2, 7, 6, 5\].*\[4, 3, 3, 3\]",
        ),
        (lambda: (same_convolution(groups=2), normal(2, 7, 6, 6), normal(3, 3, 3, 3)), ValueError, "2 group"),
        (
            lambda: (same_convolution(), normal(2, 7, 6, 3), normal(4, 3, 9, 9)),
            ValueError,
            r"\[9, 9\] does not fit",
        ),
        (
            lambda: (same_convolution(), normal(2, 7, 6, 3).astype(ms.float64), normal(4, 3, 3, 3)),
            TypeError,
            "float32",
        ),
        (
            lambda: (nat.BatchNorm(1e-5), normal(2, 7, 6, 3), normal(3), normal(4)),
            ValueError,
            r"\[2, 7, 6, 3\]",
        ),
        (lambda: (tokens.LayerNorm(1e-5), normal(2, 7, 3), normal(3), normal(4)), ValueError, r"\[2, 7, 3\]"),
        (
            lambda: (nat.MaxPool((2, 2), (2, 2), (0, 0)), normal(2, 1, 1, 3)),
            ValueError,
            r"\[2, 2\] does not fit",
        ),
        (lambda: (nat.AvgPool((2,), (2,), (0,)), normal(2, 6, 6, 3)), ValueError, r"\[2, 6, 6, 3\]"),
        # Four spatial extents pass our checks, but oneDNN cannot pool them: its error, with the shapes.
        (
            lambda: (nat.AvgPool((2,) * 4, (2,) * 4, (0,) * 4), normal(2, 4, 4, 4, 4, 3)),
            RuntimeError,
            r"avg_pool.*\[2, 4, 4, 4, 4, 3\]",
        ),
    ],
)
def test_errors_name_the_shapes(graph, make, error, message):
    cell, *inputs = make()

    def call(*args):
        return first(cell(*args))

    with pytest.raises(error, match=message):
        (ms.jit(call) if graph else call)(*inputs).asnumpy()


def test_mistaken_windows():
    with pytest.raises(ValueError, match="stride"):
        nat.Convolution((0, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="padding"):
        nat.MaxPool((2, 2), (2, 2), (2, 0))


def train_steps(steps):
    """Gradients through all operators, the shape changing at each step; yields their checksums."""
    pool, average = nat.MaxPool((2, 2), (2, 2), (0, 0)), nat.AvgPool((2, 2), (1, 1), (1, 1))
    conv, norm, w, ones = same_convolution(), nat.BatchNorm(1e-5, relu=True), normal(24, 3, 3, 3), normal(24)

    def loss(x, w):
        return (average(pool(norm(conv(x, w), ones, ones)[0])[0]) ** 2).sum()

    backward = ms.grad(loss, (0, 1))

    def gradients(x, w):
        return backward(x, w)

    compiled = ms.jit(gradients)
    for step in range(steps):
        shape = step % 12
        grads = compiled(normal(1 + shape % 3, 20 + shape * 7 % 41, 20 + shape * 5 % 37, 3), w)
        yield [float(g.asnumpy().sum(dtype=np.float64)) for g in grads]


def test_memory_is_flat_while_shapes_change():
    process, used = psutil.Process(), []
    for step, _ in enumerate(train_steps(2000)):
        if step % 500 == 499:
            used.append(process.memory_info().rss / 2**20)
    assert used[-1] - used[0] < 5, f"MiB after each 500 steps: {used}"


def test_processes_at_once(tmp_path):
    """Both find an empty cache, one builds, the other waits, and they compute the same."""
    script = "from tests.test_native import train_steps; print(list(train_steps(5)))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    expected = str(list(train_steps(5)))
    for process in both:
        assert expected in process.communicate()[0]
    assert len(list(tmp_path.glob("mindvideo/*.so"))) == 1


def test_reasons(monkeypatch, tmp_path):
    try:
        for name, value, why in (
            ("MINDVIDEO_NATIVE", "0", "MINDVIDEO_NATIVE"),
            ("CXX", "no-such-compiler", "no-such-compiler"),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                native.load.cache_clear()
                assert not native.available()
                assert why in native.reason()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
        with pytest.raises(build.BuildError, match="no-such-flag"):
            build.library()
        assert not list(tmp_path.glob("mindvideo/*.so"))
    finally:
        native.load.cache_clear()
