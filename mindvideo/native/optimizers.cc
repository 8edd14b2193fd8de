// SPDX-License-Identifier: Apache-2.0
//
// Steps of optimizers, each in one pass over its parameter: the same in MindSpore's own operators goes through memory
// five to eight times. They change parameter and moments in place; the output is a number nobody reads.

#include "call.h"

namespace {

VECTORIZED double square(const float* x, int64_t count) {
  double lanes[16] = {};  // several sums, since the compiler keeps the order of a single one
  const int64_t whole = count / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16)
    for (int k = 0; k < 16; ++k) lanes[k] += static_cast<double>(x[i + k]) * x[i + k];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  for (int64_t i = whole; i < count; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

// attributes (none is looked at), x; output: the sum of its squares, added up in double precision over pieces that do
// not depend on the number of threads
void square_sum(const Call& c) {
  const float* x = c.values(1);
  std::vector<double> sums((c.size(1) + kPiece - 1) / kPiece);
  each_piece(c.size(1), [&](int64_t first, int64_t last) { sums[first / kPiece] = square(x + first, last - first); });
  c.values(2)[0] = static_cast<float>(std::accumulate(sums.begin(), sums.end(), 0.0));
}

VECTORIZED void sgd(float* __restrict p, float* __restrict v, const float* __restrict g, int64_t first, int64_t last,
                    float rate, float gain, float momentum, float decay, float ahead, float stay) {
  for (int64_t i = first; i < last; ++i) {
    const float slope = gain * g[i] + decay * p[i];
    v[i] = momentum * v[i] + slope;
    p[i] -= rate * (ahead * slope + stay * v[i]);
  }
}

// attributes, each the bits of a double: momentum, decay, the rate's factor, Nesterov or not; rate [], gain [], parameter,
// velocity, gradient
void sgd(const Call& c) {
  const int64_t* a = c.attributes();
  const float momentum = number(a[0]), decay = number(a[1]), rate = c.values(1)[0] * number(a[2]);
  const bool nesterov = number(a[3]) != 0;
  const float ahead = nesterov ? 1.f : 0.f, stay = nesterov ? momentum : 1.f;
  const float gain = c.values(2)[0];
  float *p = c.values(3), *v = c.values(4), *g = c.values(5);
  each_piece(c.size(3), [=](int64_t first, int64_t last) {
    sgd(p, v, g, first, last, rate, gain, momentum, decay, ahead, stay);
  });
}

VECTORIZED void adamax(float* __restrict p, float* __restrict m, float* __restrict u, const float* __restrict g,
                       int64_t first, int64_t last, float rate, float gain, float decay) {
  for (int64_t i = first; i < last; ++i) {
    const float slope = gain * g[i] + decay * p[i];
    m[i] = 0.9f * m[i] + 0.1f * slope;
    u[i] = std::max(0.999f * u[i], std::fabs(slope) + 1e-8f);
    p[i] -= rate * m[i] / u[i];
  }
}

// attributes: decay, the rate's factor; rate [], gain [], parameter, mean, norm,
// gradient
void adamax(const Call& c) {
  const int64_t* a = c.attributes();
  const float decay = number(a[0]), rate = c.values(1)[0] * number(a[1]);
  const float gain = c.values(2)[0];
  float *p = c.values(3), *m = c.values(4), *u = c.values(5), *g = c.values(6);
  each_piece(c.size(3), [=](int64_t first, int64_t last) { adamax(p, m, u, g, first, last, rate, gain, decay); });
}

}  // namespace

MINDVIDEO_OPERATOR(square_sum, square_sum(call))
MINDVIDEO_OPERATOR(sgd, sgd(call))
MINDVIDEO_OPERATOR(adamax, adamax(call))
