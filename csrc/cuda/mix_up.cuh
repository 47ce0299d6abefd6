// Forward, last launch over the tokens: depthwise 7x7 with the image's own kernel, 1x1 convolution,
// GELU, dropout, up-projection and residual (eq. 4 and 5).
//
// A block has 16 tokens a warp, in the order of the sequence. v goes through shared memory from the
// layout of the convolution (lanes are channels) to that of the products; from there on a lane
// keeps its numbers: the results of the 1x1 product are the left operand of the up-projection, and
// eight features of a token are one access of x and of out, each touched once. x comes kAhead - 1
// slices ahead, into shared memory that each lane has for itself: as registers they were too many.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/forward_params.h"
#include "cuda/mix.cuh"

namespace fastht::cuda {

// kRebuild: x is what this kernel once wrote, and out becomes what it was made of, in the backward
// pass: the update, which is the same to the bit, is taken away again.
template <class X, class P, int kChannels, int kWarps, int kPass, int kAhead, int kEarly,
          bool kAligned, bool kRebuild = false>
FASTHT_DEVICE void mix_up(const MixUpParams& p) {
  using F = typename P::Format;
  constexpr int kThreads = kWarps * kLanes, kGroups = kChannels / 32;
  constexpr int kSlice = slice_width(kChannels, F::kBytes), kParts = kSlice / 32;
  constexpr int kSliceQuads = kSlice * kChannels * F::kBytes / 16, kBiasQuads = kSlice / 4;
  constexpr int kWeightQuads = mix_up_weight_bytes(kChannels, F::kBytes) / 16;
  constexpr int kXQuads = mix_up_x_bytes(kWarps, kChannels, F::kBytes, X::kBytes) / 16;
  // Times 16 rows that a warp multiplies by the up-projection, whose blocks it then reads for all of
  // them: so many warps have the same rows, and every one of them its own part of a slice.
  constexpr int kShare = F::kBytes == 2 ? 2 : 1;
  const int thread = thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  const Grid grid = p.grid;
  const Tile tile(grid, p.tiles, p.rows, block_index());
  const long long image = static_cast<long long>(tile.image) * grid.tokens;
  Carver carver;
  Quad* const v = carver.take<Quad>(p.rows * (kChannels * F::kBytes / 16));
  Quad* const stages = carver.take<Quad>(p.region / 16);
  float* const bank = reinterpret_cast<float*>(stages);
  Quad* const map = stages + kBankRows * kPass / 4;
  // Eight rows of a lane are numbered `eight`; of its parts of a slice `part` is the number.
  constexpr int kEights = 2 * kShare;
  const auto own = [&](int slice, int part, int eight) {
    return stages + p.region / 16 - (slice % kAhead + 1) * kXQuads +
           (part * kEights + eight) * (Eight<X>::kQuads * kThreads) + thread;
  };
  const typename X::Unit* x;  // of row g; the others are found from it: registers are short
  bool real[kEights];
  const auto row_of_x = [&](int eight) { return x + eight * 8 * p.x.token; };
  const auto fetch_x = [&](int slice) {
    FASTHT_UNROLL for (int part = 0; part < kParts / kShare; ++part) {
      const int feature = slice * kSlice + (part * kShare + warp % kShare) * 32 + thread % 4 * 8;
      FASTHT_UNROLL for (int eight = 0; eight < kEights; ++eight)
        fetch_eight<X, kAligned>(own(slice, part, eight), kThreads, row_of_x(eight) + feature,
                                 real[eight] ? p.dim - feature : 0);
    }
  };
  // Where a lane's rows lie: found anew behind the convolution, which needs the registers.
  const auto find_rows = [&](int thread) {
    const int token =
        tile.first + thread / (kShare * kLanes) * (kShare * 16) + thread % kLanes / 4;
    FASTHT_UNROLL for (int i = 0; i < kEights; ++i) real[i] = token + i * 8 < tile.end;
    x = units<X>(p.x.data) + tile.image * p.x.batch + token * p.x.token;
  };
  const int count = ceil_div(p.dim, kSlice);
  // Brings features to the L2 cache. The lanes of a row take turns at them, so many each.
  const auto prefetch_x = [&](int first, int features) {
    constexpr int kEach = 64 / X::kBytes;
    const int end = smaller(first + features, p.dim);
    FASTHT_ROLLED for (int feature = first + (warp % kShare * 4 + lane % 4) * kEach; feature < end;
                       feature += 4 * kShare * kEach)
      FASTHT_UNROLL for (int eight = 0; eight < kEights; ++eight)
        if (real[eight]) prefetch(row_of_x(eight) + feature);
  };
  // The memory has nothing else to do while the block convolves.
  const auto fetch_early = [&] {
    find_rows(reread_thread_index());
    FASTHT_UNROLL for (int slice = 0; slice < kEarly; ++slice)
      if (slice < count) fetch_x(slice);
    end_group();
    prefetch_x(kEarly * kSlice, p.prefetched);
  };
  make_v<P, kChannels, kPass, kThreads, 1>(
      v, units<F>(static_cast<void*>(map)), bank, units<F>(p.u) + image * kChannels,
      units<F>(p.f) + image * kChannels,
      p.kernels + static_cast<long long>(tile.image) * (kBankRows * kChannels), grid, tile,
      p.rows, true, fetch_early);

  const int t = lane % 4, row0 = warp * 16 + lane / 4;
  const bool busy = tile.first + warp * 16 < tile.end;
  find_rows(thread);
  // By now the memory has sent all that it was asked for, and the GELU has yet to be made.
  prefetch_x(kEarly * kSlice + p.prefetched, p.prefetched / 2);
  // Over the map and the bank, which nobody needs any more. The weights are in the L2 cache and come
  // one slice ahead; x comes kAhead - 1 slices ahead, in groups of its own that are waited for later.
  const auto weights_of = [&](int slice) { return stages + slice % 2 * kWeightQuads; };
  const auto fetch_weights = [&](int slice) {
    if (slice < count) {
      Quad* const weights = weights_of(slice);
      copy_quads<kSliceQuads, kThreads>(
          weights, static_cast<const Quad*>(p.up) + slice * kSliceQuads, thread);
      copy_quads<kBiasQuads, kThreads>(
          weights + kSliceQuads, reinterpret_cast<const Quad*>(p.up_bias) + slice * kBiasQuads,
          thread);
    }
  };
  fetch_weights(0);
  if (kEarly == 0) fetch_x(0);
  end_group();
  FASTHT_ROLLED for (int slice = kEarly == 0 ? 1 : kEarly; slice < kAhead - 1; ++slice)
    if (slice < count) fetch_x(slice);
  end_group();

  // z = dropout(gelu(v + P1 v + p1)) for 16 tokens of this warp: the left operand. It lies where v
  // was, for the warps that share these tokens; and as whole floats, since the compiler would keep
  // their parts instead.
  constexpr bool kWhole = Same<P, Float32Products>::value, kLies = kWhole || kShare > 1;
  typename P::Left z[kWhole ? 1 : kGroups][kShare] = {};
  float y[kChannels / 8][4] = {};
  if (busy) point_product<P, kChannels>(y, v, static_cast<const Quad*>(p.point), row0, lane);
  if constexpr (kLies) sync_block();  // all have done with the others' v
  if (busy) {
    const Long seed = read_seed(p.dropout);
    FASTHT_UNROLL for (int q = 0; q < kChannels / 16; ++q) {
      const int channel = q * 16 + t * 4;
      const Floats bias = load_four<Float32>(p.point_bias + channel);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const int row = row0 + half * 8, token = tile.first + row;
        const Floats s = load_four<F>(row_at<F, kChannels>(v, row, channel));
        float factors[4];
        dropout_factors(factors, p.dropout, seed, image + token, channel / 4);
        Floats active;
        FASTHT_UNROLL for (int e = 0; e < 4; ++e) {
          float& number = y[q * 2 + e / 2][half * 2 + e % 2];
          number = token >= grid.prefix ? s.v[e] + number + bias.v[e] : s.v[e];
          number *= normal<F::kBytes == 2>(number).cdf * factors[e];
          active.v[e] = number;
        }
        if constexpr (kLies) store_four<F>(row_at<F, kChannels>(v, row, channel), active);
      }
    }
    if constexpr (!kLies)
      FASTHT_UNROLL for (int j = 0; j < kGroups; ++j) z[j][0] = left_of<P>(y + j * 4);
  }
  const int shared_row = warp / kShare * (kShare * 16) + lane / 4;  // the first of the lane's eights
  const bool any = tile.first + warp / kShare * (kShare * 16) < tile.end;
  if constexpr (kShare > 1) {
    sync_block();
    FASTHT_UNROLL for (int m = 0; m < kShare; ++m) {
      if (shared_row - lane / 4 + m * 16 >= p.rows) continue;  // v has no more
      FASTHT_UNROLL for (int j = 0; j < kGroups; ++j)
        FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
          float values[8];
          FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
            const Floats four = load_four<F>(row_at<F, kChannels>(
                v, shared_row + m * 16 + half * 8, j * 32 + i * 16 + t * 4));
            FASTHT_UNROLL for (int e = 0; e < 4; ++e) values[i * 4 + e] = four.v[e];
          }
          z[j][m].set(half, values);
        }
    }
  }

  typename X::Unit* const out =
      units<X>(p.out.data) + tile.image * p.out.batch + (tile.first + shared_row) * p.out.token;
  FASTHT_ROLLED for (int slice = 0; slice < count; ++slice) {
    wait_groups<kAhead == 2 ? 0 : 1>();  // all but the last slice of x
    sync_block();  // the slice has arrived, and all have done with the one before
    fetch_weights(slice + 1);
    end_group();
    if (slice + kAhead - 1 >= kEarly && slice + kAhead - 1 < count)
      fetch_x(slice + kAhead - 1);
    end_group();
    if (!any) continue;
    const Quad* const weights = weights_of(slice);
    const auto add = [&](int own_part) {
      const int part = own_part * kShare + warp % kShare;
      const int feature = slice * kSlice + part * 32 + t * 8, left = p.dim - feature;
      float sums[kShare][4][4] = {};
      if constexpr (kWhole) {
        FASTHT_ROLLED for (int q = 0; q < kChannels / 16; ++q) {
          float four[2][4];
          FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
            const Floats own = load_four<F>(row_at<F, kChannels>(v, row0 + half * 8, q * 16 + t * 4));
            FASTHT_UNROLL for (int i = 0; i < 4; ++i) four[half][i] = own.v[i];
          }
          P::multiply_half(sums[0], four, weights, part * 4 * kGroups + q / 2, kGroups, q % 2, lane);
        }
      } else {
        FASTHT_UNROLL for (int k = 0; k < kGroups; ++k)
          multiply_tall<P>(sums, z[k], weights, part * 4 * kGroups + k, kGroups, lane);
      }
      const Eight<Float32> bias = own_eight<Float32>(weights + kSliceQuads + part * 8 + t * 2, 1);
      FASTHT_UNROLL for (int eight = 0; eight < kEights; ++eight) {
        const Eight<X> residual = own_eight<X>(own(slice, own_part, eight), kThreads);
        float values[8];
        FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
          const float change = sums[eight / 2][i / 2][eight % 2 * 2 + i % 2] + bias[i];
          values[i] = kRebuild ? residual[i] - change : residual[i] + change;
        }
        Eight<X> result;
        result.set(values);
        store_eight<X, kAligned>(out + eight * 8 * p.out.token + feature, result,
                                 real[eight] ? left : 0);
      }
    };
    FASTHT_ROLLED for (int part = 0; part < kParts / kShare; ++part) add(part);  // registers are short
  }
}

}  // namespace fastht::cuda
