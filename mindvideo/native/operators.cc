// SPDX-License-Identifier: Apache-2.0
//
// CPU operators over oneDNN 3, called by MindSpore as "ahead of time" custom operators.
//
// Every operator has MindSpore's signature (count, buffers, ranks, shapes, dtypes, stream, extra); the buffers are
// the inputs followed by the outputs, and the first input is an int64 tensor of attributes. A failure is thrown:
// MindSpore turns it into a Python RuntimeError with our message.
//
// oneDNN keeps the compiled primitives itself, least recently used first out. Called again with the same
// parameters it finds one in microseconds, so nothing is cached here.

#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

using namespace dnnl;
using dims = memory::dims;

namespace {

constexpr auto kFloat = memory::data_type::f32;
constexpr int kCachedPrimitives = 512;  // bounds what ever-changing shapes can take

const engine& cpu() {
  static const engine instance = [] {
    set_primitive_cache_capacity(kCachedPrimitives);
    return engine(engine::kind::cpu, 0);
  }();
  return instance;
}

// Memory that outlives a call, so that large temporaries are not mapped and unmapped at every step. Each thread has
// its own; a slot grows to the largest request it has seen.
class Scratch {
 public:
  ~Scratch() {
    for (auto& slot : slots_) std::free(slot.first);
  }

  void* get(size_t index, size_t bytes) {
    if (index >= slots_.size()) slots_.resize(index + 1, {nullptr, 0});
    auto& [data, capacity] = slots_[index];
    if (bytes > capacity) {
      std::free(data);
      capacity = (bytes + 63) / 64 * 64;
      data = std::aligned_alloc(64, capacity);
      if (data == nullptr) {
        capacity = 0;
        throw std::bad_alloc();
      }
    }
    return data;
  }

 private:
  std::vector<std::pair<void*, size_t>> slots_;
};

// Logical shapes are [N, C, spatial...], as oneDNN has them, whatever the order in memory.
memory::desc contiguous(const dims& shape) {
  dims strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return {shape, kFloat, strides};
}

memory::desc channels_last(const dims& shape) {
  dims strides(shape.size());
  int64_t step = shape[1];
  for (size_t i = shape.size(); i-- > 2; step *= shape[i]) strides[i] = step;
  strides[0] = step;
  strides[1] = 1;
  return {shape, kFloat, strides};
}

memory::desc any_layout(const dims& shape) { return {shape, kFloat, memory::format_tag::any}; }

struct Call {
  void** data;
  const int* ranks;
  int64_t** shapes;

  const int64_t* attributes() const { return static_cast<const int64_t*>(data[0]); }
  bool is_channels_last() const { return attributes()[0] != 0; }
  int spatial(int i) const { return ranks[i] - 2; }
  dims shape(int i) const { return {shapes[i], shapes[i] + ranks[i]}; }

  dims logical(int i) const {
    dims s = shape(i);
    if (is_channels_last()) {
      s.insert(s.begin() + 1, s.back());
      s.pop_back();
    }
    return s;
  }
  memory::desc activation(int i) const {
    return is_channels_last() ? channels_last(logical(i)) : contiguous(logical(i));
  }
};

struct Argument {
  int id;  // DNNL_ARG_...
  memory::desc layout;
  void* data;
};

// Runs a primitive on MindSpore's buffers, reordering those whose layout is not the one it was made for.
void run(const primitive_desc& pd, const std::vector<Argument>& inputs, const std::vector<Argument>& outputs) {
  static thread_local Scratch scratch;
  stream queue(cpu());
  size_t slot = 0;
  const memory::desc work = pd.scratchpad_desc();
  std::unordered_map<int, memory> bound;
  bound.emplace(DNNL_ARG_SCRATCHPAD, memory(work, cpu(), scratch.get(slot++, work.get_size())));

  const auto bind = [&](const Argument& argument) {
    const memory::desc wanted = pd.query_md(query::exec_arg_md, argument.id);
    void* data = wanted == argument.layout ? argument.data : scratch.get(slot++, wanted.get_size());
    return bound.emplace(argument.id, memory(wanted, cpu(), data)).first->second;
  };
  const auto given = [](const Argument& argument) { return memory(argument.layout, cpu(), argument.data); };

  for (const auto& input : inputs) {
    memory inside = bind(input), outside = given(input);
    if (inside.get_data_handle() != input.data) reorder(outside, inside).execute(queue, outside, inside);
  }
  for (const auto& output : outputs) bind(output);
  primitive(pd).execute(queue, bound);
  for (const auto& output : outputs) {
    memory inside = bound.at(output.id), outside = given(output);
    if (inside.get_data_handle() != output.data) reorder(inside, outside).execute(queue, inside, outside);
  }
  queue.wait();
}

primitive_attr user_scratchpad() {
  primitive_attr attributes;
  attributes.set_scratchpad_mode(scratchpad_mode::user);
  return attributes;
}

// attributes: channels_last, groups, relu, stride[], padding[], dilation[]; weight [O, C / groups, kernel...]
struct Convolution {
  dims src, weights, bias, dst, stride, padding, dilation;
  bool last, relu;

