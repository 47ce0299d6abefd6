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

// In two passes. The second one sums deviations from the first one's mean, which are exact where
// the row's offset is large: their squares lose no digits, and their own sum mends the mean.
template <class T>
RowStats row_stats(const T* x, int64_t dim, float eps) {
  constexpr int64_t chains = 4;  // as many sums as hide the latency of an addition
  const float count = static_cast<float>(dim);
  Vec totals[chains] = {};
  float rest = 0.0f;
  int64_t j = 0;
  for (; j + chains * kLanes <= dim; j += chains * kLanes)
    for (int64_t i = 0; i < chains; ++i) totals[i] += load(x + j + i * kLanes);
  for (; j < dim; ++j) rest += to_float(x[j]);
  const float first = (sum((totals[0] + totals[1]) + (totals[2] + totals[3])) + rest) / count;

  Vec deviations[chains] = {}, squares[chains] = {};
  float rest_of_squares = rest = 0.0f;
  for (j = 0; j + chains * kLanes <= dim; j += chains * kLanes)
    for (int64_t i = 0; i < chains; ++i) {
      const Vec deviation = load(x + j + i * kLanes) - first;
      deviations[i] += deviation;
      squares[i] += deviation * deviation;
    }
  for (; j < dim; ++j) {
    const float deviation = to_float(x[j]) - first;
    rest += deviation;
    rest_of_squares += deviation * deviation;
  }
  const float shift =
      (sum((deviations[0] + deviations[1]) + (deviations[2] + deviations[3])) + rest) / count;
  const float square =
      (sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + rest_of_squares) / count;
  return {first + shift, 1.0f / __builtin_sqrtf(square - shift * shift + eps)};
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
      store(at.dx + r * at.dx_stride + j, load(at.dout + r * at.dout_stride + j, extent) + update,
            extent);
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
