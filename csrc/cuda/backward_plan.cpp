// The backward pass: fold, contract with the correlation and the gate, mix_back, expand, finish.
// A full spectral filter is applied anew before contract, and transposed after mix_back. Where x was
// not kept, mix_up makes it of the output before contract.

#include <stdexcept>

#include "cuda/plan.h"

namespace fastht::cuda {
namespace {

std::string number(int value) { return ", " + std::to_string(value); }
std::string without_x(const std::string& numbers) { return numbers.substr(numbers.find(' ') + 1); }

}  // namespace

struct BackwardPlan::Arrays {
  FoldParams fold{};
  MixUpParams mix_up{};
  ContractParams contract{};
  MixBackParams mix_back{};
  SpectralParams spectral{}, spectral_back{};
  RowMeansParams row_means{};
  ExpandParams expand{};
  FinishParams finish{};
};

// The most warps that two, or else one, of fit a multiprocessor, and then the most channels.
template <class Shared>
BackwardPlan::Tiling BackwardPlan::tiling(const Device& device, Shared shared) const {
  const int padded = padded_channels(problem_.channels);
  for (const int wanted : {2, 1})
    for (const int warps : {8, 4, 2}) {
      if (warps > 2 && 8 * warps >= problem_.grid.tokens) continue;  // half of them had no token
      for (int pass = padded; pass >= 16; pass /= 2)
        for (const int ahead : {256, 128}) {
          const int bytes = shared(warps, pass, ahead);
          if (bytes > device.shared_per_block ||
              wanted * (bytes + kReserved) > device.shared_per_multiprocessor)
            continue;
          // 128 registers of a thread; more where a product has more operands, or a warp two rounds
          // of the correlation.
          const bool many = bytes_of(problem_.products) == 4 || padded == 128;
          const int registers = many ? 255 : warps == 2 ? 168 : 128;
          return {warps, pass, ahead, bytes, blocks_at_once(device, warps, registers, bytes)};
        }
    }
  throw std::invalid_argument(
      "a grid of " + std::to_string(problem_.grid.height) + "x" +
      std::to_string(problem_.grid.width) + " patches needs more shared memory than this GPU's" +
      " blocks have (" + std::to_string(device.shared_per_block) + " bytes)");
}

BackwardPlan::BackwardPlan(const Problem& problem, const Device& device, bool need_input,
                           bool need_params, bool rebuild)
    : problem_(problem),
      need_input_(need_input),
      need_params_(need_params),
      rebuild_(rebuild),
      correlates_(need_params || problem.has_gate) {
  const int padded = padded_channels(problem.channels), bytes = bytes_of(problem.products);
  const int x_bytes = bytes_of(problem.x);
  const Grid& grid = problem.grid;
  contract_ = tiling(device, [&](int warps, int pass, int ahead) {
    return contract_shared(warps, grid, padded, pass, bytes, ahead);
  });
  mix_back_ = tiling(device, [&](int warps, int pass, int) {
    return mix_back_shared(warps, grid, padded, pass, bytes);
  });
  prefetched_ = prefetched_features(device, contract_.blocks, tile_rows(contract_.warps, grid), x_bytes);
  const int at_once = device.multiprocessors * contract_.blocks;
  each_ = ceil_div(problem.batch * ceil_div(grid.tokens, tile_rows(contract_.warps, grid)), at_once);
  const auto expand_blocks_of = [&](int shared) {
    return blocks_at_once(device, expand_warps(padded), 255, shared);
  };
  // As many blocks as have registers, or else fewer, and then as much on its way as there is room for.
  struct Depth {
    int tokens, stages;
  };
  for (int wanted = expand_blocks_of(0); wanted > 0; --wanted)
    for (const Depth depth : {Depth{64, 3}, Depth{32, 3}, Depth{64, 2}, Depth{32, 2}}) {
      const int shared = expand_shared(depth.tokens, depth.stages, padded, bytes, x_bytes);
      if (expand_tokens_ == 0 && shared <= device.shared_per_block &&
          wanted * (shared + kReserved) <= device.shared_per_multiprocessor)
        expand_tokens_ = depth.tokens, expand_stages_ = depth.stages;
    }
  expand_shared_ = expand_shared(expand_tokens_, expand_stages_, padded, bytes, x_bytes);
  const int expand_blocks = expand_blocks_of(expand_shared_);
  const int slices = ceil_div(problem.dim, expand_width(bytes));
  const int tiles = ceil_div(problem.batch * grid.tokens, expand_tokens_);
  const int groups = largest(expand_blocks * device.multiprocessors / slices, 1);
  expand_each_ = ceil_div(tiles, groups);

  const std::string numbers = numbers_of(problem);
  const auto tiled = [](const Tiling& tiling) { return number(tiling.warps) + number(tiling.pass); };
  const std::string aligned = std::string(", ") + text(problem.aligned) + ">";
  kernels_.push_back(fold_kernel(problem));
  kernels_.push_back({"contract.cuh", "ContractParams",
                      "contract<" + numbers + tiled(contract_) + number(contract_.ahead) + aligned,
                      contract_.warps * 32, contract_.blocks});
  kernels_.push_back({"mix_back.cuh", "MixBackParams",
                      "mix_back<" + without_x(numbers) + tiled(mix_back_) + ">",
                      mix_back_.warps * 32, mix_back_.blocks});
  kernels_.push_back({"expand.cuh", "ExpandParams",
                      "expand<" + numbers + number(expand_tokens_) + number(expand_stages_) + aligned,
                      expand_warps(padded) * 32, expand_blocks});
  kernels_.push_back({"finish.cuh", "FinishParams", "finish<" + std::to_string(padded) + ">",
                      kFinishThreads, 1});
  if (problem.filter == Filter::kFull) {
    spectral_ = SpectralPlan(problem, device);
    for (const Kernel& kernel : spectral_.kernels(problem)) kernels_.push_back(kernel);
  }
  if (rebuild) {
    mix_up_ = MixUpPlan(problem, device);
    kernels_.push_back(mix_up_.kernel(problem, true));
  }
  Arrays arrays;
  Workspace workspace(nullptr);
  arrange(arrays, {}, workspace);
  workspace_bytes_ = workspace.used();
}

void BackwardPlan::arrange(Arrays& a, const BackwardCall& call, Workspace& workspace) const {
  const Problem& p = problem_;
  const Parameters &params = call.params, &grads = call.grads;
  const int padded = padded_channels(p.channels), bytes = bytes_of(p.products);
  const int slices = ceil_div(p.dim, expand_width(bytes));
  const int padded_dim = ceil_div(p.dim, 64) * 64;  // for the slices of all kernels
  const int finish_dim = slices * expand_width(bytes);
  const int outputs = padded / 8, groups = padded / 32, c = p.channels;
  const long long tokens = static_cast<long long>(p.batch) * p.grid.tokens;
  const long long map = tokens * padded * bytes;

  a.fold.matrix_count = 4;
  a.fold.matrices[0] = {params.up_weight, c, p.dim, 1, c, outputs, padded_dim / 32,
                        /*wide=*/false, /*memory=*/true, /*depth_first=*/true, Scaling::kNone, nullptr};
  a.fold.matrices[1] = {params.pointwise_weight, c, c, c, 1, outputs, groups,
                        /*wide=*/false, /*memory=*/true, /*depth_first=*/false, Scaling::kNone, nullptr};
  a.fold.matrices[2] = {params.pointwise_weight, c, c, 1, c, outputs, groups,
                        /*wide=*/false, /*memory=*/true, /*depth_first=*/false, Scaling::kNone, nullptr};
  a.fold.matrices[3] = {params.down_weight, p.dim, c, 1, p.dim, padded_dim / 8, groups,
                        /*wide=*/true, /*memory=*/true, /*depth_first=*/false, Scaling::kNone, nullptr};
  if (rebuild_) a.fold.matrices[a.fold.matrix_count++] = MixUpPlan::up_matrix(p, params);
  a.fold.gate = call.saved.gate;
  plan_fold(a.fold, p, params, workspace);

  const bool full = p.filter == Filter::kFull;
  if (full) {
    a.spectral = {call.saved.u, nullptr, nullptr, workspace.take(map), params.spectral_filter,
                  nullptr,      p.grid,  p.batch, c,                   1};
  }

  if (rebuild_) {
    a.mix_up = mix_up_.params(p, a.fold, 1, 4, call.seed);
    a.mix_up.x = call.out;
    a.mix_up.out = call.rebuilt;
    a.mix_up.u = call.saved.u;
    a.mix_up.f = full ? a.spectral.to : call.saved.u;
  }

  ContractParams& contract = a.contract;
  contract.dout = call.dout;
  contract.u = call.saved.u;
  contract.f = full ? a.spectral.to : call.saved.u;
  contract.kernels = a.fold.kernels;
  contract.up = a.fold.matrices[0].to;
  contract.point = a.fold.matrices[1].to;
  contract.point_back = a.fold.matrices[2].to;
  contract.point_bias = a.fold.point_bias_out;
  contract.counters = a.fold.counters;
  contract.grid = p.grid;
  contract.dim = p.dim;
  contract.rows = tile_rows(contract_.warps, p.grid);
  contract.tiles = ceil_div(p.grid.tokens, contract.rows);
  contract.total = p.batch * contract.tiles;
  contract.each = each_;
  contract.work = contract_work(contract_.warps, p.grid, padded, contract_.pass, bytes);
  contract.prefetched = prefetched_;
  contract.dropout = dropout_of(p, call.seed);
  const int point_blocks = ceil_div(contract.total, each_);
  contract.dv = workspace.take(map);
  if (need_params_) {
    contract.z = workspace.take(map);
    contract.d_point = workspace.floats(static_cast<long long>(point_blocks) * (padded + 1) * padded);
  }
  if (correlates_)
    contract.correlation = workspace.floats(static_cast<long long>(contract.total) * kBankRows * padded);
  float* const records = workspace.floats(static_cast<long long>(p.batch) * record_size(padded, p.hidden));
  contract.gate = {call.saved.gate,   a.fold.bank,       call.saved.pooled, params.spectral_filter,
                   params.gate_weight0, params.gate_bias0, params.gate_weight2, records,
                   p.filter,          c,                 p.hidden,          frequencies_of(p)};

  MixBackParams& mix_back = a.mix_back;
  mix_back.dv = contract.dv;
  mix_back.u_norm = call.saved.u_norm;
  mix_back.kernels = a.fold.kernels;
  mix_back.records = p.has_gate ? records : nullptr;
  mix_back.row_sum = a.fold.sums;
  mix_back.scale = a.fold.scale;
  mix_back.du = workspace.take(map);
  mix_back.row_means = workspace.floats(tokens * 2);
  mix_back.grid = p.grid;
  mix_back.dim = p.dim;
  mix_back.rows = tile_rows(mix_back_.warps, p.grid);
  mix_back.tiles = ceil_div(p.grid.tokens, mix_back.rows);
  mix_back.record_size = record_size(padded, p.hidden);
  mix_back.skip = !full;
  if (full) {
    SpectralParams& back = a.spectral_back;
    back = {mix_back.du, nullptr, contract.dv, mix_back.du, params.spectral_filter,
            nullptr,     p.grid,  p.batch,     c,           1};
    if (need_params_) {
      back.input = call.saved.u;
      back.each = spectral_.each();
      back.d_filter = workspace.floats(static_cast<long long>(ceil_div(p.batch, back.each)) * c *
                                       frequencies_of(p));
    }
    a.row_means = {mix_back.du,   mix_back.u_norm, mix_back.row_sum,         mix_back.scale,
                   mix_back.row_means, static_cast<int>(tokens), p.dim};
  }

  ExpandParams& expand = a.expand;
  expand.x = call.x;
  expand.dout = call.dout;
  if (need_input_) expand.dx = call.dx;
  expand.du = mix_back.du;
  expand.z = contract.z;
  expand.stats = call.saved.stats;
  expand.row_means = mix_back.row_means;
  expand.down = a.fold.matrices[3].to;
  expand.gammax = params.gammax;
  expand.gamma = params.gamma;
  expand.norm_weight = params.norm_weight;
  expand.tokens = divisor(p.grid.tokens);
  expand.total = static_cast<int>(tokens);
  expand.dim = p.dim;
  expand.slices = slices;
  expand.tiles = ceil_div(expand.total, expand_tokens_);
  expand.each = expand_each_;
  const int expand_groups = ceil_div(expand.tiles, expand.each);
  if (!need_params_) return;
  expand.d_weights = workspace.floats(static_cast<long long>(expand_groups) * 3 * padded * finish_dim);
  expand.d_up_bias = workspace.floats(static_cast<long long>(expand_groups) * finish_dim);
  expand.d_down_bias = workspace.floats(static_cast<long long>(expand_groups) * padded);

  FinishParams& finish = a.finish;
  finish.d_weights = expand.d_weights;
  finish.d_up_bias = expand.d_up_bias;
  finish.d_down_bias = expand.d_down_bias;
  finish.d_point = contract.d_point;
  finish.correlation = contract.correlation;
  finish.gate = call.saved.gate;
  finish.records = records;
  finish.norm_weight = params.norm_weight;
  finish.norm_bias = params.norm_bias;
  finish.gamma = params.gamma;
  finish.gammax = params.gammax;
  finish.down_weight = params.down_weight;
  finish.spectral_filter = params.spectral_filter;
  finish.d_norm_weight = grads.norm_weight;
  finish.d_norm_bias = grads.norm_bias;
  finish.d_gamma = grads.gamma;
  finish.d_gammax = grads.gammax;
  finish.d_down_weight = grads.down_weight;
  finish.d_down_bias_out = grads.down_bias;
  finish.d_up_weight = grads.up_weight;
  finish.d_up_bias_out = grads.up_bias;
  for (int i = 0; i < 3; ++i) {
    finish.d_conv_weight[i] = grads.conv_weight[i];
    finish.d_conv_bias[i] = grads.conv_bias[i];
  }
  finish.d_gate_weight0 = grads.gate_weight0;
  finish.d_gate_bias0 = grads.gate_bias0;
  finish.d_gate_weight2 = grads.gate_weight2;
  finish.d_gate_bias2 = grads.gate_bias2;
  finish.d_spectral_filter = grads.spectral_filter;
  finish.d_point_weight = grads.pointwise_weight;
  finish.d_point_bias = grads.pointwise_bias;
  finish.filter = p.filter;
  finish.batch = p.batch;
  finish.dim = p.dim;
  finish.padded_dim = finish_dim;
  finish.channels = c;
  finish.hidden = p.hidden;
  finish.groups = expand_groups;
  finish.point_blocks = point_blocks;
  finish.tiles = contract.tiles;
  finish.d_filter = a.spectral_back.d_filter;
  finish.filter_groups = full ? ceil_div(p.batch, a.spectral_back.each) : 0;
  finish.filter_size = p.filter == Filter::kNone ? 0 : c * frequencies_of(p);
}

void BackwardPlan::run(const BackwardCall& call, const Launch& launch) const {
  Arrays a;
  Workspace workspace(call.workspace);
  arrange(a, call, workspace);
  const Problem& p = problem_;
  const int padded = padded_channels(p.channels);
  launch(0, fold_blocks(a.fold), kFoldThreads * 4, &a.fold);
  const bool full = p.filter == Filter::kFull;
  if (full) launch(5, spectral_.blocks(a.spectral), spectral_.shared(), &a.spectral);
  if (rebuild_)
    launch(static_cast<int>(kernels_.size()) - 1, p.batch * a.mix_up.tiles, mix_up_.shared(p),
           &a.mix_up);
  launch(1, ceil_div(a.contract.total, each_), contract_.shared, &a.contract);
  launch(2, p.batch * a.mix_back.tiles, mix_back_.shared, &a.mix_back);
  if (full) {
    launch(5, spectral_.blocks(a.spectral_back), spectral_.shared(), &a.spectral_back);
    launch(6, ceil_div(a.row_means.tokens, row_means_tokens(padded)), 0, &a.row_means);
  }
  launch(3, a.expand.slices * ceil_div(a.expand.tiles, a.expand.each),
         expand_shared_, &a.expand);
  if (need_params_)
    launch(4, finish_blocks(a.finish.padded_dim, padded, p.hidden, a.finish.filter_size),
           finish_shared(padded), &a.finish);
}

}  // namespace fastht::cuda