  Convolution(const Call& call, int x, int w, int y)
      : src(call.logical(x)), weights(call.shape(w)), bias{weights[0]}, dst(call.logical(y)) {
    const int n = call.spatial(x);
    const int64_t* a = call.attributes();
    last = a[0] != 0;
    relu = a[2] != 0;
    stride.assign(a + 3, a + 3 + n);
    padding.assign(a + 3 + n, a + 3 + 2 * n);
    for (int i = 0; i < n; ++i) dilation.push_back(a[3 + 2 * n + i] - 1);  // oneDNN counts the gaps
    if (const int64_t groups = a[1]; groups > 1) {
      weights[0] /= groups;
      weights.insert(weights.begin(), groups);
    }
  }

  // Channels last the tensors are used as they lie, unless oneDNN has only its reference kernel for that; in that
  // case, and channels first, it picks its own layouts.
  template <class Make>
  auto choose(Make make) const {
    if (last) {
      auto pd = make(channels_last(src), channels_last(dst));
      if (std::strncmp(pd.impl_info_str(), "ref", 3) != 0) return pd;
    }
    return make(any_layout(src), any_layout(dst));
  }

  convolution_forward::primitive_desc forward(bool biased, prop_kind kind = prop_kind::forward_training) const {
    primitive_attr attributes = user_scratchpad();
    if (relu && kind == prop_kind::forward_inference) {
      post_ops after;
      after.append_eltwise(algorithm::eltwise_relu, 0.f, 0.f);
      attributes.set_post_ops(after);
    }
    return choose([&](const memory::desc& x, const memory::desc& y) {
      return convolution_forward::primitive_desc(cpu(), kind, algorithm::convolution_direct, x, any_layout(weights),
                                                 biased ? contiguous(bias) : memory::desc(), y, stride, dilation,
                                                 padding, padding, attributes);
    });
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

// attributes: channels_last, relu, frozen (statistics are given), bits of epsilon as float64
struct BatchNorm {
  memory::desc layout;
  normalization_flags flags = normalization_flags::use_scale | normalization_flags::use_shift;
  float epsilon;

  // The kernels for channels first are slow: those tensors are reordered.
  BatchNorm(const dims& src, const int64_t* a) : layout(channels_last(src)) {
    if (a[1]) flags = flags | normalization_flags::fuse_norm_relu;
    if (a[2]) flags = flags | normalization_flags::use_global_stats;
    double value;
    std::memcpy(&value, a + 3, sizeof value);
    epsilon = static_cast<float>(value);
  }

  // The statistics always come from outside: from the caller, or from `channel_statistics`.
  batch_normalization_forward::primitive_desc forward() const {
    const auto given = flags | normalization_flags::use_global_stats;
    return {cpu(), prop_kind::forward_training, layout, layout, epsilon, given, user_scratchpad()};
  }
  batch_normalization_backward::primitive_desc backward() const {
    return {cpu(), prop_kind::backward, layout, layout, layout, epsilon, flags, forward(), user_scratchpad()};
  }
};

// attributes: channels_last, count_include_pad, kernel[], stride[], padding[]
struct Pooling {
  memory::desc src, dst;
  dims kernel, stride, padding, dilation;
  algorithm average;

  Pooling(const memory::desc& x, const memory::desc& y, const int64_t* a) : src(x), dst(y) {
    const int n = x.get_ndims() - 2;
    average = a[1] ? algorithm::pooling_avg_include_padding : algorithm::pooling_avg_exclude_padding;
    kernel.assign(a + 2, a + 2 + n);
    stride.assign(a + 2 + n, a + 2 + 2 * n);
    padding.assign(a + 2 + 2 * n, a + 2 + 3 * n);
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
  const auto kind = problem.relu ? prop_kind::forward_inference : prop_kind::forward_training;
  run(problem.forward(biased, kind), inputs, {{DNNL_ARG_DST, c.activation(y), c.data[y]}});
}

void conv_grad_input(const Call& c) {
  const Convolution problem(c, 1, 2, 3);
  run(problem.backward_data(),
      {{DNNL_ARG_WEIGHTS, contiguous(problem.weights), c.data[2]}, {DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(4), c.data[4]}});
}

void conv_grad_weight(const Call& c, bool biased) {
  const Convolution problem(c, 1, 2, 3);
  std::vector<Argument> outputs = {{DNNL_ARG_DIFF_WEIGHTS, contiguous(problem.weights), c.data[4]}};
  if (biased) outputs.push_back({DNNL_ARG_DIFF_BIAS, contiguous(problem.bias), c.data[5]});
  run(problem.backward_weights(biased),
      {{DNNL_ARG_SRC, c.activation(1), c.data[1]}, {DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}}, outputs);
}

// Adds up `term(value, channel)` over everything but the channels, in double precision: oneDNN's own float32 sums over
// a million values are off by 1e-5. The blocks do not depend on the number of threads, so neither does the result.
template <typename Term>
std::vector<double> channel_sums(const Call& c, int x, const Term& term) {
  const dims shape = c.logical(x);
  const int64_t channels = shape[1], last = c.is_channels_last();
  const int64_t extent = std::accumulate(shape.begin() + 2, shape.end(), int64_t{1}, std::multiplies<>());
  const auto* values = static_cast<const float*>(c.data[x]);
  constexpr int64_t kRows = 1024;
  const int64_t rows = shape[0] * extent, blocks = last ? (rows + kRows - 1) / kRows : shape[0];
  std::vector<double> partial(blocks * channels, 0.0), sums(channels, 0.0);
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; ++block) {
    double* sum = &partial[block * channels];
    if (last) {
      for (int64_t row = block * kRows; row < std::min(rows, (block + 1) * kRows); ++row)
        for (int64_t i = 0; i < channels; ++i) sum[i] += term(values[row * channels + i], i);
    } else {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < extent; ++j) sum[i] += term(values[(block * channels + i) * extent + j], i);
    }
  }
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < channels; ++i) sums[i] += partial[block * channels + i];
  return sums;
}

void channel_statistics(const Call& c, int x, int mean, int variance) {
  const dims shape = c.logical(x);
  const double count = std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>()) / shape[1];
  auto means = channel_sums(c, x, [](float value, int64_t) { return double(value); });
  for (double& value : means) value /= count;
  const auto squares = channel_sums(c, x, [&](float value, int64_t i) {
    const double off = value - means[i];
    return off * off;
  });
  for (int64_t i = 0; i < shape[1]; ++i) {
    static_cast<float*>(c.data[mean])[i] = float(means[i]);
    static_cast<float*>(c.data[variance])[i] = float(squares[i] / count);
  }
}

