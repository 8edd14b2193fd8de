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

from mindvideo import native
from mindvideo.native import build

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native operators: {native.reason()}")
if native.available():
    from mindvideo.native import operators as nat

sweep = settings(max_examples=25, deadline=None, derandomize=True)


# --- running a cell both ways -----------------------------------------------------------------------------


def first(out):
    return out[0] if isinstance(out, tuple) else out


def both_modes(cell, *inputs):
    """Output and gradients of sum(output * r), and r; PyNative, graph and a second run agree to the bit."""
    tensors = [Tensor(i.astype(np.float32)) for i in inputs]
    shape = first(cell(*tensors)).shape
    r = Tensor(np.random.default_rng(1).standard_normal(shape).astype(np.float32))

    def forward(*args):
        return first(cell(*args))

    def loss(*args):
        return (first(cell(*args)) * r).sum()

    backward = ms.grad(loss, tuple(range(len(inputs))))

    def gradients(*args):
        return backward(*args)

    def run(f, g):
        grads = g(*tensors)
        grads = grads if isinstance(grads, tuple) else (grads,)
        return [a.asnumpy() for a in (f(*tensors), *grads)]

    pynative, graph, again = (
        run(forward, gradients),
        *(run(ms.jit(forward), ms.jit(gradients)) for _ in range(2)),
    )
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


def channels_first(array, channels_last):
    return np.moveaxis(array, -1, 1) if channels_last else array


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


def batch_norm_oracle(x, scale, shift, r, relu, epsilon, statistics=None):
    axes = (0, *range(2, x.ndim))

    def wide(v):
        return v.reshape(1, -1, *[1] * (x.ndim - 2))

    mean, var = statistics or (x.mean(axes), x.var(axes))
    inv = 1 / np.sqrt(var + epsilon)
    xhat = (x - wide(mean)) * wide(inv)
    y = xhat * wide(scale) + wide(shift)
    dy = r * (y > 0) if relu else r
    dscale, dshift = (dy * xhat).sum(axes), dy.sum(axes)
    count = x.size / x.shape[1]
    pull = 0.0 if statistics else (wide(dshift) + xhat * wide(dscale)) / count
    return np.maximum(y, 0) if relu else y, wide(scale * inv) * (dy - pull), dscale, dshift


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


