// All matrix products: C[M, N] (+)= A[M, K] · B[K, N], tall and skinny, sums in float32.
//
// A is row-major with K contiguous. B is packed in panels of 64 columns, each panel row-major; the
// last may be 16, 32 or 48 wide. bf16 factors are stored in pairs along K, as the dot instructions
// read them: B[k / 2][column][k % 2].
//
// Every element of C is one sum over k in ascending order, added to C as a whole, however the rows
// are cut into tiles: results do not depend on how work is split among threads, and a long sum made
// of several products is one of blocks, which keeps its rounding errors small.
#pragma once

#include "cpu/vec.h"

namespace fastht::cpu {
namespace {

constexpr int64_t kPanel = 64;

// The operand type of this path's products, and how many rows one pass over B is best made for.
#if defined(__AMX_BF16__)
using Operand = BFloat16;
constexpr int64_t kTileRows = 16;
#elif defined(__AVX512BF16__)
using Operand = BFloat16;
constexpr int64_t kTileRows = 6;
#else
using Operand = float;
constexpr int64_t kTileRows = 6;
#endif
constexpr bool kPairs = sizeof(Operand) == 2;

// K is padded with zeros to a multiple of this in A and B, and M to a multiple of kRowPad in A
// and C, whose extra rows hold nothing of meaning.
#if defined(__AMX_BF16__)
constexpr int64_t kDepthPad = 32, kRowPad = 16;
#elif defined(__AVX512BF16__)
constexpr int64_t kDepthPad = 2, kRowPad = 1;
#else
constexpr int64_t kDepthPad = 1, kRowPad = 1;
#endif

FASTHT_INLINE int64_t padded_depth(int64_t k) { return round_up(k, kDepthPad); }
FASTHT_INLINE int64_t padded_rows(int64_t m) { return round_up(m, kRowPad); }

// Columns of accumulators that, with six rows, fill the registers.
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

// What to bring into the cache while a product runs, as the code around it reads rows that the
// hardware does not foresee. Nothing is read: an address may lie anywhere.
struct Ahead {
  const char* at = nullptr;
  int64_t step = 0;  // bytes from one k to the next
  int64_t tile = 0;  // bytes from one tile of C to the next

