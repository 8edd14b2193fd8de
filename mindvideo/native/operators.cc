// SPDX-License-Identifier: Apache-2.0
//
// Convolution, batch norm, pooling and TSM's shift for CPUs, most of it over oneDNN 3, called by MindSpore as "ahead of
// time" custom operators.
//
// Every operator has MindSpore's signature (count, buffers, ranks, shapes, dtypes, stream, extra); the buffers are
// the inputs followed by the outputs, and the first input is an int64 tensor of attributes. A failure is thrown:
// MindSpore turns it into a Python RuntimeError with our message.
//
// Describing a problem to oneDNN took 3 % of a training step, though it keeps the compiled primitives, so that is done
// once for each problem.

#include "call.h"

namespace {

// attributes: groups, relu, stride[], padding[], dilation[]; weight [O, C / groups, kernel...]
struct Convolution {
  dims src, weights, bias, dst, stride, padding, dilation;
  bool relu;

  Convolution(const Call& call, int x, int w, int y)
      : src(call.logical(x)), weights(call.shape(w)), bias{weights[0]}, dst(call.logical(y)) {
    const int n = call.spatial(x);
    const int64_t* a = call.attributes();
    relu = a[1] != 0;
    stride.assign(a + 2, a + 2 + n);
    padding.assign(a + 2 + n, a + 2 + 2 * n);
    for (int i = 0; i < n; ++i) dilation.push_back(a[2 + 2 * n + i] - 1);  // oneDNN counts the gaps
    if (const int64_t groups = a[0]; groups > 1) {
      weights[0] /= groups;
      weights.insert(weights.begin(), groups);
    }
  }

  // The tensors are used as they lie, unless oneDNN has only its reference kernel for that: then it picks its own
  // layouts.
  template <class Make>
  auto choose(Make make) const {
    auto pd = make(channels_last(src), channels_last(dst));
    if (std::strncmp(pd.impl_info_str(), "ref", 3) != 0) return pd;
    return make(any_layout(src), any_layout(dst));
  }

  convolution_forward::primitive_desc forward(bool biased) const {
    return choose([&](const memory::desc& x, const memory::desc& y) {
      return convolution_forward::primitive_desc(cpu(), prop_kind::forward_training, algorithm::convolution_direct, x,
                                                 any_layout(weights), biased ? contiguous(bias) : memory::desc(), y,
                                                 stride, dilation, padding, padding, user_scratchpad());
    });
  }

  // For inference: the result times a scale plus a shift per channel, plus a residual, through a ReLU.
  convolution_forward::primitive_desc folded(bool residual) const {
    primitive_attr attributes = user_scratchpad();
    post_ops after;
    after.append_binary(algorithm::binary_mul, per_channel());
    after.append_binary(algorithm::binary_add, per_channel());
    if (residual) after.append_binary(algorithm::binary_add, any_layout(dst));
    if (relu) after.append_eltwise(algorithm::eltwise_relu, 0.f, 0.f);
    attributes.set_post_ops(after);
    return choose([&](const memory::desc& x, const memory::desc& y) {
      return convolution_forward::primitive_desc(cpu(), prop_kind::forward_inference, algorithm::convolution_direct, x,
                                                 any_layout(weights), memory::desc(), y, stride, dilation, padding,
                                                 padding, attributes);
    });
  }

  // A vector [O] as oneDNN broadcasts it over the output.
  memory::desc per_channel() const {
    dims shape(dst.size(), 1);
    shape[1] = dst[1];
    return contiguous(shape);
  }

  convolution_backward_data::primitive_desc backward_data() const {
    const auto hint = forward(false);
    return choose([&](const memory::desc& x, const memory::desc& y) {
      return convolution_backward_data::primitive_desc(cpu(), algorithm::convolution_direct, x, any_layout(weights), y,
                                                       stride, dilation, padding, padding, hint, user_scratchpad());
    });
  }

  convolution_backward_weights::primitive_desc backward_weights(bool biased) const {
    const auto hint = forward(biased);
    return choose([&](const memory::desc& x, const memory::desc& y) {
      return convolution_backward_weights::primitive_desc(
          cpu(), algorithm::convolution_direct, x, any_layout(weights), biased ? contiguous(bias) : memory::desc(), y,
          stride, dilation, padding, padding, hint, user_scratchpad());
    });
  }
};

// attributes: count_include_pad, kernel[], stride[], padding[]
struct Pooling {
  memory::desc src, dst;
  dims kernel, stride, padding, dilation;
  algorithm average;

