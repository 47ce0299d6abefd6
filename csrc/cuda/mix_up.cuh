// Forward, last launch over the tokens: depthwise 7x7 with the image's own kernel, 1x1 convolution,
// GELU, dropout, up-projection and residual (eq. 4 and 5).
//
// A block has 16 tokens a warp, in the order of the sequence. v goes through shared memory from the
// layout of the convolution (lanes are channels) to that of the products; from there on a lane
// keeps its numbers: the results of the 1x1 product are the left operand of the up-projection, and
// eight features of a token are one access of x and of out, each touched once.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/forward_params.h"
#include "cuda/mix.cuh"

namespace fastht::cuda {

template <class X, class P, int kChannels, int kWarps, int kPass, bool kAligned>
FASTHT_DEVICE void mix_up(const MixUpParams& p) {
  using F = typename P::Format;
  constexpr int kRows = 16 * kWarps, kThreads = kWarps * kLanes, kGroups = kChannels / 32;
  constexpr int kSlice = slice_width(kChannels, F::kBytes);
  constexpr int kSliceQuads = kSlice * kChannels * F::kBytes / 16;
  const int thread = thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  const Grid grid = p.grid;
  const Tile tile(grid, p.tiles, kRows, block_index());
  const long long image = static_cast<long long>(tile.image) * grid.tokens;
  Carver carver;
  const int map_size = map_height(kRows, grid) * map_width(grid.width) * kPass * F::kBytes / 16;
  const int over = 2 * kSliceQuads > map_size ? 2 * kSliceQuads : map_size;
  Quad* const map = carver.take<Quad>(p.overlay ? over : map_size);
  Quad* const slices = p.overlay ? map : carver.take<Quad>(2 * kSliceQuads);
  float* const bank = carver.take<float>(kBankRows * kPass);
  Quad* const v = carver.take<Quad>(kRows * kChannels * F::kBytes / 16);
  const auto fetch = [&](int slice) {
    const Quad* const from = static_cast<const Quad*>(p.up) + slice * kSliceQuads;
    Quad* const to = slices + slice % 2 * kSliceQuads;
    for (int i = thread; i < kSliceQuads; i += kThreads) copy_async(to + i, from + i);
    end_group();
  };
  if (!p.overlay) fetch(0);
  make_v<P, kChannels, kPass, kThreads>(
      v, units<F>(static_cast<void*>(map)), bank, units<F>(p.u) + image * kChannels,
      units<F>(p.f) + image * kChannels,
      p.kernels + static_cast<long long>(tile.image) * (kBankRows * kChannels), grid, tile, kRows);
  if (p.overlay) fetch(0);

  // z = dropout(gelu(v + P1 v + p1)) for the 16 tokens of this warp.
  const int t = lane % 4, row0 = warp * 16 + lane / 4;
  const bool busy = tile.first + warp * 16 < grid.tokens;
  typename P::Left z[kGroups] = {};
  if (busy) {
    float y[kChannels / 8][4] = {};
    point_product<P, kChannels>(y, v, static_cast<const Quad*>(p.point), row0, lane);
    const Long seed = read_seed(p.dropout);
    FASTHT_UNROLL for (int q = 0; q < kChannels / 16; ++q) {
      const int channel = q * 16 + t * 4;
      const Floats bias = load_four<Float32>(p.point_bias + channel);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const int row = row0 + half * 8, token = tile.first + row;
        const Floats s = load_four<F>(row_at<F, kChannels>(v, row, channel));
        float factors[4];
        dropout_factors(factors, p.dropout, seed, image + token, channel / 4);
        FASTHT_UNROLL for (int e = 0; e < 4; ++e) {
          float& number = y[q * 2 + e / 2][half * 2 + e % 2];
          number = token >= grid.prefix ? s.v[e] + number + bias.v[e] : s.v[e];
          number *= normal_cdf(number) * factors[e];
        }
      }
    }
    FASTHT_UNROLL for (int j = 0; j < kGroups; ++j) z[j] = left_of<P>(y + j * 4);
  }

  const typename X::Unit* x[2];
  typename X::Unit* out[2];
  bool real[2];
  FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
    const int token = tile.first + row0 + half * 8;
    real[half] = token < grid.tokens;
    x[half] = units<X>(p.x.data) + tile.image * p.x.batch + token * p.x.token;
    out[half] = units<X>(p.out.data) + tile.image * p.out.batch + token * p.out.token;
  }
  const int count = ceil_div(p.dim, kSlice);
  FASTHT_ROLLED for (int slice = 0; slice < count; ++slice) {
    wait_groups<0>();
    sync_block();  // the slice has arrived, and all have done with the other buffer
    if (slice + 1 < count) fetch(slice + 1);
    if (!busy) continue;
    FASTHT_UNROLL for (int group = 0; group < kSlice / 32; ++group) {
      const int feature = slice * kSlice + group * 32 + t * 8, left = p.dim - feature;
      Eight<X> residual[2];
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        residual[half] = load_eight<X, kAligned>(x[half] + feature, real[half] ? left : 0);
      float sums[4][4] = {};
      const Quad* const weights = slices + slice % 2 * kSliceQuads;
      FASTHT_UNROLL for (int n = 0; n < 4; ++n) {
        FASTHT_UNROLL for (int k = 0; k < kGroups; ++k) {
          typename P::Right right;
          right.load(weights, (group * 4 + n) * kGroups + k, lane);
          P::multiply(sums[n], z[k], right);
        }
      }
      if (left <= 0) continue;
      const Eight<Float32> bias = load_eight<Float32, true>(p.up_bias + feature, 8);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        float values[8];
        FASTHT_UNROLL for (int i = 0; i < 8; ++i)
          values[i] = residual[half][i] + (sums[i / 2][half * 2 + i % 2] + bias[i]);
        Eight<X> result;
        result.set(values);
        store_eight<X, kAligned>(out[half] + feature, result, real[half] ? left : 0);
      }
    }
  }
}

}  // namespace fastht::cuda
