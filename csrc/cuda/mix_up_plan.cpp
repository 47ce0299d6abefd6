// The launch of mix_up, in either pass.

#include <stdexcept>

#include "cuda/plan.h"

namespace fastht::cuda {
namespace {

int shared_of(const Problem& problem, int warps, int pass, int stages) {
  return mix_up_shared(warps, problem.grid, padded_channels(problem.channels), pass,
                       bytes_of(problem.products), bytes_of(problem.x), stages);
}

}  // namespace

// The most warps, the least work twice: the first choice of which two fit, or one.
MixUpPlan::MixUpPlan(const Problem& problem, const Device& device) {
  const int padded = padded_channels(problem.channels), bytes = bytes_of(problem.products);
  const int widest = bytes == 4 ? 32 : padded < 64 ? padded : 64;
  for (const int wanted : {2, 1})
    for (const int warps : {8, 4}) {
      if (warps == 8 && problem.grid.tokens <= 64) continue;
      for (int pass = widest; pass >= 32; pass /= 2)
        for (const int stages : {3, 2}) {
          const int bytes_each = shared_of(problem, warps, pass, stages);
          if (warps_ == 0 && bytes_each <= device.shared_per_block &&
              wanted * (bytes_each + kReserved) <= device.shared_per_multiprocessor)
            warps_ = warps, pass_ = pass, stages_ = stages;
        }
    }
  if (warps_ == 0)
    throw std::invalid_argument(
        "a grid of " + std::to_string(problem.grid.height) + "x" +
        std::to_string(problem.grid.width) + " patches needs more shared memory than this GPU's" +
        " blocks have (" + std::to_string(device.shared_per_block) + " bytes)");
  blocks_ = blocks_at_once(device, warps_, forward_registers(problem), shared(problem));
}

Kernel MixUpPlan::kernel(const Problem& problem, bool rebuild) const {
  const auto number = [](int count) { return ", " + std::to_string(count); };
  return {"mix_up.cuh", "MixUpParams",
          "mix_up<" + numbers_of(problem) + number(warps_) + number(pass_) + number(stages_) +
              ", " + text(problem.aligned) + (rebuild ? ", true>" : ">"),
          warps_ * 32, blocks_};
}

FoldMatrix MixUpPlan::up_matrix(const Problem& problem, const Parameters& params) {
  const int padded = padded_channels(problem.channels);
  const int slice = slice_width(padded, bytes_of(problem.products));
  const int padded_dim = ceil_div(problem.dim, slice) * slice;
  return {params.up_weight, problem.dim, problem.channels, problem.channels, 1, padded_dim / 8,
          padded / 32, /*wide=*/true, /*memory=*/false, /*depth_first=*/false, Scaling::kNone,
          nullptr};
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
  p.dropout = dropout_of(problem, seed);
  return p;
}

int MixUpPlan::shared(const Problem& problem) const {
  return shared_of(problem, warps_, pass_, stages_);
}

}  // namespace fastht::cuda