  Pooling(const memory::desc& x, const memory::desc& y, const int64_t* a) : src(x), dst(y) {
    const int n = x.get_ndims() - 2;
    average = a[0] ? algorithm::pooling_avg_include_padding : algorithm::pooling_avg_exclude_padding;
    kernel.assign(a + 1, a + 1 + n);
    stride.assign(a + 1 + n, a + 1 + 2 * n);
    padding.assign(a + 1 + 2 * n, a + 1 + 3 * n);
    dilation.assign(n, 0);
  }

  pooling_forward::primitive_desc forward(algorithm kind) const {
    return {cpu(), prop_kind::forward_training, kind, src, dst, stride, kernel, dilation, padding, padding,
            user_scratchpad()};
  }
  pooling_backward::primitive_desc backward(algorithm kind) const {
    return {cpu(), kind, src, dst, stride, kernel, dilation, padding, padding, forward(kind), user_scratchpad()};
  }
};

void conv(const Call& c, bool biased) {
  const int y = biased ? 4 : 3;
  const Convolution problem(c, 1, 2, y);
  std::vector<Argument> inputs = {{DNNL_ARG_SRC, c.activation(1), c.data[1]},
                                  {DNNL_ARG_WEIGHTS, contiguous(problem.weights), c.data[2]}};
  if (biased) inputs.push_back({DNNL_ARG_BIAS, contiguous(problem.bias), c.data[3]});
  run(plan(c, [&] { return problem.forward(biased); }), inputs, {{DNNL_ARG_DST, c.activation(y), c.data[y]}});
}

// inputs: attributes, x, weight, scale, shift [, residual]; outputs: y
void conv_folded(const Call& c, bool residual) {
  const int y = residual ? 6 : 5;
  const Convolution problem(c, 1, 2, y);
  const auto after = [](int i) { return DNNL_ARG_ATTR_MULTIPLE_POST_OP(i) | DNNL_ARG_SRC_1; };
  std::vector<Argument> inputs = {{DNNL_ARG_SRC, c.activation(1), c.data[1]},
                                  {DNNL_ARG_WEIGHTS, contiguous(problem.weights), c.data[2]},
                                  {after(0), problem.per_channel(), c.data[3]},
                                  {after(1), problem.per_channel(), c.data[4]}};
  if (residual) inputs.push_back({after(2), c.activation(5), c.data[5]});
  run(plan(c, [&] { return problem.folded(residual); }), inputs, {{DNNL_ARG_DST, c.activation(y), c.data[y]}});
}

void conv_grad_input(const Call& c) {
  const Convolution problem(c, 1, 2, 3);
  run(plan(c, [&] { return problem.backward_data(); }),
      {{DNNL_ARG_WEIGHTS, contiguous(problem.weights), c.data[2]}, {DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(4), c.data[4]}});
}

void conv_grad_weight(const Call& c, bool biased) {
  const Convolution problem(c, 1, 2, 3);
  std::vector<Argument> outputs = {{DNNL_ARG_DIFF_WEIGHTS, contiguous(problem.weights), c.data[4]}};
  if (biased) outputs.push_back({DNNL_ARG_DIFF_BIAS, contiguous(problem.bias), c.data[5]});
  run(plan(c, [&] { return problem.backward_weights(biased); }),
      {{DNNL_ARG_SRC, c.activation(1), c.data[1]}, {DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}}, outputs);
}

// Batch norm is ours: oneDNN's sums its float32 statistics in float32, which is off by 1e-5 over a million values, and
// knows no residual. Tensors are [rows, channels]. Sums are taken in double precision over blocks of rows that do not
// depend on the number of threads, so neither does the result.

struct Block {
  int64_t first, rows;
};

std::vector<Block> blocks_of(int64_t rows, int64_t channels) {
  const int64_t height = std::max<int64_t>(1, (1 << 16) / channels);
  std::vector<Block> blocks;
  for (int64_t first = 0; first < rows; first += height) blocks.push_back({first, std::min(height, rows - first)});
  return blocks;
}

// Two sums per channel: `add(block, a, b)` adds a block's terms to a[channels] and b[channels].
template <class Add>
std::pair<std::vector<double>, std::vector<double>> channel_sums(int64_t rows, int64_t channels, const Add& add) {
  const auto blocks = blocks_of(rows, channels);
  const int64_t count = blocks.size();
  std::vector<double> partial(2 * count * channels, 0.0), a(channels, 0.0), b(channels, 0.0);
#pragma omp parallel for
  for (int64_t i = 0; i < count; ++i) add(blocks[i], &partial[2 * i * channels], &partial[(2 * i + 1) * channels]);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      a[c] += partial[2 * i * channels + c];
      b[c] += partial[(2 * i + 1) * channels + c];
    }
  return {std::move(a), std::move(b)};
}