// inputs: attributes, x, scale, shift [, mean, variance]; outputs: y [, mean, variance], workspace
void batch_norm(const Call& c, bool frozen) {
  const auto pd = BatchNorm(c.logical(1), c.attributes()).forward();
  const memory::desc channel = contiguous(c.shape(2));
  const int y = frozen ? 6 : 4, mean = frozen ? 4 : 5;
  if (!frozen) channel_statistics(c, 1, mean, mean + 1);
  const std::vector<Argument> inputs = {{DNNL_ARG_SRC, c.activation(1), c.data[1]},
                                        {DNNL_ARG_SCALE, channel, c.data[2]},
                                        {DNNL_ARG_SHIFT, channel, c.data[3]},
                                        {DNNL_ARG_MEAN, channel, c.data[mean]},
                                        {DNNL_ARG_VARIANCE, channel, c.data[mean + 1]}};
  std::vector<Argument> outputs = {{DNNL_ARG_DST, c.activation(y), c.data[y]}};
  if (pd.workspace_desc().get_size() > 0)
    outputs.push_back({DNNL_ARG_WORKSPACE, pd.workspace_desc(), c.data[7]});
  run(pd, inputs, outputs);
}

// inputs: attributes, x, scale, mean, variance, workspace, dy; outputs: dx, dscale, dshift
void batch_norm_grad(const Call& c) {
  const auto pd = BatchNorm(c.logical(1), c.attributes()).backward();
  const memory::desc channel = contiguous(c.shape(2));
  std::vector<Argument> inputs = {{DNNL_ARG_SRC, c.activation(1), c.data[1]},
                                  {DNNL_ARG_SCALE, channel, c.data[2]},
                                  {DNNL_ARG_MEAN, channel, c.data[3]},
                                  {DNNL_ARG_VARIANCE, channel, c.data[4]},
                                  {DNNL_ARG_DIFF_DST, c.activation(6), c.data[6]}};
  if (pd.workspace_desc().get_size() > 0) inputs.push_back({DNNL_ARG_WORKSPACE, pd.workspace_desc(), c.data[5]});
  run(pd, inputs,
      {{DNNL_ARG_DIFF_SRC, c.activation(7), c.data[7]},
       {DNNL_ARG_DIFF_SCALE, channel, c.data[8]},
       {DNNL_ARG_DIFF_SHIFT, channel, c.data[9]}});
}

