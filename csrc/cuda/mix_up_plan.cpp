// The launch of mix_up, in either pass.

#include <stdexcept>

#include "cuda/plan.h"

namespace fastht::cuda {
namespace {

constexpr int kMostAhead = 6;  // slices of x

int larger_of(int a, int b) { return a > b ? a : b; }

int shared_of(const Problem& problem, int warps, int pass, int ahead, int early) {
  return mix_up_shared(warps, problem.grid, padded_channels(problem.channels), pass,
                       bytes_of(problem.products), bytes_of(problem.x), ahead, early);
}

}  // namespace

// The most warps, the least work twice: the first choice of which two fit, or one; then as much of x
// as still fits, first behind the map.
MixUpPlan::MixUpPlan(const Problem& problem, const Device& device) {
  const int padded = padded_channels(problem.channels), bytes = bytes_of(problem.products);
  const int widest = bytes == 4 ? 32 : padded < 64 ? padded : 64;
  for (const int wanted : {2, 1})
    for (const int warps : {8, 4}) {
      if (warps == 8 && problem.grid.tokens <= 64) continue;
      for (int pass = widest; pass >= 32 && warps_ == 0; pass /= 2) {
        const auto fits = [&](int ahead, int early) {
          const int bytes_each = shared_of(problem, warps, pass, ahead, early);
          return bytes_each <= device.shared_per_block &&
                 wanted * (bytes_each + kReserved) <= device.shared_per_multiprocessor;
        };
        if (!fits(2, 0)) continue;
        warps_ = warps, pass_ = pass, ahead_ = 2, early_ = 0;
        for (int more = 1; more <= kMostAhead && fits(larger_of(more, 2), more); ++more)
          ahead_ = larger_of(more, 2), early_ = more;
        while (ahead_ < kMostAhead && fits(ahead_ + 1, early_)) ++ahead_;
      }
    }
  if (warps_ == 0)
    throw std::invalid_argument(
        "a grid of " + std::to_string(problem.grid.height) + "x" +
        std::to_string(problem.grid.width) + " patches needs more shared memory than this GPU's" +
        " blocks have (" + std::to_string(device.shared_per_block) + " bytes)");
  blocks_ = blocks_at_once(device, warps_, forward_registers(problem), shared(problem));
  prefetched_ =
      prefetched_features(device, blocks_, tile_rows(warps_, problem.grid), bytes_of(problem.x));
}

Kernel MixUpPlan::kernel(const Problem& problem, bool rebuild) const {
  const auto number = [](int count) { return ", " + std::to_string(count); };
  return {"mix_up.cuh", "MixUpParams",
          "mix_up<" + numbers_of(problem) + number(warps_) + number(pass_) + number(ahead_) +
              number(early_) + ", " + text(problem.aligned) + (rebuild ? ", true>" : ">"),
          warps_ * 32, blocks_};
}

FoldMatrix MixUpPlan::up_matrix(const Problem& problem, const Parameters& params) {
  const int padded = padded_channels(problem.channels);
  const int slice = slice_width(padded, bytes_of(problem.products));
  const int padded_dim = ceil_div(problem.dim, slice) * slice;
  return {params.up_weight, problem.dim, problem.channels, problem.channels, 1, padded_dim / 8,
          padded / 32, /*wide=*/true, /*memory=*/false, /*depth_first=*/false, Scaling::kNone,
          nullptr, /*tiles=*/true};
}

MixUpParams MixUpPlan::params(const Problem& problem, const FoldParams& fold, int point, int up,
                              const unsigned long long* seed) const {
  MixUpParams p{};
  p.kernels = fold.kernels;
  p.point = fold.matrices[point].to;
  p.point_bias = fold.point_bias_out;
  p.up = fold.matrices[up].to;
  p.up_bias = fold.up_bias_out;
  p.grid = problem.grid;
  p.dim = problem.dim;
  p.rows = tile_rows(warps_, problem.grid);
  p.tiles = ceil_div(problem.grid.tokens, p.rows);
  p.region = mix_up_region(warps_, problem.grid, padded_channels(problem.channels), pass_,
                           bytes_of(problem.products), bytes_of(problem.x), ahead_, early_);
  p.prefetched = prefetched_;
  p.dropout = dropout_of(problem, seed);
  return p;
}

int MixUpPlan::shared(const Problem& problem) const {
  return shared_of(problem, warps_, pass_, ahead_, early_);
}

}  // namespace fastht::cuda