template <class Body>
void each_block(int64_t rows, int64_t channels, const Body& body) {
  const auto blocks = blocks_of(rows, channels);
  const int64_t count = blocks.size();
#pragma omp parallel for
  for (int64_t i = 0; i < count; ++i) body(blocks[i]);
}

VECTORIZED void add_moments(const float* x, int64_t rows, int64_t channels, double* sum, double* square) {
  for (int64_t r = 0; r < rows; ++r, x += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const double value = x[c];
      sum[c] += value;
      square[c] += value * value;
    }
}

struct Channels {
  const float *mean, *slope, *shift;
};

// What is not settled until it runs is a template parameter, because the compiler vectorises no loop with a condition
// that is the same for all of it.
#define INLINE inline __attribute__((always_inline))

// y = (x - mean) * slope + shift + residual, through a ReLU
template <bool kRelu, bool kResidual>
INLINE void normalize(const float* __restrict x, const float* __restrict residual, int64_t rows, int64_t channels,
                      const Channels& of, float* __restrict y) {
  const float *mean = of.mean, *slope = of.slope, *shift = of.shift;
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      float value = (x[c] - mean[c]) * slope[c] + shift[c];
      if (kResidual) value += residual[c];
      y[c] = kRelu && value < 0 ? 0 : value;
    }
    if (kResidual) residual += channels;
  }
}

VECTORIZED void normalize(const float* x, const float* residual, int64_t rows, int64_t channels, const Channels& of,
                          bool relu, float* y) {
  if (relu && residual) return normalize<true, true>(x, residual, rows, channels, of, y);
  if (relu) return normalize<true, false>(x, residual, rows, channels, of, y);
  if (residual) return normalize<false, true>(x, residual, rows, channels, of, y);
  normalize<false, false>(x, residual, rows, channels, of, y);
}

// Sums of dy and of dy (x - mean), where the ReLU let it through.
template <bool kRelu>
INLINE void add_gradient_moments(const float* __restrict x, const float* __restrict y, const float* __restrict dy,
                                 int64_t rows, int64_t channels, const float* __restrict mean, double* __restrict sum,
                                 double* __restrict product) {
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels, dy += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const float all = dy[c];
      const double through = kRelu && !(y[c] > 0) ? 0 : all;
      sum[c] += through;
      product[c] += through * (double(x[c]) - mean[c]);
    }
}

VECTORIZED void add_gradient_moments(const float* x, const float* y, const float* dy, int64_t rows, int64_t channels,
                                     const float* mean, bool relu, double* sum, double* product) {
  if (relu) return add_gradient_moments<true>(x, y, dy, rows, channels, mean, sum, product);
  add_gradient_moments<false>(x, y, dy, rows, channels, mean, sum, product);
}

// dx = dy * slope + (x - mean) * pull + shift, where dy is what the ReLU let through: the gradient of the residual.
template <bool kRelu, bool kResidual>
INLINE void spread_gradient(const float* __restrict x, const float* __restrict y, const float* __restrict dy,
                            int64_t rows, int64_t channels, const Channels& of, const float* __restrict pull,
                            float* __restrict dx, float* __restrict dresidual) {
  const float *mean = of.mean, *slope = of.slope, *shift = of.shift;
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels, dy += channels, dx += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float all = dy[c];
      const float through = kRelu && !(y[c] > 0) ? 0 : all;
      dx[c] = through * slope[c] + (x[c] - mean[c]) * pull[c] + shift[c];
      if (kResidual) dresidual[c] = through;
    }
    if (kResidual) dresidual += channels;
  }
}

VECTORIZED void spread_gradient(const float* x, const float* y, const float* dy, int64_t rows, int64_t channels,
                                const Channels& of, const float* pull, bool relu, float* dx, float* dresidual) {
  if (relu && dresidual) return spread_gradient<true, true>(x, y, dy, rows, channels, of, pull, dx, dresidual);
  if (relu) return spread_gradient<true, false>(x, y, dy, rows, channels, of, pull, dx, dresidual);
  if (dresidual) return spread_gradient<false, true>(x, y, dy, rows, channels, of, pull, dx, dresidual);
  spread_gradient<false, false>(x, y, dy, rows, channels, of, pull, dx, dresidual);
}

