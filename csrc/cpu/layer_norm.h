// The LayerNorm mix of eq. 1, h = LayerNorm(x) * gamma + x * gammax, and its gradients, by rows of
// tokens that are in the first-level cache.
#pragma once

#include "cpu/vec.h"

namespace fastht::cpu {
namespace {

// The four vectors of eq. 1 as the rows need them, each padded with zeros to a multiple of 16.
struct MixVectors {
  const float* skip;   // gammax
  const float* scale;  // gamma * norm.weight
  const float* shift;  // gamma * norm.bias
};

struct RowStats {
  float mean, rstd;
};

// Sum over the columns of what `term`, one function for vectors and for single columns, makes of
// them.
template <class T, class Term>
FASTHT_INLINE float sum_row(const T* x, int64_t dim, Term&& term) {
  constexpr int64_t chains = 4;  // as many sums as hide the latency of an addition
  Vec totals[chains] = {};
  int64_t j = 0;
  for (; j + chains * kLanes <= dim; j += chains * kLanes)
    for (int64_t i = 0; i < chains; ++i) totals[i] += term(load(x + j + i * kLanes));
  for (; j + kLanes <= dim; j += kLanes) totals[0] += term(load(x + j));
  float last = 0.0f;
  for (; j < dim; ++j) last += term(to_float(x[j]));
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3])) + last;
}

template <class T>
RowStats row_stats(const T* x, int64_t dim, float eps) {
  const float mean = sum_row(x, dim, [](auto v) { return v; }) / static_cast<float>(dim);
  // Of the deviations: the mean of squares less the square of the mean loses every digit where a
  // row's offset is large.
  const float squares = sum_row(x, dim, [mean](auto v) { return (v - mean) * (v - mean); });
  return {mean, 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps)};
}

FASTHT_INLINE Vec mixed(Vec x, RowStats stats, const MixVectors& mix, int64_t j) {
  const Vec normalised = (x - stats.mean) * stats.rstd;
  return x * load(mix.skip + j) + (normalised * load(mix.scale + j) + load(mix.shift + j));
}

// h of one token as a row of a left factor; zeros from dim to `padded`.
template <class T, class Out>
void mix_row(const T* x, int64_t dim, int64_t padded, RowStats stats, const MixVectors& mix,
             Out* h) {
  each_vector(dim, [&](int64_t j, auto extent) {
    store(h + j, mixed(load(x + j, extent), stats, mix, j), extent);
  });
  zero(h + dim, (padded - dim) * sizeof(Out));
}

// Sums over tokens from which the gradients of gammax, gamma, norm.weight and norm.bias follow.
struct ColumnSums {
  float* dh_x;     // sum of dh * x
  float* dh_norm;  // sum of dh * (x - mean) * rstd
  float* dh;       // sum of dh
};

// What mix_backward reads and writes of some tokens, row by row; dh has zeros beyond dim.
template <class T>
struct MixRows {
  const float* dh;
  const T *x, *dout;
  T* dx;  // null where it is not wanted
  int64_t dh_stride, x_stride, dout_stride, dx_stride;
  const RowStats* stats;
};

// Adds `Rows` rows of dh to the column sums and turns them into the gradient of x:
//   dx = dout + dh * gammax + rstd * (e - mean(e) - xhat * mean(e * xhat)),  e = dh * gamma * w.
template <int Rows, class T>
void mix_backward_tile(const MixRows<T>& at, int64_t dim, const MixVectors& mix,
                       const ColumnSums& sums) {
  Vec first[Rows] = {}, second[Rows] = {};
  each_vector(dim, [&](int64_t j, auto extent) {
    Vec by_x = load(sums.dh_x + j), by_norm = load(sums.dh_norm + j), by_one = load(sums.dh + j);
    const Vec scale = load(mix.scale + j);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const Vec x = load(at.x + r * at.x_stride + j, extent);
      const Vec normalised = (x - at.stats[r].mean) * at.stats[r].rstd;
      const Vec dh = load(at.dh + r * at.dh_stride + j), e = dh * scale;
      by_x += dh * x;
      by_norm += dh * normalised;
      by_one += dh;
      first[r] += e;
      second[r] += e * normalised;
    }
    store(sums.dh_x + j, by_x);
    store(sums.dh_norm + j, by_norm);
    store(sums.dh + j, by_one);
  });
  if (at.dx == nullptr) return;
  for (int r = 0; r < Rows; ++r) {
    const RowStats stats = at.stats[r];
    const float mean_first = sum(first[r]) / static_cast<float>(dim);
    const float mean_second = sum(second[r]) / static_cast<float>(dim);
    each_vector(dim, [&](int64_t j, auto extent) {
      const Vec x = load(at.x + r * at.x_stride + j, extent);
      const Vec normalised = (x - stats.mean) * stats.rstd;
      const Vec dh = load(at.dh + r * at.dh_stride + j);
      const Vec through = dh * load(mix.scale + j) - mean_first - normalised * mean_second;
      const Vec update = dh * load(mix.skip + j) + through * stats.rstd;
      store(at.dx + r * at.dx_stride + j,
            load(at.dout + r * at.dout_stride + j, extent) + update, extent);
    });
  }
}

template <class T>
void mix_backward(MixRows<T> at, int64_t rows, int64_t dim, const MixVectors& mix,
                  const ColumnSums& sums) {
  const auto step = [&](int64_t count) {
    at.dh += count * at.dh_stride;
    at.x += count * at.x_stride;
    at.dout += count * at.dout_stride;
    if (at.dx != nullptr) at.dx += count * at.dx_stride;
    at.stats += count;
  };
  for (; rows >= 3; rows -= 3, step(3)) mix_backward_tile<3>(at, dim, mix, sums);
  for (; rows >= 1; rows -= 1, step(1)) mix_backward_tile<1>(at, dim, mix, sums);
}

}  // namespace
}  // namespace fastht::cpu
