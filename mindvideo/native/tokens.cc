// SPDX-License-Identifier: Apache-2.0
//
// What networks of tokens need: dense layers, layer norm, softmax, GELU, dropout; see operators.cc.

#include "call.h"

namespace {

// Of the last axis. attributes: bits of epsilon as float64
struct LayerNorm {
  memory::desc rows, statistics, vector;
  float epsilon;

  explicit LayerNorm(const Call& c)
      : rows(contiguous({c.rows(1), c.channels(1)})),
        statistics(contiguous({c.rows(1)})),
        vector(contiguous({c.channels(1)})) {
    epsilon = number(c.attributes()[0]);
  }

  normalization_flags affine = normalization_flags::use_scale | normalization_flags::use_shift;
  layer_normalization_forward::primitive_desc forward() const {
    return {cpu(), prop_kind::forward_training, rows, rows, statistics, epsilon, affine, user_scratchpad()};
  }
  layer_normalization_backward::primitive_desc backward() const {
    return {cpu(), prop_kind::backward, rows, rows, rows, statistics, epsilon, affine, forward(), user_scratchpad()};
  }
};

// inputs: attributes, x, scale, shift; outputs: y, mean, variance
void layer_norm(const Call& c) {
  const LayerNorm norm(c);
  run(plan(c, [&] { return norm.forward(); }),
      {{DNNL_ARG_SRC, norm.rows, c.data[1]},
       {DNNL_ARG_SCALE, norm.vector, c.data[2]},
       {DNNL_ARG_SHIFT, norm.vector, c.data[3]}},
      {{DNNL_ARG_DST, norm.rows, c.data[4]},
       {DNNL_ARG_MEAN, norm.statistics, c.data[5]},
       {DNNL_ARG_VARIANCE, norm.statistics, c.data[6]}});
}

// inputs: attributes, x, scale, shift (which oneDNN asks for), mean, variance, dy; outputs: dx, dscale, dshift
void layer_norm_grad(const Call& c) {
  const LayerNorm norm(c);
  run(plan(c, [&] { return norm.backward(); }),
      {{DNNL_ARG_SRC, norm.rows, c.data[1]},
       {DNNL_ARG_SCALE, norm.vector, c.data[2]},
       {DNNL_ARG_SHIFT, norm.vector, c.data[3]},
       {DNNL_ARG_MEAN, norm.statistics, c.data[4]},
       {DNNL_ARG_VARIANCE, norm.statistics, c.data[5]},
       {DNNL_ARG_DIFF_DST, norm.rows, c.data[6]}},
      {{DNNL_ARG_DIFF_SRC, norm.rows, c.data[7]},
       {DNNL_ARG_DIFF_SCALE, norm.vector, c.data[8]},
       {DNNL_ARG_DIFF_SHIFT, norm.vector, c.data[9]}});
}

softmax_forward::primitive_desc softmax_forward_of(const memory::desc& rows) {
  return {cpu(), prop_kind::forward_training, algorithm::softmax_accurate, rows, rows, 1, user_scratchpad()};
}

memory::desc rows_of(const Call& c) { return contiguous({c.rows(1), c.channels(1)}); }

// Of the last axis. inputs: attributes (none is looked at), x; outputs: y
void softmax(const Call& c) {
  const memory::desc rows = rows_of(c);
  run(plan(c, [&] { return softmax_forward_of(rows); }), {{DNNL_ARG_SRC, rows, c.data[1]}}, {{DNNL_ARG_DST, rows, c.data[2]}});
}

// inputs: attributes, y, dy; outputs: dx
void softmax_grad(const Call& c) {
  const memory::desc rows = rows_of(c);
  Plan& backward = plan(c, [&] {
    return softmax_backward::primitive_desc(cpu(), algorithm::softmax_accurate, rows, rows, rows, 1,
                                            softmax_forward_of(rows), user_scratchpad());
  });
  run(backward, {{DNNL_ARG_DST, rows, c.data[1]}, {DNNL_ARG_DIFF_DST, rows, c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, rows, c.data[3]}});
}

eltwise_forward::primitive_desc gelu_forward(const memory::desc& all) {
  return {cpu(), prop_kind::forward_training, algorithm::eltwise_gelu_erf, all, all, 0.f, 0.f, user_scratchpad()};
}

memory::desc flat(const Call& c) { return contiguous({c.rows(1) * c.channels(1)}); }

// inputs: attributes (none is looked at), x; outputs: y
void gelu(const Call& c) {
  const memory::desc all = flat(c);
  run(plan(c, [&] { return gelu_forward(all); }), {{DNNL_ARG_SRC, all, c.data[1]}}, {{DNNL_ARG_DST, all, c.data[2]}});
}

// inputs: attributes, x, dy; outputs: dx
void gelu_grad(const Call& c) {
  const memory::desc all = flat(c);
  Plan& backward = plan(c, [&] {
    return eltwise_backward::primitive_desc(cpu(), algorithm::eltwise_gelu_erf, all, all, all, 0.f, 0.f,
                                            gelu_forward(all), user_scratchpad());
  });
  run(backward, {{DNNL_ARG_SRC, all, c.data[1]}, {DNNL_ARG_DIFF_DST, all, c.data[2]}},
      {{DNNL_ARG_DIFF_SRC, all, c.data[3]}});
}

VECTORIZED void dropout(const float* __restrict x, int64_t first, int64_t last, uint32_t start, float share,
                        float scale, float* __restrict y) {
  for (int64_t i = first; i < last; ++i) {
    uint32_t hash = static_cast<uint32_t>(i) + start;  // Wellons' lowbias32, as in noise.py
    hash = (hash ^ (hash >> 16)) * 0x7FEB352Du;
    hash = (hash ^ (hash >> 15)) * 0x846CA68Bu;
    hash ^= hash >> 16;
    const float uniform = static_cast<float>(static_cast<int32_t>(hash >> 8)) * 0x1p-24f;
    y[i] = x[i] * (uniform >= share ? 1.f : 0.f) * scale;
  }
}

// attributes: the stream's start, the share that is dropped and the factor of the rest (the bits of doubles); seed [], x
void dropout(const Call& c) {
  const int64_t* a = c.attributes();
  const uint32_t start = *static_cast<const uint32_t*>(c.data[1]) + static_cast<uint32_t>(a[0]);
  const float share = number(a[1]), scale = number(a[2]);
  const float* x = c.values(2);
  float* y = c.values(3);
  each_piece(c.size(2), [=](int64_t first, int64_t last) { dropout(x, first, last, start, share, scale, y); });
}

// x [rows, I] times weight [O, I] transposed, plus a bias [O]
struct Dense {
  memory::desc x, weight, bias, y;