@sweep
@given(
    windows(max_dilation=3),
    batches,
    channels,
    channels,
    st.sampled_from([1, 1, 2, 4]),
    st.booleans(),
    st.booleans(),
)
def test_convolution(window, batch, c_in, c_out, groups, biased, channels_last):
    extents, kernel, stride, padding, dilation = window
    c_in, c_out = c_in * groups, c_out * groups
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((batch, c_in, *extents)), rng.standard_normal(c_out) * biased
    w = rng.standard_normal((c_out, c_in // groups, *kernel))
    kind = nat.BiasedConvolution if biased else nat.Convolution
    cell = kind(stride, padding, dilation, groups=groups, channels_last=channels_last)
    (y, dx, *rest), r = both_modes(cell, last(x) if channels_last else x, w, *([b] if biased else []))
    want = conv_oracle(x, w, b, channels_first(r, channels_last), stride, padding, dilation, groups)
    assert_close([channels_first(y, channels_last), channels_first(dx, channels_last), *rest], want[: 3 + biased])


@sweep
@given(
    batches,
    channels,
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_batch_norm(batch, c, extents, relu, frozen, channels_last):
    assume(batch * np.prod(extents) >= 8)  # fewer values make the gradient of x a difference of nearly equal numbers
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, c, *extents)).astype(np.float32).astype(np.float64) * 2 + 1
    scale, shift, mean, var = rng.standard_normal((4, c)).astype(np.float32).astype(np.float64)
    given_statistics = [mean, var**2] if frozen else []
    cell = (nat.FrozenBatchNorm if frozen else nat.BatchNorm)(1e-3, relu=relu, channels_last=channels_last)
    got, r = both_modes(cell, last(x) if channels_last else x, scale, shift, *given_statistics)
    got[:2] = [channels_first(a, channels_last) for a in got[:2]]
    want = batch_norm_oracle(x, scale, shift, channels_first(r, channels_last), relu, 1e-3, given_statistics)
    assert_close(got[:4], want)
    if not frozen:
        _, mean, var, _ = cell(*(Tensor(a.astype(np.float32)) for a in (last(x) if channels_last else x, scale, shift)))
        axes = (0, *range(2, x.ndim))
        assert_close([mean.asnumpy(), var.asnumpy()], [x.mean(axes), x.var(axes)])


@sweep
@given(windows(), batches, channels, st.sampled_from(["max", "include", "exclude"]), st.booleans())
def test_pooling(window, batch, c, kind, channels_last):
    extents, kernel, stride, padding, _ = window
    x = np.random.default_rng(0).standard_normal((batch, c, *extents))
    include = kind == "include"
    cell = (
        nat.MaxPool(kernel, stride, padding, channels_last=channels_last)
        if kind == "max"
        else nat.AvgPool(kernel, stride, padding, count_include_pad=include, channels_last=channels_last)
    )
    got, r = both_modes(cell, last(x) if channels_last else x)
    r = channels_first(r, channels_last)
    want = (
        max_pool_oracle(x, r, kernel, stride, padding)
        if kind == "max"
        else avg_pool_oracle(x, r, kernel, stride, padding, include)
    )
    assert_close([channels_first(a, channels_last) for a in got], want)


# --- MindSpore's own operators ----------------------------------------------------------------------------


def plain_convolution(stride, padding, dilation, groups):
    pads = tuple(p for p in padding for _ in range(2))
    conv = ops.Conv3D if len(stride) == 3 else ops.Conv2D
    made = {}  # the channels are known when it is called

    def call(x, w):
        if "op" not in made:
            common = {"pad_mode": "pad", "pad": pads, "stride": stride, "dilation": dilation, "group": groups}
            made["op"] = conv(w.shape[0], w.shape[2:], **common)
        return made["op"](x, w)

    return call


@pytest.mark.parametrize(
    ("extents", "kernel", "stride", "padding", "dilation", "groups"),
    [
        ((9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((11, 10), (3, 3), (2, 1), (2, 0), (2, 1), 2),
        ((1, 9, 8), (1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1), 1),
        ((5, 9, 7), (3, 1, 3), (1, 1, 2), (1, 0, 1), (1, 1, 1), 1),
    ],
)
def test_convolution_equals_plain(extents, kernel, stride, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, *extents)), rng.standard_normal((6, 4 // groups, *kernel))
    plain, _ = both_modes(plain_convolution(stride, padding, dilation, groups), x, w)
    ours, _ = both_modes(nat.Convolution(stride, padding, dilation, groups=groups, channels_last=False), x, w)
    assert_close(ours, plain)


def test_batch_norm_equals_plain():
    rng = np.random.default_rng(0)
    x, scale, shift = rng.standard_normal((2, 5, 9, 8)), rng.standard_normal(5), rng.standard_normal(5)
    mean, var = Tensor(np.zeros(5), ms.float32), Tensor(np.ones(5), ms.float32)
    norm = ops.BatchNorm(is_training=True, epsilon=1e-3)

    def plain(x, scale, shift):
        return ops.relu(norm(x, scale, shift, mean, var)[0])

    ours = nat.BatchNorm(1e-3, relu=True, channels_last=False)
    assert_close(both_modes(ours, x, scale, shift)[0], both_modes(plain, x, scale, shift)[0])


def test_pooling_equals_plain():
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 9, 8))

    def plain_max(x):
        return ops.max_pool3d(x, (2, 3, 2), (2, 2, 1))

    def plain_avg(x):
        return ops.avg_pool3d(x, (2, 3, 2), (2, 2, 1))

    window = (2, 3, 2), (2, 2, 1), (0, 0, 0)
    for ours, plain in ((nat.MaxPool, plain_max), (nat.AvgPool, plain_avg)):
        assert_close(both_modes(ours(*window, channels_last=False), x)[0], both_modes(plain, x)[0])


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


def test_convolution_with_relu():
    x, w, r = normal(2, 7, 6, 3), normal(4, 3, 3, 3), normal(2, 7, 6, 4)
    plain, fused = same_convolution(), same_convolution(relu=True)

    def composed_loss(x, w):
        return (ops.relu(plain(x, w)) * r).sum()

    def fused_loss(x, w):
        return (fused(x, w) * r).sum()

    got, want = (ms.grad(f, (0, 1))(x, w) for f in (fused_loss, composed_loss))
    assert_close([fused(x, w).asnumpy()], [ops.relu(plain(x, w)).asnumpy()])
    assert_close([g.asnumpy() for g in got], [g.asnumpy() for g in want])


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
    for step, _ in enumerate(train_steps(400)):
        if step % 100 == 99:
            used.append(process.memory_info().rss / 2**20)
    assert used[-1] - used[1] < 5, f"MiB after each 100 steps: {used}"


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
