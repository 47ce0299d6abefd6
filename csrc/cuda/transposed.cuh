// Products that sum over tokens: both operands are tiles in shared memory whose rows are tokens.
#pragma once

#include "cuda/depthwise.cuh"

namespace fastht::cuda {

// A step of 16 tokens of the sum. Left: 16 columns of a tile [tokens][kWidth], laid out by
// chunk_at; Right: 8 columns of another. Results have those columns in their own order.
template <class F>
struct HalfTransposed {
  struct Left {
    Word v[4];
  };
  static constexpr int kWords = 2;
  struct Right {
    Word v[kWords];
    // Of tokens in pairs (`paired`): a lane's two of one half of the step.
    FASTHT_DEVICE void set(int half, float even, float odd) { v[half] = F::pack(even, odd); }
  };
  template <int kWidth>
  FASTHT_DEVICE static Left left(const Quad* tile, int row, int column, int lane) {
    Left result;
    load_tiles_transposed(result.v, tile + chunk_at<F, kWidth>(row + lane / 16 * 8 + lane % 8,
                                                               column / 8 + lane / 8 % 2));
    return result;
  }
  // Two neighbours: columns `column` .. `column + 15`.
  template <int kWidth>
  FASTHT_DEVICE static void right(Right (&result)[2], const Quad* tile, int row, int column,
                                  int lane) {
    Word tiles[4];
    load_tiles_transposed(tiles, tile + chunk_at<F, kWidth>(row + lane / 8 % 2 * 8 + lane % 8,
                                                            column / 8 + lane / 16));
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) result[i / 2].v[i % 2] = tiles[i];
  }
  // Tokens in pairs: the step is eight rows at 0 and eight at 8 of a tile [tokens][kWidth], or these
  // exchanged (`first`: 8), and a lane has of its depth rows 2 t and 2 t + 1 of either. `paired_at`:
  // where a chunk of a row lies then. `paired_row`: a lane's right operand of a product over 32
  // channels, of row first + g. Places are known once for all tiles.
  template <int kWidth>
  FASTHT_DEVICE static int paired_at(int row, int chunk) {
    return chunk_at<F, kWidth>(row, chunk);
  }
  template <int kWidth>
  FASTHT_DEVICE static int paired_left_at(int first, int column, int lane) {
    return paired_at<kWidth>((first ^ lane / 16 * 8) + lane % 8, column / 8 + lane / 8 % 2);
  }
  template <int kWidth>
  FASTHT_DEVICE static Left paired(const Quad* tile, int place, int) {
    Left result;
    load_tiles_transposed(result.v, tile + place);
    return result;
  }
  template <int kWidth>
  FASTHT_DEVICE static int paired_row_at(int first, int group, int lane) {
    return paired_at<kWidth>(first + lane / 4, group * 4 + lane % 4);
  }
  FASTHT_DEVICE static Eight<F> paired_row(const Quad* tile, int place) { return {{tile[place]}}; }
  FASTHT_DEVICE static void mma(float (&c)[4], const Word (&a)[4], Word b0, Word b1) {
    if constexpr (Same<F, Bfloat16>::value)
      mma_bfloat16(c, a, b0, b1);
    else
      mma_float16(c, a, b0, b1);
  }
  FASTHT_DEVICE static void multiply(float (&c)[4], const Left& a, const Right& b) {
    mma(c, a.v, b.v[0], b.v[1]);
  }
  // Each column of c gets the sums of the left operand's columns over the tokens.
  FASTHT_DEVICE static void add(float (&c)[4], const Left& a) {
    mma(c, a.v, kOnes, kOnes);
  }
  // Each row of c gets the sums of the right operand's columns.
  FASTHT_DEVICE static void add(float (&c)[4], const Right& b) {
    const Word ones[4] = {kOnes, kOnes, kOnes, kOnes};
    mma(c, ones, b.v[0], b.v[1]);
  }

 private:
  static constexpr Word kOnes = Same<F, Bfloat16>::value ? 0x3f803f80u : 0x3c003c00u;
};

