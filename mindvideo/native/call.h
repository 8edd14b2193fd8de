// SPDX-License-Identifier: Apache-2.0
//
// How an operator reaches oneDNN: the buffers that MindSpore hands over, memory layouts, and running a primitive.

#pragma once

#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <cmath>
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

// Logical shapes are [N, C, spatial...], as oneDNN has them; in memory the channels are last.
memory::desc channels_last(const dims& shape) {
  dims strides(shape.size());
  int64_t step = shape[1];
  for (size_t i = shape.size(); i-- > 2; step *= shape[i]) strides[i] = step;
  strides[0] = step;
  strides[1] = 1;
  return {shape, kFloat, strides};
}

// Weights and vectors lie as their shape says.
memory::desc contiguous(const dims& shape) {
  dims strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return {shape, kFloat, strides};
}

memory::desc any_layout(const dims& shape) { return {shape, kFloat, memory::format_tag::any}; }

struct Call {
  void** data;
  const int* ranks;
  int64_t** shapes;

  const int64_t* attributes() const { return static_cast<const int64_t*>(data[0]); }
  float* values(int i) const { return static_cast<float*>(data[i]); }
  int spatial(int i) const { return ranks[i] - 2; }
  int64_t size(int i) const { return std::accumulate(shapes[i], shapes[i] + ranks[i], int64_t{1}, std::multiplies<>()); }
  dims shape(int i) const { return {shapes[i], shapes[i] + ranks[i]}; }
  int64_t channels(int i) const { return shapes[i][ranks[i] - 1]; }
  int64_t rows(int i) const { return std::accumulate(shapes[i], shapes[i] + ranks[i] - 1, int64_t{1}, std::multiplies<>()); }

  dims logical(int i) const {
    dims s = shape(i);
    s.insert(s.begin() + 1, s.back());
    s.pop_back();
    return s;
  }
  memory::desc activation(int i) const { return channels_last(logical(i)); }
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

constexpr int64_t kPiece = 1 << 14;  // values that a thread takes at once; they stay in the nearest cache

template <class Body>
void each_piece(int64_t size, const Body& body) {
#pragma omp parallel for
  for (int64_t first = 0; first < size; first += kPiece) body(first, std::min(size, first + kPiece));
}

// An attribute that is the bits of a double.
float number(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
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

// An operator by MindSpore's signature. A failure is thrown: MindSpore turns it into a Python RuntimeError.
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

// Compiled for several processors; the one at hand chooses as the library is loaded.
#define VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default"), noinline))
