// SPDX-License-Identifier: Apache-2.0
//
// Steps of optimizers, each in one pass over its parameter: the same in MindSpore's own operators goes through memory
// five to eight times. They change parameter and moments in place; the output is a number nobody reads.

#include "call.h"

namespace {

VECTORIZED void sgd(float* __restrict p, float* __restrict v, const float* __restrict g, int64_t first, int64_t last,
                    float rate, float momentum, float decay, float ahead, float stay) {
  for (int64_t i = first; i < last; ++i) {
    const float slope = g[i] + decay * p[i];
    v[i] = momentum * v[i] + slope;
    p[i] -= rate * (ahead * slope + stay * v[i]);
  }
}

// attributes, each the bits of a double: momentum, decay, the rate's factor, Nesterov or not; rate [], parameter,
// velocity, gradient
void sgd(const Call& c) {
  const int64_t* a = c.attributes();
  const float momentum = number(a[0]), decay = number(a[1]), rate = c.values(1)[0] * number(a[2]);
  const bool nesterov = number(a[3]) != 0;
  const float ahead = nesterov ? 1.f : 0.f, stay = nesterov ? momentum : 1.f;
  float *p = c.values(2), *v = c.values(3), *g = c.values(4);
  each_piece(c.size(2), [=](int64_t first, int64_t last) { sgd(p, v, g, first, last, rate, momentum, decay, ahead, stay); });
}

VECTORIZED void adamax(float* __restrict p, float* __restrict m, float* __restrict u, const float* __restrict g,
                       int64_t first, int64_t last, float rate, float decay) {
  for (int64_t i = first; i < last; ++i) {
    const float slope = g[i] + decay * p[i];
    m[i] = 0.9f * m[i] + 0.1f * slope;
    u[i] = std::max(0.999f * u[i], std::fabs(slope) + 1e-8f);
    p[i] -= rate * m[i] / u[i];
  }
}

// attributes: decay, the rate's factor; rate [], parameter, mean, norm, gradient
void adamax(const Call& c) {
  const int64_t* a = c.attributes();
  const float decay = number(a[0]), rate = c.values(1)[0] * number(a[1]);
  float *p = c.values(2), *m = c.values(3), *u = c.values(4), *g = c.values(5);
  each_piece(c.size(2), [=](int64_t first, int64_t last) { adamax(p, m, u, g, first, last, rate, decay); });
}

}  // namespace

MINDVIDEO_OPERATOR(sgd, sgd(call))
MINDVIDEO_OPERATOR(adamax, adamax(call))
