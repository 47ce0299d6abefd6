// Bringing matrices into the layouts that gemm.h reads.
#pragma once

#include "cpu/gemm.h"
#include "cpu/problem.h"

namespace fastht::cpu {
namespace {

// Where B[k, column] of a panel of `width` columns lies.
FASTHT_INLINE int64_t packed_at(int64_t k, int64_t column, int64_t width) {
  return kPairs ? (k / 2 * width + column) * 2 + k % 2 : k * width + column;
}

// Two rows of B, k even and k + 1, in packed order.
FASTHT_INLINE void store_rows(float* b, int64_t width, int64_t column, Vec first, Vec second) {
  store(b + column, first);
  store(b + width + column, second);
}
#if defined(__AVX512BF16__)
FASTHT_INLINE void store_rows(BFloat16* b, int64_t, int64_t column, Vec first, Vec second) {
  const VecBits low = __builtin_convertvector(round_to_half(first), VecBits);
  const VecBits high = __builtin_convertvector(round_to_half(second), VecBits);
  const VecBits pairs = low | high << 16;
  __builtin_memcpy(b + column * 2, &pairs, sizeof pairs);
}
#endif

// A matrix B[k, n] = w[k * stride_k + n * stride_n] of which one stride is 1.
struct Weight {
  const Array& w;
  int64_t stride_k, stride_n;
  int64_t depth, columns;
};

template <class T>
void pack_rows(const Weight& from, const T* w, int64_t packed_depth, int64_t panel, int64_t first,
               int64_t last, Operand* packed) {
  const int64_t n0 = panel * kPanel, width = panel_width(round_up(from.columns, kPad), panel);
  Operand* b = packed + n0 * packed_depth;
  const int64_t valid = min(from.columns - n0, width);
  if (from.stride_n == 1) {  // rows of w are rows of B
    const auto row = [&](int64_t k, int64_t j) {
      return k < from.depth ? load(w + k * from.stride_k + n0 + j, valid - j) : Vec{};
    };
    int64_t k = first;
    for (; k + 2 <= last; k += 2)
      for (int64_t j = 0; j < width; j += kLanes)
        store_rows(b + k * width, width, j, row(k, j), row(k + 1, j));
    if (k < last)  // an odd depth, which products in pairs do not have
      for (int64_t j = 0; j < width; j += kLanes) store(b + k * width + j, row(k, j));
    return;
  }
  constexpr int64_t block = 16;  // of w's lines while they are in the first-level cache
  for (int64_t k0 = first; k0 < last; k0 += block) {
    const int64_t k1 = min(k0 + block, last), inside = min(k1, from.depth);
    for (int64_t n = 0; n < valid; ++n)
      for (int64_t k = k0; k < inside; ++k)
        from_float(to_float(w[k * from.stride_k + (n0 + n) * from.stride_n]),
                   b + packed_at(k, n, width));
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t n = k < from.depth ? valid : 0; n < width; ++n)
        from_float(0.0f, b + packed_at(k, n, width));
  }
}

// Packs rows [first, last) of one panel; what lies beyond [depth, columns] is zero.
FASTHT_INLINE void pack_weight(const Weight& from, int64_t packed_depth, int64_t panel,
                               int64_t first, int64_t last, Operand* packed) {
  if (from.w.dtype == DType::kFloat32)
    pack_rows(from, static_cast<const float*>(from.w.data), packed_depth, panel, first, last,
              packed);
  else
    pack_rows(from, static_cast<const BFloat16*>(from.w.data), packed_depth, panel, first, last,
              packed);
}

// A[m, k] = rows[k * ld + m] for m < columns, k < depth: the left factor of a product that sums
// over tokens. Rows of A lie `lda` apart; its padding along k is zero.
FASTHT_INLINE void transpose_rows(const float* rows, int64_t ld, int64_t columns, int64_t depth,
                                  Operand* a, int64_t lda) {
  constexpr int64_t block = 16;
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t k1 = min(k0 + block, depth);
    for (int64_t m = 0; m < columns; ++m)
      for (int64_t k = k0; k < k1; ++k) from_float(rows[k * ld + m], a + m * lda + k);
  }
  for (int64_t m = 0; m < columns; ++m) zero(a + m * lda + depth, (lda - depth) * sizeof(Operand));
}

// A row of `columns` float32 numbers, a multiple of 16, as a row of A of `lda` elements.
FASTHT_INLINE void operand_row(const float* row, int64_t columns, Operand* a, int64_t lda) {
  for (int64_t c = 0; c < columns; c += kLanes) store(a + c, load(row + c));
  zero(a + columns, (lda - columns) * sizeof(Operand));
}

// A row of tokens as a row of A; zeros from dim to `padded`.
template <class T>
FASTHT_INLINE void copy_row(const T* row, int64_t dim, int64_t padded, Operand* a) {
  each_vector(dim, [&](int64_t j, auto extent) { store(a + j, load(row + j, extent), extent); });
  zero(a + dim, (padded - dim) * sizeof(Operand));
}

// Adds `count` rows of `columns` to one row of sums.
template <class T>
void add_rows(const T* rows, int64_t stride, int64_t count, int64_t columns, float* sums) {
  constexpr int64_t block = 64;  // short sums keep rounding errors small
  for (int64_t t0 = 0; t0 < count; t0 += block, rows += block * stride)
    each_vector(columns, [&](int64_t j, auto extent) {
      Vec totals[4] = {};  // as many as hide the latency of an addition
      const int64_t end = min(count - t0, block);
      int64_t t = 0;
      for (; t + 4 <= end; t += 4)
        for (int64_t i = 0; i < 4; ++i) totals[i] += load(rows + (t + i) * stride + j, extent);
      for (; t < end; ++t) totals[0] += load(rows + t * stride + j, extent);
      store(sums + j, load(sums + j) + ((totals[0] + totals[1]) + (totals[2] + totals[3])));
    });
}

// Right factor of a product that sums over tokens: B[t, j] = value(t, j, extent) for one panel of
// which `valid` columns exist; zeros from `count` to the padded depth.
template <class Value>
FASTHT_INLINE void pack_tokens(Operand* b, int64_t width, int64_t valid, int64_t count,
                               int64_t depth, Value&& value) {
  const int64_t whole = valid / kLanes * kLanes;
  int64_t t = 0;
  for (; t + 2 <= count; t += 2) {
    Operand* to = b + t * width;
    for (int64_t j = 0; j < whole; j += kLanes)
      store_rows(to, width, j, value(t, j, Whole{}), value(t + 1, j, Whole{}));
    for (int64_t j = whole; j < width; j += kLanes)
      store_rows(to, width, j, value(t, j, Last{valid - j}), value(t + 1, j, Last{valid - j}));
  }
  for (; t < count; t += 2)
    for (int64_t j = 0; j < width; j += kLanes)
      store_rows(b + t * width, width, j, value(t, j, Last{valid - j}), Vec{});
  if (t < depth) zero(b + t * width, (depth - t) * width * sizeof(Operand));
}

}  // namespace
}  // namespace fastht::cpu
