// Matrix products of a warp, 16 rows at a time, with operands in fragment order.
//
// A lane is (g, t) = (lane / 4, lane % 4). In a product the order of k is free if both operands
// agree, and the order of columns only names results; so both are chosen for memory:
//
//   Left:  16 rows x 32 k. A lane has eight values of rows g and g + 8. Which k these are:
//          "memory order": 32 j + 8 t + w, so that they are neighbours in a row in memory;
//          "register order": 32 j + 16 (w / 4) + 4 t + w % 4, so that they are the lane's own
//          results of a product whose columns have narrow numbers.
//   Right: 32 k x 8 columns, a "block", written by the folding kernel as lanes read it: lane after
//          lane, eight values each (`fragment_at`), for one conflict-free access of 16 bytes; or, of
//          16-bit numbers in shared memory, as the tiles of load_tiles (`tile_at`).
//   Results: c[0], c[1] in row g, c[2], c[3] in row g + 8; columns 2t, 2t + 1 of the block. Which
//          feature or channel a column is:
//          "wide numbers": of four blocks, 32 J + 8 t + 2 n + e: eight neighbours a lane;
//          "narrow numbers": of two blocks, 16 q + 4 t + 2 n + e: four neighbours a lane, one draw
//          of Philox, and in register order the left operand of the next product.
#pragma once

#include "cuda/numbers.cuh"

namespace fastht::cuda {

FASTHT_DEVICE int memory_order(int group, int lane, int w) { return group * 32 + lane % 4 * 8 + w; }
FASTHT_DEVICE int register_order(int group, int lane, int w) {
  return group * 32 + w / 4 * 16 + lane % 4 * 4 + w % 4;
}
// The feature or channel that column `lane / 4` of a block stands for.
FASTHT_DEVICE int wide_number(int block, int lane) {
  return block / 4 * 32 + lane / 8 * 8 + block % 4 * 2 + lane / 4 % 2;
}
FASTHT_DEVICE int narrow_number(int block, int lane) {
  return block / 2 * 16 + lane / 8 * 4 + block % 2 * 2 + lane / 4 % 2;
}
// Where value w of a lane lies in a block, and how many values a block has.
constexpr int kBlock = 256;
template <class F>
FASTHT_DEVICE int fragment_at(int lane, int w) {
  return F::kBytes == 2 ? lane * 8 + w : w / 4 * 128 + lane * 4 + w % 4;
}

template <class F>
FASTHT_DEVICE int tile_at(int lane, int w) {
  return F::kBytes == 2 ? w / 2 * 64 + lane * 2 + w % 2 : fragment_at<F>(lane, w);
}

// c[n] += left times block first + n * step of a matrix in fragment order, in shared or global memory.
template <class P, int kCount>
FASTHT_DEVICE void multiply_each(float (&c)[kCount][4], const typename P::Left& left,
                                 const Quad* matrix, int first, int step, int lane) {
  FASTHT_UNROLL for (int n = 0; n < kCount; ++n) {
    typename P::Right right;
    right.load(matrix, first + n * step, lane);
    P::multiply(c[n], left, right);
  }
}

// The kinds of products. Sums are in float32 always.
template <class F>
struct HalfProducts {  // of 16-bit numbers
  using Format = F;
  struct Left {
    Word v[2][4];
    FASTHT_DEVICE void set(int half, const float (&values)[8]) {
      FASTHT_UNROLL for (int i = 0; i < 4; ++i) v[half][i] = F::pack(values[2 * i], values[2 * i + 1]);
    }
    template <class X>
    FASTHT_DEVICE void set(int half, const Eight<X>& values) {
      if constexpr (Same<X, F>::value) {
        FASTHT_UNROLL for (int i = 0; i < 4; ++i) v[half][i] = values.quads[0].v[i];
      } else {
        FASTHT_UNROLL for (int i = 0; i < 4; ++i)
          v[half][i] = F::pack(values[2 * i], values[2 * i + 1]);
      }
    }
  };
  struct Right {
    Quad v;
    FASTHT_DEVICE void load(const Quad* matrix, int block, int lane) {
      v = matrix[block * kLanes + lane];
    }
    FASTHT_DEVICE void load_as_tiles(const Quad* matrix, int block, int lane) {
      load_tiles(v.v, matrix + block * kLanes + lane);
    }
  };
  FASTHT_DEVICE static void multiply(float (&c)[4], const Left& a, const Right& b) {
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      const Word part[4] = {a.v[0][2 * i], a.v[1][2 * i], a.v[0][2 * i + 1], a.v[1][2 * i + 1]};
      multiply_part(c, part, b.v.v[2 * i], b.v.v[2 * i + 1]);
    }
  }
  // One instruction's.
  FASTHT_DEVICE static void multiply_part(float (&c)[4], const Word (&a)[4], Word b0, Word b1) {
    if constexpr (Same<F, Bfloat16>::value)
      mma_bfloat16(c, a, b0, b1);
    else
      mma_float16(c, a, b0, b1);
  }
  // The right operand from a row in memory: the lane's eight numbers of column lane / 4.
  FASTHT_DEVICE static void multiply_by(float (&c)[4], const Left& a, const Eight<F>& column) {
    multiply(c, a, Right{column.quads[0]});
  }
  template <int kCount>
  FASTHT_DEVICE static void multiply_all(float (&c)[kCount][4], const Left& left,
                                         const Quad* matrix, int first, int step, int lane) {
    multiply_each<HalfProducts>(c, left, matrix, first, step, lane);
  }
};
using Bfloat16Products = HalfProducts<Bfloat16>;
using Float16Products = HalfProducts<Float16>;

