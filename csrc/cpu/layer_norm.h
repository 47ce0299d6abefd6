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

template <class T>
RowStats row_stats(const T* x, int64_t dim, float eps) {
  Vec total[2] = {};
  int64_t j = 0;
  for (; j + 2 * kLanes <= dim; j += 2 * kLanes) {
    total[0] += load(x + j);
    total[1] += load(x + j + kLanes);
  }
  for (; j < dim; j += kLanes) total[0] += load(x + j, dim - j);
  const float mean = sum(total[0] + total[1]) / static_cast<float>(dim);

  // Of the deviations: the mean of squares less the square of the mean loses every digit where
  // a row's offset is large.
  Vec squares[2] = {};
  for (j = 0; j + 2 * kLanes <= dim; j += 2 * kLanes) {
    const Vec first = load(x + j) - mean, second = load(x + j + kLanes) - mean;
    squares[0] += first * first;
    squares[1] += second * second;
  }
  float tail = 0.0f;
  for (; j < dim; ++j) {
    const float deviation = to_float(x[j]) - mean;
    tail += deviation * deviation;
  }
  const float variance = (sum(squares[0] + squares[1]) + tail) / static_cast<float>(dim);
  return {mean, 1.0f / __builtin_sqrtf(variance + eps)};
}

FASTHT_INLINE Vec mixed(Vec x, RowStats stats, const MixVectors& mix, int64_t j) {
  const Vec normalised = (x - stats.mean) * stats.rstd;
  return x * load(mix.skip + j) + (normalised * load(mix.scale + j) + load(mix.shift + j));
}

// h of one token as a row of a left factor; zeros from dim to `padded`.
template <class T, class Out>
void mix_row(const T* x, int64_t dim, int64_t padded, RowStats stats, const MixVectors& mix,
             Out* h) {
  int64_t j = 0;
  for (; j + kLanes <= dim; j += kLanes) store(h + j, mixed(load(x + j), stats, mix, j));
  if (j < dim) {
    store(h + j, Vec{});
    store(h + j, mixed(load(x + j, dim - j), stats, mix, j), dim - j);
    j += kLanes;
  }
  if (j < padded) zero(h + j, (padded - j) * sizeof(Out));
}

// Sums over tokens from which the gradients of gammax, gamma, norm.weight and norm.bias follow.
struct ColumnSums {
  float* dh_x;     // sum of dh * x
  float* dh_norm;  // sum of dh * (x - mean) * rstd
  float* dh;       // sum of dh
};

// Adds rows of dh to the column sums and turns them into the gradient of x:
//   dx = dout + dh * gammax + rstd * (e - mean(e) - xhat * mean(e * xhat)),  e = dh * gamma * w.
// dx is null where it is not wanted. dh has `stride` elements a row, zeros beyond dim.
template <class T>
void mix_backward_rows(int64_t rows, int64_t dim, const float* dh, int64_t stride, const T* x,
                       int64_t x_stride, const T* dout, int64_t dout_stride,
                       const RowStats* stats, const MixVectors& mix, const ColumnSums& sums, T* dx,
                       int64_t dx_stride) {
  constexpr int64_t group = 8;  // rows whose two sums stay in registers
  for (int64_t r0 = 0; r0 < rows; r0 += group) {
    const int64_t count = min(group, rows - r0);
    Vec first[group] = {}, second[group] = {};
    for (int64_t j = 0; j < dim; j += kLanes) {
      Vec by_x = load(sums.dh_x + j), by_norm = load(sums.dh_norm + j), by_one = load(sums.dh + j);
      const Vec scale = load(mix.scale + j);
      for (int64_t r = 0; r < count; ++r) {
        const Vec value = load(x + (r0 + r) * x_stride + j, dim - j);
        const Vec normalised = (value - stats[r0 + r].mean) * stats[r0 + r].rstd;
        const Vec gradient = load(dh + (r0 + r) * stride + j);
        by_x += gradient * value;
        by_norm += gradient * normalised;
        by_one += gradient;
        first[r] += gradient * scale;
        second[r] += gradient * scale * normalised;
      }
      store(sums.dh_x + j, by_x);
      store(sums.dh_norm + j, by_norm);
      store(sums.dh + j, by_one);
    }
    if (dx == nullptr) continue;
    for (int64_t r = 0; r < count; ++r) {
      const RowStats s = stats[r0 + r];
      const float mean_first = sum(first[r]) / static_cast<float>(dim);
      const float mean_second = sum(second[r]) / static_cast<float>(dim);
      const T* x_row = x + (r0 + r) * x_stride;
      const T* dout_row = dout + (r0 + r) * dout_stride;
      T* dx_row = dx + (r0 + r) * dx_stride;
      const float* dh_row = dh + (r0 + r) * stride;
      for (int64_t j = 0; j < dim; j += kLanes) {
        const Vec normalised = (load(x_row + j, dim - j) - s.mean) * s.rstd;
        const Vec gradient = load(dh_row + j);
        const Vec through_norm =
            gradient * load(mix.scale + j) - mean_first - normalised * mean_second;
        const Vec update = gradient * load(mix.skip + j) + through_norm * s.rstd;
        store(dx_row + j, load(dout_row + j, dim - j) + update, dim - j);
      }
    }
  }
}

}  // namespace
}  // namespace fastht::cpu
