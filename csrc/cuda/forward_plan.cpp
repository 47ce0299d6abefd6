// The forward pass: fold, down with the gate, the full spectral filter, mix_up.

#include <stdexcept>

#include "cuda/plan.h"

namespace fastht::cuda {
namespace {

// Features of a matrix with k = features are padded to slices.
FoldMatrix down_matrix(const Problem& p, const Array& weight, int padded, int padded_dim,
                       Scaling scaling) {
  return {weight,    p.channels, p.dim, p.dim,   1,      padded / 8, padded_dim / 32,
          /*wide=*/true, /*memory=*/true, /*depth_first=*/true, scaling, nullptr, /*tiles=*/true};
}

}  // namespace

struct ForwardPlan::Arrays {
  FoldParams fold{};
  DownParams down{};
  SpectralParams spectral{};
  MixUpParams mix_up{};
};

ForwardPlan::ForwardPlan(const Problem& problem, const Device& device)
    : problem_(problem) {
  const int padded = padded_channels(problem.channels), bytes = bytes_of(problem.products);
  const int x_bytes = bytes_of(problem.x);
  const Grid& grid = problem.grid;
  if (problem.hidden > kMostHidden)
    throw std::invalid_argument("the noise gate's hidden layer has " +
                                std::to_string(problem.hidden) + " units; the CUDA kernels take " +
                                std::to_string(kMostHidden));
  const auto fits = [&](int blocks, int shared) {
    return shared <= device.shared_per_block &&
           blocks * (shared + kReserved) <= device.shared_per_multiprocessor;
  };
  // down: no warp without tokens; bytes on their way before blocks that share a multiprocessor.
  // Warps with many registers are few: as a block of its own, eight of them.
  const int tall = down_tall(padded, bytes);
  for (const int wanted : {2, 1}) {
    const int most = wanted == 1 ? 8 * tall : 8;
    const int even = largest(ceil_div(tile_rows(most, grid) / 16, tall), 4 / tall);
    for (const int warps : {even, 4})
      for (const int stages : {3, 2})
        if (down_warps_ == 0 && fits(wanted, down_shared(warps, padded, bytes, x_bytes, stages)))
          down_warps_ = warps, down_stages_ = stages;
  }
  if (down_warps_ == 0)
    throw std::invalid_argument(
        "a grid of " + std::to_string(grid.height) + "x" + std::to_string(grid.width) +
        " patches needs more shared memory than this GPU's blocks have (" +
        std::to_string(device.shared_per_block) + " bytes)");
  mix_up_ = MixUpPlan(problem, device);
  const std::string numbers = numbers_of(problem);
  const auto number = [](int count) { return ", " + std::to_string(count); };
  const int down_blocks =
      blocks_at_once(device, down_warps_, tall == 2 ? 255 : forward_registers(problem),
                     down_shared(down_warps_, padded, bytes, x_bytes, down_stages_));
  kernels_.push_back(fold_kernel(problem));
  kernels_.push_back({"down.cuh", "DownParams",
                      "down<" + numbers + number(down_warps_) + number(down_stages_) + ", " +
                          text(problem.aligned) + ">",
                      down_warps_ * 32, down_blocks});
  kernels_.push_back(mix_up_.kernel(problem, false));
  if (problem.filter == Filter::kFull) {
    spectral_ = SpectralPlan(problem, device);
    kernels_.push_back(spectral_.kernels(problem)[0]);
  }
  Arrays arrays;
  Workspace workspace(nullptr);
  arrange(arrays, {}, workspace);
  workspace_bytes_ = workspace.used();
}

void ForwardPlan::arrange(Arrays& a, const ForwardCall& call, Workspace& workspace) const {
  const Problem& p = problem_;
  const Parameters& params = call.params;
  const int padded = padded_channels(p.channels), bytes = bytes_of(p.products);
  const int slice = slice_width(padded, bytes), padded_dim = ceil_div(p.dim, slice) * slice;
  const long long map = static_cast<long long>(p.batch) * p.grid.tokens * padded * bytes;

  a.fold.matrix_count = 4;
  a.fold.matrices[0] = down_matrix(p, params.down_weight, padded, padded_dim, Scaling::kGammax);
  a.fold.matrices[1] = down_matrix(p, params.down_weight, padded, padded_dim, Scaling::kNorm);
  a.fold.matrices[2] = {params.pointwise_weight, p.channels, p.channels, p.channels, 1, padded / 8,
                        padded / 32, /*wide=*/false, /*memory=*/true, /*depth_first=*/false,
                        Scaling::kNone, nullptr};
  a.fold.matrices[3] = MixUpPlan::up_matrix(p, params);
  plan_fold(a.fold, p, params, workspace);

  DownParams& down = a.down;
  down.x = call.x;
  down.skip = a.fold.matrices[0].to;
  down.norm = a.fold.matrices[1].to;
  down.sums = a.fold.sums;
  down.scale = a.fold.scale;
  down.bank = a.fold.bank;
  down.rows = tile_rows(down_warps_ * down_tall(padded, bytes), p.grid);
  down.tiles = ceil_div(p.grid.tokens, down.rows);
  // Taken also where the caller keeps them: the size of the workspace does not depend on that.
  void* const u = workspace.take(map);
  float* const gate = workspace.floats(p.batch * 4ll);
  down.u = call.saved.u != nullptr ? call.saved.u : u;
  down.gate = call.saved.gate != nullptr ? call.saved.gate : gate;
  down.u_norm = call.saved.u_norm;
  down.stats = call.saved.stats;
  down.pooled = call.saved.pooled;
  down.partials = workspace.floats(static_cast<long long>(p.batch) * down.tiles * padded);
  down.kernels = a.fold.kernels;
  down.counters = a.fold.counters;
  down.spectral_filter = params.spectral_filter;
  down.gate_weight0 = params.gate_weight0;
  down.gate_bias0 = params.gate_bias0;
  down.gate_weight2 = params.gate_weight2;
  down.gate_bias2 = params.gate_bias2;
  down.grid = p.grid;
  down.filter = p.filter;
  down.dim = p.dim;
  down.channels = p.channels;
  down.hidden = p.hidden;
  down.frequencies = frequencies_of(p);
  down.eps = p.eps;

  if (p.filter == Filter::kFull) {
    a.spectral = {down.u,  nullptr, nullptr, workspace.take(map), params.spectral_filter,
                  nullptr, p.grid,  p.batch, p.channels,          1};
  }

  a.mix_up = mix_up_.params(p, a.fold, 2, 3, call.seed);
  a.mix_up.x = call.x;
  a.mix_up.out = call.out;
  a.mix_up.u = down.u;
  a.mix_up.f = p.filter == Filter::kFull ? a.spectral.to : down.u;
}

void ForwardPlan::run(const ForwardCall& call, const Launch& launch) const {
  Arrays a;
  Workspace workspace(call.workspace);
  arrange(a, call, workspace);
  const int padded = padded_channels(problem_.channels), bytes = bytes_of(problem_.products);
  const int x_bytes = bytes_of(problem_.x);
  launch(0, fold_blocks(a.fold), kFoldThreads * 4, &a.fold);
  launch(1, problem_.batch * a.down.tiles, 
         down_shared(down_warps_, padded, bytes, x_bytes, down_stages_), &a.down);
  if (problem_.filter == Filter::kFull)
    launch(3, spectral_.blocks(a.spectral), spectral_.shared(), &a.spectral);
  launch(2, problem_.batch * a.mix_up.tiles, mix_up_.shared(problem_), &a.mix_up);
}

}  // namespace fastht::cuda