struct Tf32Products {  // of float32 numbers rounded to TensorFloat-32
  using Format = Float32;
  struct Left {
    Word v[2][8];
    FASTHT_DEVICE void set(int half, const float (&values)[8]) {
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) v[half][i] = round_to_tf32(values[i]);
    }
    template <class X>
    FASTHT_DEVICE void set(int half, const Eight<X>& values) {
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) v[half][i] = round_to_tf32(values[i]);
    }
  };
  struct Right {
    Word v[8];
    FASTHT_DEVICE void load(const Quad* matrix, int block, int lane) {
      FASTHT_UNROLL for (int q = 0; q < 2; ++q) {
        const Quad four = matrix[(block * 2 + q) * kLanes + lane];
        FASTHT_UNROLL for (int i = 0; i < 4; ++i) v[q * 4 + i] = round_to_tf32(as_float(four.v[i]));
      }
    }
  };
  FASTHT_DEVICE static void multiply(float (&c)[4], const Left& a, const Right& b) {
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
      const Word part[4] = {a.v[0][2 * i], a.v[1][2 * i], a.v[0][2 * i + 1], a.v[1][2 * i + 1]};
      mma_tf32(c, part, b.v[2 * i], b.v[2 * i + 1]);
    }
  }
  FASTHT_DEVICE static void multiply_by(float (&c)[4], const Left& a, const Eight<Float32>& column) {
    Right right;
    FASTHT_UNROLL for (int i = 0; i < 8; ++i) right.v[i] = round_to_tf32(column[i]);
    multiply(c, a, right);
  }
  template <int kCount>
  FASTHT_DEVICE static void multiply_all(float (&c)[kCount][4], const Left& left,
                                         const Quad* matrix, int first, int step, int lane) {
    multiply_each<Tf32Products>(c, left, matrix, first, step, lane);
  }
};

// left.set() of numbers that came 16 bytes at a time, zeros where `mask` is not all ones. What a mask
// has gone over is a register of its own. A word of four that were loaded at once is not: for each
// product ptxas copies those that it needs to where a product wants them, three moves a product.
template <class P, class X>
FASTHT_DEVICE void set_masked(typename P::Left& left, int half, const Eight<X>& values, Word mask) {
  if constexpr (Same<X, typename P::Format>::value && X::kBytes == 2) {
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) left.v[half][i] = values.quads[0].v[i] & mask;
  } else {
    left.set(half, values);
  }
}

