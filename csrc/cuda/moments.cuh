// Mean and variance of the rows of x that a warp multiplies, gathered as they go by.
//
// Numbers of 16 bits are summed by the tensor cores, a row times ones. Floats, whose products would
// round them, are added up by the lanes, as all squares are.
#pragma once

#include "cuda/fragments.cuh"

namespace fastht::cuda {

// Mean and sum of squared deviations of `count` numbers, merged pairwise (Chan et al.): the mean of
// squares less the squared mean would lose everything where |mean| >> sigma.
struct Moments {
  float count, mean, m2;

  FASTHT_DEVICE void merge(const Moments& next) {
    const float total = count + next.count, share = total > 0.0f ? next.count / total : 0.0f;
    const float delta = next.mean - mean;
    mean += delta * share;
    m2 += next.m2 + delta * delta * (count * share);
    count = total;
  }
};

// All lanes of a row (four neighbours) get the merged moments, in the order of the lanes.
FASTHT_DEVICE void merge_lanes(Moments& mine, int lane) {
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) {
    Moments other;
    other.count = shuffle_xor(mine.count, mask);
    other.mean = shuffle_xor(mine.mean, mask);
    other.m2 = shuffle_xor(mine.m2, mask);
    // By member: a choice between structs would be one between addresses, in local memory.
    const bool second = (lane & mask) != 0;
    const float count = mine.count, mean = mine.mean, m2 = mine.m2;
    mine.count = second ? other.count : count;
    mine.mean = second ? other.mean : mean;
    mine.m2 = second ? other.m2 : m2;
    other.count = second ? count : other.count;
    other.mean = second ? mean : other.mean;
    other.m2 = second ? m2 : other.m2;
    mine.merge(other);
  }
}

// A rough mean of a row from its first features, or 0. Where |mean| >> sigma, the LayerNorm's part
// is lost to the mean, in the rounding of x for the product or in the sum itself. Rounded as x is,
// it leaves differences that are exact.
template <class X>
FASTHT_DEVICE float rough_mean(const Eight<X>& first, int count, int total) {
  float sum = 0.0f, spread = 0.0f;
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) sum += first[i];
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
  const float mean = sum * reciprocal(static_cast<float>(total));
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
    const float deviation = i < count ? first[i] - mean : 0.0f;
    spread = fused(deviation, deviation, spread);
  }
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) spread += shuffle_xor(spread, mask);
  const float shift = mean * mean * static_cast<float>(total) > 4.0f * spread ? mean : 0.0f;
  if constexpr (X::kBytes == 4)
    return shift;
  else
    return X::first(X::pack(shift, 0.0f));
}

// Of eight features from `feature` + 8t on, those that there are.
FASTHT_DEVICE int present_of(int feature, int dim, int t) {
  return smaller(larger(dim - feature - t * 8, 0), 8);
}

// Statistics of 16 rows of a warp, 32 features after 32. `centre` is given a lane's eight numbers of
// rows g and g + 8, also as the operand `left`, which receives them less their row's `shift`; after
// `finish` all lanes of a row have `mean` and `m2`, the sum of squared deviations, of the numbers
// less the shift. Here by the lanes, each for its own numbers.
template <class X, class P, bool kAligned>
struct LaneStatistics {
  float shift[2] = {}, mean[2] = {}, m2[2] = {};

  FASTHT_DEVICE void start(int half, const Eight<X>& first, int dim, int t) {
    shift[half] = rough_mean(first, present_of(0, dim, t), smaller(dim, 32));
  }
  // A merge of Moments in which both rows share the counts. kAligned: all of eight numbers are there
  // or none; then they are zeros less the shift, which zeros of the weights are left with.
  FASTHT_DEVICE void centre(typename P::Left& left, const Eight<X> (&raw)[2], int feature, int dim,
                            int t) {
    const int count = present_of(feature, dim, t);
    const float before = static_cast<float>(feature / 4), found = static_cast<float>(count);
    const float share = found / larger_of(before + found, 1.0f), weight = before * share;
    const float each = kAligned || count == 8 ? 0.125f : 1.0f / larger_of(found, 1.0f);
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      float values[8], part = 0.0f, squares = 0.0f;
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
        values[i] = kAligned || i < count ? raw[half][i] - shift[half] : 0.0f;
        part += values[i];
      }
      part *= each;
      FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
        const float deviation = kAligned || i < count ? values[i] - part : 0.0f;
        squares = fused(deviation, deviation, squares);
      }
      if (kAligned && count == 0) squares = 0.0f;
      const float delta = part - mean[half];
      mean[half] = fused(delta, share, mean[half]);
      m2[half] += fused(delta * delta, weight, squares);
      left.set(half, values);
    }
  }
  FASTHT_DEVICE void finish(int dim, int lane) {
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      const int count = dim / 32 * 8 + present_of(dim / 32 * 32, dim, lane % 4);
      Moments moments{static_cast<float>(count), mean[half], m2[half]};
      merge_lanes(moments, lane);
      mean[half] = moments.mean;
      m2[half] = moments.m2;
    }
  }
};

// The same of numbers that products take as they are: each row times ones. The shift keeps the mean
// within a few sigma, so that the squares can be summed without it; those of a lane are its own, since
// the tensor cores, which could multiply the rows by themselves, are what `down` has least of.
template <class X, class P, bool kAligned>
struct ProductStatistics {
  float shift[2] = {}, mean[2] = {}, m2[2] = {};
  Word less[2] = {};
  float sums[4] = {}, squares[2] = {};

  FASTHT_DEVICE void start(int half, const Eight<X>& first, int dim, int t) {
    const float rough = rough_mean(first, present_of(0, dim, t), smaller(dim, 32));
    less[half] = X::pack(-rough, -rough);
  }
  FASTHT_DEVICE void centre(typename P::Left& left, const Eight<X> (&)[2], int feature, int dim,
                            int t) {
    const int count = present_of(feature, dim, t);
    typename P::Right ones;
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
      const Word there = kAligned ? (count > 0 ? 0xffffffffu : 0u)
                                  : (i * 2 < count ? 0xffffu : 0u) |
                                        (i * 2 + 1 < count ? 0xffff0000u : 0u);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const Word both = X::add(left.v[half][i], less[half] & there);
        const float first = X::first(both), second = X::second(both);
        squares[half] = fused(first, first, fused(second, second, squares[half]));
        left.v[half][i] = both;
      }
      ones.v.v[i] = X::pack(1.0f, 1.0f);
    }
    P::multiply(sums, left, ones);
  }
  FASTHT_DEVICE void finish(int dim, int) {
    const float each = 1.0f / static_cast<float>(dim);
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2)
        squares[half] += shuffle_xor(squares[half], mask);
      shift[half] = -X::first(less[half]);  // a register fewer until now
      mean[half] = sums[half * 2] * each;
      const float rest = squares[half] - sums[half * 2] * mean[half];
      m2[half] = rest < 0.0f ? 0.0f : rest;  // a NaN stays
    }
  }
};

template <bool kByProducts, class X, class P, bool kAligned>
struct StatisticsOf {
  using Type = LaneStatistics<X, P, kAligned>;
};
template <class X, class P, bool kAligned>
struct StatisticsOf<true, X, P, kAligned> {
  using Type = ProductStatistics<X, P, kAligned>;
};
template <class X, class P, bool kAligned>
using Statistics =
    typename StatisticsOf<Same<X, typename P::Format>::value && X::kBytes == 2, X, P, kAligned>::Type;

}  // namespace fastht::cuda
