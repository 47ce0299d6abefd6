// Roots of unity, accurate to the last digits without tables from the host.
#pragma once

#include "cuda/fragments.cuh"

namespace fastht::cuda {

// Cosine and sine of 2 pi m / period for 0 <= m < period. The nearest quarter turn is taken off in
// integers, where that is exact; over the eighth of a turn that remains, Taylor's series to the
// tenth order is exact in float. The library's functions bring a local array with them.
FASTHT_DEVICE Pair root(int m, int period) {
  constexpr float kQuarterTurn = 1.5707963267948966f;
  const int quarter = (8 * m + period) / (2 * period);
  const float angle =
      static_cast<float>(4 * m - quarter * period) * kQuarterTurn / static_cast<float>(period);
  const float q = angle * angle;
  float cos = fused(q, -1.0f / 3628800, 1.0f / 40320);
  cos = fused(q, fused(q, fused(q, fused(q, cos, -1.0f / 720), 1.0f / 24), -0.5f), 1.0f);
  float sin = fused(q, 1.0f / 362880, -1.0f / 5040);
  sin = fused(q, fused(q, fused(q, sin, 1.0f / 120), -1.0f / 6) * angle, angle);
  Pair result = {cos, sin};
  if (quarter % 2 == 1) result = {sin, cos};
  if (quarter % 4 == 1 || quarter % 4 == 2) result.x = -result.x;
  if (quarter % 4 >= 2) result.y = -result.y;
  return result;
}

// The roots of some frequencies at the places 0, 1, 2, ... one after another: root k * place of
// `period`, from a table of them all.
template <int kCount>
struct Turns {
  const Pair* table;
  int period, at[kCount], step[kCount];

  // Frequencies first, first + 1, ... below `end`; the others stay at root 0.
  FASTHT_DEVICE Turns(const Pair* roots, int size, int first, int end)
      : table(roots), period(size) {
    FASTHT_UNROLL for (int i = 0; i < kCount; ++i)
      at[i] = 0, step[i] = first + i < end ? first + i : 0;
  }
  FASTHT_DEVICE Pair operator[](int i) const { return table[at[i]]; }
  FASTHT_DEVICE void advance() {
    FASTHT_UNROLL for (int i = 0; i < kCount; ++i) {
      at[i] += step[i];
      if (at[i] >= period) at[i] -= period;
    }
  }
};

}  // namespace fastht::cuda
