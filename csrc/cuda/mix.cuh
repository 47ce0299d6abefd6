// The bottleneck's v and its 1x1 product, which forward and backward pass make alike (eq. 4).
#pragma once

#include "cuda/depthwise.cuh"

namespace fastht::cuda {

// Nothing to be fetched while make_v convolves.
struct NothingMore {
  FASTHT_DEVICE void operator()() const {}
};

// v = conv(f) + bias + s for the block's patches, s for its prefix tokens (zeros without
// `prefix`), zeros past the end; in `v` behind a barrier. `map` and `bank` are scratch. `more` starts
// kMore groups of copies that nobody waits for here, once those of the first pass are on their way.
template <class P, int kChannels, int kPass, int kThreads, int kMore = 0,
          class More = NothingMore>
FASTHT_DEVICE void make_v(Quad* v, typename P::Format::Unit* map, float* bank,
                          const typename P::Format::Unit* u, const typename P::Format::Unit* f,
                          const float* kernels, const Grid& grid, const Tile& tile, int rows,
                          bool prefix = true, const More& more = {}) {
  using F = typename P::Format;
  constexpr int kEach = 16 / F::kBytes, kChunks = kChannels / kEach;
  FASTHT_ROLLED for (int channel = 0; channel < kChannels; channel += kPass) {
    if (channel > 0) sync_block();  // all have done with the channels before
    fetch_map<F, kChannels, kPass, kThreads>(map, f, grid, tile, channel);
    fetch_bank<kChannels, kPass, kThreads>(bank, kernels, kernels + kTaps * kChannels, channel);
    end_group();
    if (channel == 0) {  // while the copies are on their way
      more();
      for (int i = reread_thread_index(); i < rows * kChunks; i += kThreads) {
        const int token = tile.first + i / kChunks;
        if (token >= grid.prefix && token < grid.tokens) continue;
        Quad value = {{0, 0, 0, 0}};
        if (token < grid.prefix && prefix)
          value = *reinterpret_cast<const Quad*>(u + token * kChannels + i % kChunks * kEach);
        v[chunk_at<F, kChannels>(i / kChunks, i % kChunks)] = value;
      }
    }
    if (channel == 0)
      wait_groups<kMore>();
    else
      wait_groups<0>();
    sync_block();
    convolve<F, kPass, kThreads, false>(
        map, bank, grid, tile, [&](int row, int in_pass, Pair sum, Pair s) {
          const int at = channel + in_pass;
          if (f != u) s = load_pair<F>(u + (tile.first + row) * kChannels + at);
          store_pair<F>(row_at<F, kChannels>(v, row, at), sum.x + s.x, sum.y + s.y);
        });
  }
  sync_block();
}

// y of rows 16 warp + (g, g + 8) before the residual: the product v P1, narrow numbers.
template <class P, int kChannels>
FASTHT_DEVICE void point_product(float (&y)[kChannels / 8][4], const Quad* v, const Quad* point,
                                 int row, int lane) {
  using F = typename P::Format;
  if constexpr (Same<P, Float32Products>::value) {
    // A loop, or the compiler loads the whole matrix ahead, for which there are no registers.
    FASTHT_ROLLED for (int i = 0; i < kChannels / 16; ++i) {
      float four[2][4];
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const Quad quad = v[chunk_at<F, kChannels>(row + half * 8, (i / 2 * 4 + lane % 4) * 2 + i % 2)];
        FASTHT_UNROLL for (int j = 0; j < 4; ++j) four[half][j] = as_float(quad.v[j]);
      }
      P::multiply_half(y, four, point, i / 2, kChannels / 32, i % 2, lane);
    }
  } else {
    FASTHT_UNROLL for (int k = 0; k < kChannels / 32; ++k) {
      typename P::Left left;
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        left.set(half, left_row<F, kChannels>(v, row + half * 8, k, lane));
      P::multiply_all(y, left, point, k, kChannels / 32, lane);
    }
  }
}

}  // namespace fastht::cuda