// Of float32 numbers as they are: three products of TensorFloat-32 parts. The parts' last one,
// small times small, is below float32's last digit. An operand is kept whole and split where it is
// used: its parts are twice as many registers.
struct Float32Products {
  using Format = Float32;
  FASTHT_DEVICE static void split(float value, Word& big, Word& small) {
    split_of(value, round_to_tf32(value), big, small);
  }
  FASTHT_DEVICE static void split_of(float value, Word rounded, Word& big, Word& small) {
    big = rounded;
    // An infinity has no rest: its difference from itself would be NaN. Made for all and then chosen:
    // under the condition it would be a branch, or as many instructions with predicates.
    const float rest = value - as_float(big);
    const Word rounded_rest = round_finite_to_tf32(rest);
    small = is_finite(rest) ? rounded_rest : 0u;
  }
  struct Left {
    float v[2][8];
    FASTHT_DEVICE void set(int half, const float (&values)[8]) {
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) v[half][i] = values[i];
    }
    template <class X>
    FASTHT_DEVICE void set(int half, const Eight<X>& values) {
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) v[half][i] = values[i];
    }
  };
  // Tensor cores round towards zero: a long sum in them would drift. So each product starts at zero
  // and is added by an instruction that rounds to nearest.
  FASTHT_DEVICE static void add_product(float (&c)[4], const Word (&big)[4], const Word (&small)[4],
                                        const Word (&right)[2], const Word (&rest)[2]) {
    float part[4] = {};
    mma_tf32(part, small, right[0], right[1]);
    mma_tf32(part, big, rest[0], rest[1]);
    mma_tf32(part, big, right[0], right[1]);
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) c[i] += part[i];
  }
  // One half of k, the quads `half_k` of either operand: all blocks meet it before the next is split.
  template <int kCount>
  FASTHT_DEVICE static void multiply_half(float (&c)[kCount][4], const float (&left)[2][4],
                                          const Quad* matrix, int first, int step, int half_k,
                                          int lane) {
    Word big[2][4], small[2][4];
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int r = 0; r < 4; ++r) {
      const float value = left[r % 2][i * 2 + r / 2];
      split_of(value, round_to_tf32_here(value), big[i][r], small[i][r]);
    }
    FASTHT_UNROLL for (int n = 0; n < kCount; ++n) {
      const Quad right = matrix[((first + n * step) * 2 + half_k) * kLanes + lane];
      FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
        Word whole[2], rest[2];
        FASTHT_UNROLL for (int j = 0; j < 2; ++j)
          split(as_float(right.v[i * 2 + j]), whole[j], rest[j]);
        add_product(c[n], big[i], small[i], whole, rest);
      }
      if (n % 2 == 1) keep_order();
    }
  }
  FASTHT_DEVICE static void multiply_by(float (&c)[4], const Left& a, const Eight<Float32>& column) {
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
      Word big[4], small[4], whole[2], rest[2];
      FASTHT_UNROLL for (int r = 0; r < 4; ++r) {
        const float value = a.v[r % 2][i * 2 + r / 2];
        split_of(value, round_to_tf32_here(value), big[r], small[r]);
      }
      FASTHT_UNROLL for (int j = 0; j < 2; ++j) split(column[i * 2 + j], whole[j], rest[j]);
      add_product(c, big, small, whole, rest);
    }
  }
  template <int kCount>
  FASTHT_DEVICE static void multiply_all(float (&c)[kCount][4], const Left& left,
                                         const Quad* matrix, int first, int step, int lane) {
    FASTHT_UNROLL for (int q = 0; q < 2; ++q) {
      float four[2][4];
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        FASTHT_UNROLL for (int i = 0; i < 4; ++i) four[half][i] = left.v[half][q * 4 + i];
      multiply_half(c, four, matrix, first, step, q, lane);
    }
  }
};

// c[m][n] += left[m] times a block, for kTall operands of 16 rows each: a block is loaded once. The
// matrix is in shared memory, 16-bit numbers as tiles.
template <class P, int kTall, int kCount>
FASTHT_DEVICE void multiply_tall(float (&c)[kTall][kCount][4], const typename P::Left (&left)[kTall],
                                 const Quad* matrix, int first, int step, int lane) {
  if constexpr (P::Format::kBytes == 4) {
    static_assert(kTall == 1, "registers are short");
    P::multiply_all(c[0], left[0], matrix, first, step, lane);
  } else {
    FASTHT_UNROLL for (int n = 0; n < kCount; ++n) {
      typename P::Right right;
      right.load_as_tiles(matrix, first + n * step, lane);
      FASTHT_UNROLL for (int m = 0; m < kTall; ++m) P::multiply(c[m][n], left[m], right);
    }
  }
}

// The left operand of 32 k that a product with narrow numbers left in c[0] .. c[3] of this lane.
template <class P>
FASTHT_DEVICE typename P::Left left_of(const float (*c)[4]) {
  typename P::Left left;
  FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
    float values[8];
    FASTHT_UNROLL for (int w = 0; w < 8; ++w) values[w] = c[w / 2][half * 2 + w % 2];
    left.set(half, values);
  }
  return left;
}

}  // namespace fastht::cuda
