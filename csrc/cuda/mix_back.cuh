// Backward, second launch over the tokens: from the gradient of v to that of u (eq. 4), and the two
// means over D that the LayerNorm's gradient needs.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/depthwise.cuh"
#include "cuda/row_means.cuh"

namespace fastht::cuda {

// du = the transposed convolution of dv, plus the gate's part, plus dv itself. With a full spectral
// filter it is the gradient of the filtered map, without dv, and row_means makes the means anew.
template <class P, int kChannels, int kWarps, int kPass>
FASTHT_DEVICE void mix_back(const MixBackParams& p) {
  using F = typename P::Format;
  using Cell = typename F::Unit;
  constexpr int kThreads = kWarps * kLanes;
  constexpr int kEights = kChannels / 8, kQuads = Eight<F>::kQuads;
  const Grid grid = p.grid;
  const Tile tile(grid, p.tiles, p.rows, block_index());
  const long long image = static_cast<long long>(tile.image) * grid.tokens;
  const Cell* const dv = units<F>(p.dv) + image * kChannels;
  const float* const kernels = p.kernels + static_cast<long long>(tile.image) * (kBankRows * kChannels);
  const float* const constant =
      p.records == nullptr
          ? nullptr
          : p.records + static_cast<long long>(tile.image) * p.record_size + record_constant();
  Carver carver;
  Quad* const du = carver.take<Quad>(p.rows * kEights * kQuads);
  float* const bank = carver.take<float>(kBankRows * kPass);
  Cell* const map = carver.take<Cell>(map_height(p.rows, grid) * map_width(grid.width) * kPass);

  FASTHT_ROLLED for (int channel = 0; channel < kChannels; channel += kPass) {
    if (channel > 0) sync_block();  // all have done with the channels before
    fetch_map<F, kChannels, kPass, kThreads>(map, dv, grid, tile, channel);
    fetch_bank<kChannels, kPass, kThreads>(bank, kernels, constant, channel);
    end_group();
    wait_groups<0>();
    sync_block();
    convolve<F, kPass, kThreads, true>(map, bank, grid, tile,
                                       [&](int row, int in_pass, Pair sum, Pair own) {
      const int at = channel + in_pass;
      if (p.skip) sum.x += own.x, sum.y += own.y;
      store_pair<F>(row_at<F, kChannels>(du, row, at), sum.x, sum.y);
    });
  }
  sync_block();

  const RowMeans<F, kChannels> means(p.row_sum, p.scale, p.dim);
  const int eight = thread_index() % kEights;
  FASTHT_ROLLED for (int row = thread_index() / kEights; row < p.rows; row += kThreads / kEights) {
    const int token = tile.first + row;
    const long long at = (image + token) * kChannels + eight * 8;
    const bool real = token < tile.end;
    Eight<F> grad = load_eight<F>(dv + token * kChannels + eight * 8,
                                  real && token < grid.prefix);
    if (real && token >= grid.prefix) {
      FASTHT_UNROLL for (int q = 0; q < kQuads; ++q)
        grad.quads[q] = du[chunk_at<F, kChannels>(row, eight * kQuads + q)];
    }
    const Eight<F> norm = load_eight<F>(units<F>(p.u_norm) + at, real);
    store_eight<F, true>(units<F>(p.du) + at, grad, real ? 8 : 0);
    means.write(grad, norm, real ? p.row_means + (image + token) * 2 : nullptr);
  }
}

}  // namespace fastht::cuda