  Dense(int64_t rows, int64_t in, int64_t out)
      : x(contiguous({rows, in})), weight(any_layout({out, in})), bias(contiguous({out})), y(contiguous({rows, out})) {}

  inner_product_forward::primitive_desc forward(bool biased) const {
    return {cpu(), prop_kind::forward_training, x, weight, biased ? bias : memory::desc(), y, user_scratchpad()};
  }
  inner_product_backward_data::primitive_desc backward_data() const {
    return {cpu(), x, weight, y, forward(false), user_scratchpad()};
  }
  inner_product_backward_weights::primitive_desc backward_weights(bool biased) const {
    return {cpu(), x, weight, biased ? bias : memory::desc(), y, forward(biased), user_scratchpad()};
  }
};

// inputs: attributes (none is looked at), x, weight [, bias]; outputs: y
void dense(const Call& c, bool biased) {
  const int y = biased ? 4 : 3;
  const Dense layer(c.rows(1), c.channels(1), c.shapes[2][0]);
  std::vector<Argument> inputs = {{DNNL_ARG_SRC, layer.x, c.data[1]},
                                  {DNNL_ARG_WEIGHTS, contiguous(c.shape(2)), c.data[2]}};
  if (biased) inputs.push_back({DNNL_ARG_BIAS, layer.bias, c.data[3]});
  run(plan(c, [&] { return layer.forward(biased); }), inputs, {{DNNL_ARG_DST, layer.y, c.data[y]}});
}

// inputs: attributes, x (for its shape), weight, dy; outputs: dx
void dense_grad_input(const Call& c) {
  const Dense layer(c.rows(1), c.channels(1), c.shapes[2][0]);
  run(plan(c, [&] { return layer.backward_data(); }),
      {{DNNL_ARG_WEIGHTS, contiguous(c.shape(2)), c.data[2]}, {DNNL_ARG_DIFF_DST, layer.y, c.data[3]}},
      {{DNNL_ARG_DIFF_SRC, layer.x, c.data[4]}});
}

// inputs: attributes, x, weight (for its shape), dy; outputs: dweight [, dbias]
void dense_grad_weight(const Call& c, bool biased) {
  const Dense layer(c.rows(1), c.channels(1), c.shapes[2][0]);
  std::vector<Argument> outputs = {{DNNL_ARG_DIFF_WEIGHTS, contiguous(c.shape(2)), c.data[4]}};
  if (biased) outputs.push_back({DNNL_ARG_DIFF_BIAS, layer.bias, c.data[5]});
  run(plan(c, [&] { return layer.backward_weights(biased); }),
      {{DNNL_ARG_SRC, layer.x, c.data[1]}, {DNNL_ARG_DIFF_DST, layer.y, c.data[3]}}, outputs);
}

}  // namespace

MINDVIDEO_OPERATOR(layer_norm, layer_norm(call))
MINDVIDEO_OPERATOR(layer_norm_grad, layer_norm_grad(call))
MINDVIDEO_OPERATOR(softmax, softmax(call))
MINDVIDEO_OPERATOR(softmax_grad, softmax_grad(call))
MINDVIDEO_OPERATOR(gelu, gelu(call))
MINDVIDEO_OPERATOR(gelu_grad, gelu_grad(call))
MINDVIDEO_OPERATOR(dropout, dropout(call))
MINDVIDEO_OPERATOR(dense, dense(call, false))
MINDVIDEO_OPERATOR(dense_bias, dense(call, true))
MINDVIDEO_OPERATOR(dense_grad_input, dense_grad_input(call))
MINDVIDEO_OPERATOR(dense_grad_weight, dense_grad_weight(call, false))
MINDVIDEO_OPERATOR(dense_grad_weight_bias, dense_grad_weight(call, true))
