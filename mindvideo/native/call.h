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
constexpr size_t kMostPlans = 512;  // of an operator: bounds what ever-changing shapes can take

const engine& cpu() {
  static const engine instance(engine::kind::cpu, 0);
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
  int count;
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

  // Attributes and all shapes, as bytes.
  std::string problem() const {
    std::vector<int64_t> numbers(attributes(), attributes() + shapes[0][0]);
    for (int i = 0; i < count; ++i) {
      numbers.push_back(ranks[i]);
      numbers.insert(numbers.end(), shapes[i], shapes[i] + ranks[i]);
    }
    return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t)};
  }
};

struct Argument {
  int id;  // DNNL_ARG_...
  memory::desc layout;
  void* data;
};

// A primitive made for one problem, with the layouts it wants and the reorders to and from them.
struct Plan {
  explicit Plan(const primitive_desc& made) : pd(made), compute(made), work(made.scratchpad_desc()) {}

  struct Place {
    memory::desc inside;
    bool is_same;
    primitive change;
  };

  primitive_desc pd;
  primitive compute;
  memory::desc work;
  std::unordered_map<int, Place> places;

  memory::desc workspace() const { return pd.query_md(query::workspace_md); }

  const Place& place(const Argument& argument, bool is_input) {
    const auto found = places.find(argument.id);
    if (found != places.end()) return found->second;
    Place made{pd.query_md(query::exec_arg_md, argument.id), false, {}};
    made.is_same = made.inside == argument.layout;
    const memory::desc &from = is_input ? argument.layout : made.inside, &to = is_input ? made.inside : argument.layout;
    if (!made.is_same) made.change = reorder(reorder::primitive_desc(cpu(), from, cpu(), to));
    return places.emplace(argument.id, made).first->second;
  }
};

// The plan of a call's problem, which `make` describes where none of its like came before. Attributes and shapes tell
// problems apart, and each place in the source has plans of its own.
template <class Make>
Plan& plan(const Call& c, const Make& make) {
  static thread_local std::unordered_map<std::string, Plan> plans;
  const std::string problem = c.problem();
  const auto found = plans.find(problem);
  if (found != plans.end()) return found->second;
  if (plans.size() >= kMostPlans) plans.clear();
  return plans.emplace(problem, Plan(make())).first->second;
}

// Runs a primitive on MindSpore's buffers, reordering those whose layout is not the one it was made for.
void run(Plan& plan, const std::vector<Argument>& inputs, const std::vector<Argument>& outputs) {
  static thread_local Scratch scratch;
  stream queue(cpu());
  size_t slot = 0;
  std::unordered_map<int, memory> bound;
  bound.emplace(DNNL_ARG_SCRATCHPAD, memory(plan.work, cpu(), scratch.get(slot++, plan.work.get_size())));

  const auto bind = [&](const Argument& argument, bool is_input) -> const Plan::Place& {
    const Plan::Place& place = plan.place(argument, is_input);
    void* data = place.is_same ? argument.data : scratch.get(slot++, place.inside.get_size());
    bound.emplace(argument.id, memory(place.inside, cpu(), data));
    return place;
  };
  const auto given = [](const Argument& argument) { return memory(argument.layout, cpu(), argument.data); };

  for (const auto& input : inputs) {
    const Plan::Place& place = bind(input, true);
    if (place.is_same) continue;
    place.change.execute(queue, {{DNNL_ARG_FROM, given(input)}, {DNNL_ARG_TO, bound.at(input.id)}});
  }
  for (const auto& output : outputs) bind(output, false);
  plan.compute.execute(queue, bound);
  for (const auto& output : outputs) {
    const Plan::Place& place = plan.place(output, false);
    if (place.is_same) continue;
    place.change.execute(queue, {{DNNL_ARG_FROM, bound.at(output.id)}, {DNNL_ARG_TO, given(output)}});
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
    const Call call{count, data, ranks, shapes};                                                         \
    try {                                                                                                \
      body;                                                                                              \
    } catch (const std::exception& error) {                                                              \
      throw std::runtime_error(#name " with shapes " + describe(count, ranks, shapes) + ": " + error.what()); \
    }                                                                                                    \
    return 0;                                                                                            \
  }

// Compiled for several processors; the one at hand chooses as the library is loaded.
#define VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default"), noinline))