// attributes: relu, frozen (statistics are given), bits of epsilon as float64
struct BatchNorm {
  bool relu, frozen;
  double epsilon;

  explicit BatchNorm(const Call& c) : relu(c.attributes()[0] != 0), frozen(c.attributes()[1] != 0) {
    std::memcpy(&epsilon, c.attributes() + 2, sizeof epsilon);
  }
  double deviation(float variance) const { return std::sqrt(variance + epsilon); }
};

// inputs: attributes, x, scale, shift [, mean, variance | , residual]; outputs: y [, mean, variance]
void batch_norm(const Call& c, bool has_residual) {
  const BatchNorm norm(c);
  const int64_t rows = c.rows(1), channels = c.channels(1);
  const float *x = c.values(1), *residual = has_residual ? c.values(4) : nullptr;
  const int target = norm.frozen ? 6 : has_residual ? 5 : 4;
  float *mean = c.values(norm.frozen ? 4 : target + 1), *variance = c.values(norm.frozen ? 5 : target + 2);
  if (!norm.frozen) {
    const auto [sum, square] = channel_sums(rows, channels, [&](const Block& block, double* a, double* b) {
      add_moments(x + block.first * channels, block.rows, channels, a, b);
    });
    for (int64_t i = 0; i < channels; ++i) {
      const double middle = sum[i] / rows;
      mean[i] = float(middle);
      variance[i] = float(std::max(0.0, square[i] / rows - middle * middle));
    }
  }
  std::vector<float> slope(channels);
  for (int64_t i = 0; i < channels; ++i) slope[i] = float(c.values(2)[i] / norm.deviation(variance[i]));
  const Channels of{mean, slope.data(), c.values(3)};
  each_block(rows, channels, [&](const Block& block) {
    const int64_t at = block.first * channels;
    normalize(x + at, residual ? residual + at : nullptr, block.rows, channels, of, norm.relu, c.values(target) + at);
  });
}

// inputs: attributes, x, scale, mean, variance, y, dy; outputs: dx, dscale, dshift [, dresidual]
void batch_norm_grad(const Call& c, bool has_residual) {
  const BatchNorm norm(c);
  const int64_t rows = c.rows(1), channels = c.channels(1);
  const float *x = c.values(1), *mean = c.values(3), *y = c.values(5), *dy = c.values(6);
  float *dx = c.values(7), *dresidual = has_residual ? c.values(10) : nullptr;
  const auto [sum, product] = channel_sums(rows, channels, [&](const Block& block, double* a, double* b) {
    const int64_t at = block.first * channels;
    add_gradient_moments(x + at, y + at, dy + at, block.rows, channels, mean, norm.relu, a, b);
  });
  std::vector<float> slope(channels), pull(channels, 0), shift(channels, 0);
  for (int64_t i = 0; i < channels; ++i) {
    const double deviation = norm.deviation(c.values(4)[i]);
    slope[i] = float(c.values(2)[i] / deviation);
    c.values(8)[i] = float(product[i] / deviation);
    c.values(9)[i] = float(sum[i]);
    if (norm.frozen) continue;  // the batch does not move the statistics
    shift[i] = float(-slope[i] * sum[i] / rows);
    pull[i] = float(-slope[i] * product[i] / rows / (deviation * deviation));
  }
  const Channels of{mean, slope.data(), shift.data()};
  each_block(rows, channels, [&](const Block& block) {
    const int64_t at = block.first * channels;
    spread_gradient(x + at, y + at, dy + at, block.rows, channels, of, pull.data(), norm.relu, dx + at,
                    dresidual ? dresidual + at : nullptr);
  });
}

// inputs: attributes, x; outputs: y, workspace
void max_pool(const Call& c) {
  Plan& pooling = plan(c, [&] {
    return Pooling(c.activation(1), c.activation(2), c.attributes()).forward(algorithm::pooling_max);
  });
  run(pooling, {{DNNL_ARG_SRC, c.activation(1), c.data[1]}},
      {{DNNL_ARG_DST, c.activation(2), c.data[2]}, {DNNL_ARG_WORKSPACE, pooling.workspace(), c.data[3]}});
}