  FASTHT_INLINE void fetch(int64_t k) const { __builtin_prefetch(at + k * step); }
  FASTHT_INLINE void next_tile() { at += tile; }
};

// The rows of tokens that the next kTileRows rows of a product of depth or width `dim` will need,
// where rows follow one another in memory.
template <class T>
FASTHT_INLINE Ahead rows_ahead(const T* rows, int64_t depth) {
  const int64_t step = kTileRows * sizeof(T);
  return {reinterpret_cast<const char*>(rows), step, depth * step};
}

template <class T>
struct Step;  // one step of a dot product along k, for a whole vector of columns

template <>
struct Step<float> {
  using Factor = Vec;
  static constexpr int depth = 1;
  static FASTHT_INLINE Factor factor(const float* a) { return broadcast(*a); }
  static FASTHT_INLINE Vec columns(const float* b) { return load(b); }
  static FASTHT_INLINE Vec add(Vec sum, Factor a, Vec b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct Step<BFloat16> {
  using Factor = __m512bh;
  static constexpr int depth = 2;
  static FASTHT_INLINE Factor factor(const BFloat16* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static FASTHT_INLINE __m512bh columns(const BFloat16* b) {
    return (__m512bh)_mm512_loadu_si512(b);
  }
  static FASTHT_INLINE Vec add(Vec sum, Factor a, __m512bh b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, a, b);
  }
};
#endif

template <class T, int Rows, int Vectors>
__attribute__((noinline)) void tile(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                                    float* c, int64_t ldc, bool accumulate, const Ahead& ahead) {
  constexpr int step = Step<T>::depth;
  Vec sums[Rows][Vectors] = {};
  for (int64_t k = 0; k < depth; k += step) {
    ahead.fetch(k);
    decltype(Step<T>::columns(b)) columns[Vectors];
    for (int v = 0; v < Vectors; ++v)
      columns[v] = Step<T>::columns(b + k * ldb + v * step * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const auto factor = Step<T>::factor(a + r * lda + k);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Step<T>::add(sums[r][v], factor, columns[v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      float* to = c + r * ldc + v * kLanes;
      store(to, accumulate ? load(to) + sums[r][v] : sums[r][v]);
    }
}

template <class T, int Vectors>
FASTHT_INLINE void row_tiles(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b,
                             int64_t ldb, float* c, int64_t ldc, bool accumulate, Ahead& ahead) {
  for (; rows >= 6; rows -= 6, a += 6 * lda, c += 6 * ldc, ahead.next_tile())
    tile<T, 6, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
  switch (rows) {
    case 5: return tile<T, 5, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
    case 4: return tile<T, 4, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
    case 3: return tile<T, 3, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
    case 2: return tile<T, 2, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
    case 1: return tile<T, 1, Vectors>(depth, a, lda, b, ldb, c, ldc, accumulate, ahead);
    default: return;
  }
}

// The product with columns of B that lie `ldb` apart (64 in a packed panel).
template <class T>
void gemm_columns(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t lda, const T* b,
                  int64_t ldb, float* c, int64_t ldc, bool accumulate, Ahead ahead = {}) {
  constexpr int64_t width = kTileVectors * kLanes;
  for (int64_t n = 0; n < columns; n += width) {
    const T* from = b + n * Step<T>::depth;
    float* to = c + n;
    switch (min(columns - n, width) / kLanes) {
      case 1: row_tiles<T, 1>(rows, depth, a, lda, from, ldb, to, ldc, accumulate, ahead); break;
      case 2: row_tiles<T, 2>(rows, depth, a, lda, from, ldb, to, ldc, accumulate, ahead); break;
      case 3:
        row_tiles<T, min(3, kTileVectors)>(rows, depth, a, lda, from, ldb, to, ldc, accumulate,
                                           ahead);
        break;
      default:
        row_tiles<T, kTileVectors>(rows, depth, a, lda, from, ldb, to, ldc, accumulate, ahead);
    }
  }
}

#if defined(__AMX_BF16__)

// AMX has eight tiles of 16 rows of 64 bytes: four sums, one of A and the columns of B in turn.
struct AmxConfiguration {
  alignas(64) uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

FASTHT_INLINE void prepare_products() {
  const AmxConfiguration configuration;
  _tile_loadconfig(&configuration);
}
FASTHT_INLINE void finish_products() { _tile_release(); }

// 16 rows and one panel. `ldb` and `ldc` in elements; one row of a B tile is a pair along k.
FASTHT_INLINE void amx_block(int64_t width, int64_t depth, const BFloat16* a, int64_t lda,
                             const BFloat16* b, int64_t ldb, float* c, int64_t ldc, bool accumulate,
                             const Ahead& ahead) {
  const int64_t b_bytes = ldb * 2 * sizeof(BFloat16), c_bytes = ldc * sizeof(float);
  const int64_t a_bytes = lda * sizeof(BFloat16);
#define FASTHT_EACH(do_column)                        \
  do_column(0, 5) if (width > 16) { do_column(1, 6) } \
  if (width > 32) {                                   \
    do_column(2, 7)                                   \
  }                                                   \
  if (width > 48) {                                   \
    do_column(3, 5)                                   \
  }
#define FASTHT_LOAD(column, b_tile) _tile_loadd(column, c + column * 16, c_bytes);
#define FASTHT_ZERO(column, b_tile) _tile_zero(column);
#define FASTHT_DOT(column, b_tile)                         \
  _tile_loadd(b_tile, b + k * ldb + column * 32, b_bytes); \
  _tile_dpbf16ps(column, 4, b_tile);
#define FASTHT_STORE(column, b_tile) _tile_stored(column, c + column * 16, c_bytes);
  if (accumulate) {
    FASTHT_EACH(FASTHT_LOAD)
  } else {
    FASTHT_EACH(FASTHT_ZERO)
  }
  for (int64_t k = 0; k < depth; k += 32) {
    for (int64_t i = 0; i < 32; i += 2) ahead.fetch(k + i);
    _tile_loadd(4, a + k, a_bytes);
    FASTHT_EACH(FASTHT_DOT)
  }
  FASTHT_EACH(FASTHT_STORE)
#undef FASTHT_EACH
#undef FASTHT_LOAD
#undef FASTHT_ZERO
#undef FASTHT_DOT
#undef FASTHT_STORE
}

FASTHT_INLINE void gemm_panel(int64_t rows, int64_t width, int64_t depth, const BFloat16* a,
                              int64_t lda, const BFloat16* b, float* c, int64_t ldc,
                              bool accumulate, Ahead ahead = {}) {
  for (int64_t m = 0; m < rows; m += 16, ahead.next_tile())
    amx_block(width, depth, a + m * lda, lda, b, width, c + m * ldc, ldc, accumulate, ahead);
}

#else

FASTHT_INLINE void prepare_products() {}
FASTHT_INLINE void finish_products() {}

FASTHT_INLINE void gemm_panel(int64_t rows, int64_t width, int64_t depth, const Operand* a,
                              int64_t lda, const Operand* b, float* c, int64_t ldc, bool accumulate,
                              const Ahead& ahead = {}) {
  gemm_columns(rows, width, depth, a, lda, b, width, c, ldc, accumulate, ahead);
}

#endif

FASTHT_INLINE int64_t panel_width(int64_t columns, int64_t panel) {
  return min(columns - panel * kPanel, kPanel);
}

// C[rows, columns] (+)= A · B with B packed; `depth` padded, `columns` a multiple of 16.
FASTHT_INLINE void gemm(int64_t rows, int64_t columns, int64_t depth, const Operand* a, int64_t lda,
                        const Operand* b, float* c, int64_t ldc, bool accumulate,
                        Ahead ahead = {}) {
  for (int64_t n = 0; n < columns; n += kPanel, ahead.next_tile()) {
    const int64_t width = min(columns - n, kPanel);
    gemm_panel(rows, width, depth, a, lda, b + n * depth, c + n, ldc, accumulate, ahead);
  }
}

}  // namespace
}  // namespace fastht::cpu