// inputs: attributes, x; outputs: y, workspace
void max_pool(const Call& c) {
  const auto pd = Pooling(c.activation(1), c.activation(2), c.attributes()).forward(algorithm::pooling_max);
  run(pd, {{DNNL_ARG_SRC, c.activation(1), c.data[1]}},
      {{DNNL_ARG_DST, c.activation(2), c.data[2]}, {DNNL_ARG_WORKSPACE, pd.workspace_desc(), c.data[3]}});
}

// inputs: attributes, x (for its shape), workspace, dy; outputs: dx
void max_pool_grad(const Call& c) {
  const auto pd = Pooling(c.activation(1), c.activation(3), c.attributes()).backward(algorithm::pooling_max);
  run(pd,
      {{DNNL_ARG_DIFF_DST, c.activation(3), c.data[3]}, {DNNL_ARG_WORKSPACE, pd.workspace_desc(), c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(4), c.data[4]}});
}

void avg_pool(const Call& c) {
  const Pooling problem(c.activation(1), c.activation(2), c.attributes());
  run(problem.forward(problem.average), {{DNNL_ARG_SRC, c.activation(1), c.data[1]}},
      {{DNNL_ARG_DST, c.activation(2), c.data[2]}});
}

// inputs: attributes, x (for its shape), dy; outputs: dx
void avg_pool_grad(const Call& c) {
  const Pooling problem(c.activation(1), c.activation(2), c.attributes());
  run(problem.backward(problem.average), {{DNNL_ARG_DIFF_DST, c.activation(2), c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, c.activation(3), c.data[3]}});
}

std::string describe(int count, const int* ranks, int64_t** shapes) {
  std::string text;
  for (int i = 1; i < count; ++i) {
    text += i > 1 ? ", [" : "[";
    for (int j = 0; j < ranks[i]; ++j) text += (j ? ", " : "") + std::to_string(shapes[i][j]);
    text += "]";
  }
  return text;
}

}  // namespace

#define MINDVIDEO_OPERATOR(name, body)                                                                   \
  extern "C" __attribute__((visibility("default"))) int mindvideo_##name(                                \
      int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {                \
    const Call call{data, ranks, shapes};                                                                \
    try {                                                                                                \
      body;                                                                                              \
    } catch (const std::exception& error) {                                                              \
      throw std::runtime_error(#name " with shapes " + describe(count, ranks, shapes) + ": " + error.what()); \
    }                                                                                                    \
    return 0;                                                                                            \
  }

MINDVIDEO_OPERATOR(conv, conv(call, false))
MINDVIDEO_OPERATOR(conv_bias, conv(call, true))
MINDVIDEO_OPERATOR(conv_grad_input, conv_grad_input(call))
MINDVIDEO_OPERATOR(conv_grad_weight, conv_grad_weight(call, false))
MINDVIDEO_OPERATOR(conv_grad_weight_bias, conv_grad_weight(call, true))
MINDVIDEO_OPERATOR(batch_norm, batch_norm(call, false))
MINDVIDEO_OPERATOR(batch_norm_frozen, batch_norm(call, true))
MINDVIDEO_OPERATOR(batch_norm_grad, batch_norm_grad(call))
MINDVIDEO_OPERATOR(max_pool, max_pool(call))
MINDVIDEO_OPERATOR(max_pool_grad, max_pool_grad(call))
MINDVIDEO_OPERATOR(avg_pool, avg_pool(call))
MINDVIDEO_OPERATOR(avg_pool_grad, avg_pool_grad(call))

// Bytes that the forward pass leaves for the backward pass; MindSpore asks while it infers shapes. -1: no such
// operator for this shape, and the call itself will say why. x and y are logical shapes.
extern "C" __attribute__((visibility("default"))) int64_t mindvideo_batch_norm_workspace(
    int rank, const int64_t* x, const int64_t* attributes) try {
  return BatchNorm({x, x + rank}, attributes).forward().workspace_desc().get_size();
} catch (const std::exception&) {
  return -1;
}

extern "C" __attribute__((visibility("default"))) int64_t mindvideo_max_pool_workspace(
    int rank, const int64_t* x, const int64_t* y, const int64_t* attributes) try {
  const auto layout = attributes[0] ? channels_last : contiguous;
  const Pooling problem(layout({x, x + rank}), layout({y, y + rank}), attributes);
  return problem.forward(algorithm::pooling_max).workspace_desc().get_size();
} catch (const std::exception&) {
  return -1;
}

// The version of the oneDNN that our calls reach; another one in the process must not have taken its place.
extern "C" __attribute__((visibility("default"))) int mindvideo_onednn_major() { return version()->major; }