// inputs: attributes, x (for its shape), workspace, dy; outputs: dx
void max_pool_grad(const Call& c) {
  Plan& pooling = plan(c, [&] {
    return Pooling(c.activation(1), c.activation(3), c.attributes()).backward(algorithm::pooling_max);
  });
  run(pooling,
      {{DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}, {DNNL_ARG_WORKSPACE, pooling.workspace(), c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(4), c.data[4]}});
}

void avg_pool(const Call& c) {
  const Pooling problem(c.activation(1), c.activation(2), c.attributes());
  run(plan(c, [&] { return problem.forward(problem.average); }), {{DNNL_ARG_SRC, c.activation(1), c.data[1]}},
      {{DNNL_ARG_DST, c.activation(2), c.data[2]}});
}

// inputs: attributes, x (for its shape), dy; outputs: dx
void avg_pool_grad(const Call& c) {
  const Pooling problem(c.activation(1), c.activation(2), c.attributes());
  run(plan(c, [&] { return problem.backward(problem.average); }), {{DNNL_ARG_DIFF_DST, c.activation(2), c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(3), c.data[3]}});
}

// Frame t gets its first `fold` channels from frame t + step, the next `fold` from frame t - step, and has the others;
// zeros come in at the ends. attributes: fold, step (-1 is the gradient of 1); inputs: x [B, T, H, W, C]; outputs: y
void shift(const Call& c) {
  const int64_t fold = c.attributes()[0], step = c.attributes()[1];
  const int64_t batch = c.shapes[1][0], frames = c.shapes[1][1], places = c.shapes[1][2] * c.shapes[1][3];
  const int64_t channels = c.channels(1), size = places * channels;
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < frames; ++t) {
      const float* x = c.values(1) + (b * frames + t) * size;
      float* y = c.values(2) + (b * frames + t) * size;
      const int64_t after = t + step, before = t - step;
      const float* next = after >= 0 && after < frames ? x + step * size : nullptr;
      const float* last = before >= 0 && before < frames ? x - step * size : nullptr;
      for (int64_t p = 0; p < size; p += channels) {
        next ? std::copy_n(next + p, fold, y + p) : std::fill_n(y + p, fold, 0.f);
        last ? std::copy_n(last + p + fold, fold, y + p + fold) : std::fill_n(y + p + fold, fold, 0.f);
        std::copy_n(x + p + 2 * fold, channels - 2 * fold, y + p + 2 * fold);
      }
    }
}

}  // namespace

MINDVIDEO_OPERATOR(conv, conv(call, false))
MINDVIDEO_OPERATOR(conv_bias, conv(call, true))
MINDVIDEO_OPERATOR(conv_folded, conv_folded(call, false))
MINDVIDEO_OPERATOR(conv_folded_add, conv_folded(call, true))
MINDVIDEO_OPERATOR(conv_grad_input, conv_grad_input(call))
MINDVIDEO_OPERATOR(conv_grad_weight, conv_grad_weight(call, false))
MINDVIDEO_OPERATOR(conv_grad_weight_bias, conv_grad_weight(call, true))
MINDVIDEO_OPERATOR(batch_norm, batch_norm(call, false))
MINDVIDEO_OPERATOR(batch_norm_add, batch_norm(call, true))
MINDVIDEO_OPERATOR(batch_norm_grad, batch_norm_grad(call, false))
MINDVIDEO_OPERATOR(batch_norm_add_grad, batch_norm_grad(call, true))
MINDVIDEO_OPERATOR(max_pool, max_pool(call))
MINDVIDEO_OPERATOR(max_pool_grad, max_pool_grad(call))
MINDVIDEO_OPERATOR(avg_pool, avg_pool(call))
MINDVIDEO_OPERATOR(avg_pool_grad, avg_pool_grad(call))
MINDVIDEO_OPERATOR(shift, shift(call))

// Bytes that the forward pass leaves for the backward pass; MindSpore asks while it infers shapes. -1: no such
// operator for this shape, and the call itself will say why. x and y are logical shapes.
extern "C" __attribute__((visibility("default"))) int64_t mindvideo_max_pool_workspace(
    int rank, const int64_t* x, const int64_t* y, const int64_t* attributes) try {
  const Pooling problem(channels_last({x, x + rank}), channels_last({y, y + rank}), attributes);
  return problem.forward(algorithm::pooling_max).workspace_desc().get_size();
} catch (const std::exception&) {
  return -1;
}

// The version of the oneDNN that our calls reach; another one in the process must not have taken its place.
extern "C" __attribute__((visibility("default"))) int mindvideo_onednn_major() { return version()->major; }