template <bool kStrict>
struct FloatTransposed {
  struct Left {
    float v[2][4];
  };
  static constexpr int kWords = 4;
  struct Right {
    float v[kWords];
    FASTHT_DEVICE void set(int half, float even, float odd) {
      v[half * 2] = even, v[half * 2 + 1] = odd;
    }
  };
  template <int kWidth>
  FASTHT_DEVICE static float at(const Quad* tile, int row, int column) {
    return as_float(tile[chunk_at<Float32, kWidth>(row, column / 4)].v[column % 4]);
  }
  template <int kWidth>
  FASTHT_DEVICE static Left left(const Quad* tile, int row, int column, int lane) {
    Left result;
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int r = 0; r < 4; ++r)
      result.v[i][r] = at<kWidth>(tile, row + i * 8 + r / 2 * 4 + lane % 4,
                                  column + r % 2 * 8 + lane / 4);
    return result;
  }
  // As above. A row's chunks are exchanged by its last three bits, so that a neighbour in row or
  // chunk is one bit of the place.
  template <int kWidth>
  FASTHT_DEVICE static int paired_at(int row, int chunk) {
    return row * (kWidth / 4) + (chunk ^ (row & 7));
  }
  template <int kWidth>
  FASTHT_DEVICE static int paired_left_at(int first, int column, int lane) {
    return paired_at<kWidth>(first + lane % 4 * 2, column / 4 + lane / 16);
  }
  template <int kWidth>
  FASTHT_DEVICE static Left paired(const Quad* tile, int place, int lane) {
    constexpr int kChunks = kWidth / 4;
    Left result;
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int r = 0; r < 4; ++r)
      result.v[i][r] = as_float(
          tile[(place ^ (i * 8 * kChunks | r % 2 * 2 | r / 2)) + r / 2 * kChunks].v[lane / 4 % 4]);
    return result;
  }
  template <int kWidth>
  FASTHT_DEVICE static int paired_row_at(int first, int group, int lane) {
    return paired_at<kWidth>(first + lane / 4, group * 8 + lane % 4 * 2);
  }
  FASTHT_DEVICE static Eight<Float32> paired_row(const Quad* tile, int place) {
    return {{tile[place], tile[place ^ 1]}};
  }
  template <int kWidth>
  FASTHT_DEVICE static void right(Right (&result)[2], const Quad* tile, int row, int column,
                                  int lane) {
    FASTHT_UNROLL for (int n = 0; n < 2; ++n) FASTHT_UNROLL for (int i = 0; i < 4; ++i)
      result[n].v[i] = at<kWidth>(tile, row + i * 4 + lane % 4, column + n * 8 + lane / 4);
  }
  FASTHT_DEVICE static void multiply(float (&c)[4], const Left& a, const Right& b) {
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      Word big[4], small[4], b_big[2], b_small[2];
      FASTHT_UNROLL for (int r = 0; r < 4; ++r) Float32Products::split(a.v[i][r], big[r], small[r]);
      FASTHT_UNROLL for (int h = 0; h < 2; ++h)
        Float32Products::split(b.v[i * 2 + h], b_big[h], b_small[h]);
      if (kStrict)
        Float32Products::add_product(c, big, small, b_big, b_small);
      else
        mma_tf32(c, big, b_big[0], b_big[1]);
    }
  }
  // Sums are not products: they keep all digits in either case.
  FASTHT_DEVICE static void add(float (&c)[4], const Left& a) {
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      Word big[4], small[4];
      FASTHT_UNROLL for (int r = 0; r < 4; ++r) Float32Products::split(a.v[i][r], big[r], small[r]);
      mma_tf32(c, small, kOne, kOne);
      mma_tf32(c, big, kOne, kOne);
    }
  }
  FASTHT_DEVICE static void add(float (&c)[4], const Right& b) {
    const Word ones[4] = {kOne, kOne, kOne, kOne};
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      Word big[2], small[2];
      FASTHT_UNROLL for (int h = 0; h < 2; ++h)
        Float32Products::split(b.v[i * 2 + h], big[h], small[h]);
      mma_tf32(c, ones, small[0], small[1]);
      mma_tf32(c, ones, big[0], big[1]);
    }
  }

 private:
  static constexpr Word kOne = 0x3f800000u;
};

template <class P>
struct TransposedOf;
template <class F>
struct TransposedOf<HalfProducts<F>> {
  using Type = HalfTransposed<F>;
};
template <>
struct TransposedOf<Tf32Products> {
  using Type = FloatTransposed<false>;
};
template <>
struct TransposedOf<Float32Products> {
  using Type = FloatTransposed<true>;
};

}  // namespace fastht::cuda
