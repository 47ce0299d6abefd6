// The forward plan in the simulator against float64: fold, down with the gate, mix_up.

#include "cuda/down.cuh"
#include "cuda/fold.cuh"
#include "cuda/mix_up.cuh"
#include "cuda/spectral.cuh"
#include "tests/cuda_model.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

#define INSTANCE(Params, ...) \
  Instance { #__VA_ARGS__, run_instance<Params, __VA_ARGS__> }

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = {
      INSTANCE(FoldParams, fold<Bfloat16Products, 64>),
      INSTANCE(DownParams, down<Bfloat16, Bfloat16Products, 64, 2, 3, true>),
      INSTANCE(DownParams, down<Bfloat16, Bfloat16Products, 64, 3, 3, true>),
      INSTANCE(MixUpParams, mix_up<Bfloat16, Bfloat16Products, 64, 4, 64, 3, 1, true>),
      INSTANCE(MixUpParams, mix_up<Bfloat16, Bfloat16Products, 64, 8, 64, 5, 3, true>),
      INSTANCE(SpectralParams, spectral<Bfloat16Products, 64, 8, 128>),
      INSTANCE(SpectralParams, spectral<Float32Products, 32, 8, 128>),
      INSTANCE(FoldParams, fold<Float32Products, 32>),
      INSTANCE(DownParams, down<Float32, Float32Products, 32, 4, 3, false>),
      INSTANCE(MixUpParams, mix_up<Float32, Float32Products, 32, 4, 32, 5, 5, false>),
      INSTANCE(FoldParams, fold<Tf32Products, 128>),
      INSTANCE(DownParams, down<Float32, Tf32Products, 128, 4, 2, false>),
      INSTANCE(MixUpParams, mix_up<Float32, Tf32Products, 128, 4, 32, 6, 6, false>),
  };
  return all;
}

const Device kLarge{232448, 233472, 132}, kSmall{101376, 102400, 84};

struct Kept {
  Buffer u, u_norm, stats, pooled, gate;
  Kept(const Problem& p, int padded)
      : u(static_cast<long long>(p.batch) * p.grid.tokens * padded, p.products),
        u_norm(static_cast<long long>(p.batch) * p.grid.tokens * padded, p.products),
        stats(static_cast<long long>(p.batch) * p.grid.tokens * 2, Format::kFloat32),
        pooled(p.batch * padded, Format::kFloat32),
        gate(p.batch * 4, Format::kFloat32) {}
  Saved saved() const {
    return {u.data(), u_norm.data(), stats.floats(), pooled.floats(), gate.floats()};
  }
};

void forward_case(const Setting& setting, Format x, Format products, bool aligned, double bound,
                  const Device& device = kLarge, bool tf32 = false) {
  Model model(setting, x, products, tf32, aligned);
  const ForwardPlan plan(model.problem, device);
  const std::vector<double> exact = model.update();
  const Kept kept(model.problem, padded_channels(setting.channels));
  std::vector<Buffer> outs;
  // In order and keeping what backward needs; shuffled and not keeping it; truncating.
  for (int i = 0; i < 3; ++i) {
    Buffer out(model.out.size(), x, aligned ? 0 : 1);
    Buffer workspace(static_cast<long long>(plan.workspace_bytes() / 4), Format::kFloat32);
    ForwardCall call{model.tokens(model.x), model.out_tokens(out), model.params, &model.seed,
                     i == 1 ? Saved{} : kept.saved(), workspace.data()};
    plan.run(call, launcher(plan.kernels(), instances(), i == 1 ? 5 : 0, i == 2));
    Error error;
    for (int row = 0; row < setting.batch * model.problem.grid.tokens; ++row)
      for (int d = 0; d < setting.dim; ++d) {
        const long long at = static_cast<long long>(row) * model.stride + d;
        error.add(double{out.at(at)} - model.x.at(at),
                  exact[static_cast<size_t>(row) * setting.dim + d]);
      }
    char text[200];
    std::snprintf(text, sizeof text, "forward B%d P%d %dx%d D%d C%d, mode %d: %.2e, bound %.0e",
                  setting.batch, setting.prefix, setting.height, setting.width, setting.dim,
                  setting.channels, i, error.relative(), bound);
    expect(error.relative() < bound, text);
    for (const Buffer* buffer : {&kept.u, &kept.u_norm, &kept.stats, &kept.pooled, &kept.gate})
      for (long long j = 0; j < buffer->size(); ++j)
        expect(!std::isnan(buffer->at(j)), "forward leaves out a part of what it keeps");
    outs.push_back(std::move(out));
  }
  expect(outs[0].same_bits(outs[1]), "forward: other bits in another order or without keeping");
}

}  // namespace

void test_forward(bool thorough) {
  const Format half = Format::kBfloat16, full = Format::kFloat32;
  forward_case({2, 1, 5, 6, 72, 64, true, Filter::kChannel, 0.1f}, half, half, true, 1e-2, kSmall);
  forward_case({2, 1, 5, 6, 67, 16, true, Filter::kChannel, 0.1f}, full, full, false, 2e-6);
  forward_case({2, 1, 5, 6, 67, 16, true, Filter::kFull, 0.1f}, full, full, false, 2e-6);
  if (!thorough) return;
  forward_case({2, 5, 9, 15, 128, 64, true, Filter::kFull, 0.0f}, half, half, true, 1e-2);
  forward_case({2, 5, 9, 15, 128, 64, false, Filter::kNone, 0.0f}, half, half, true, 1e-2);
  forward_case({2, 1, 5, 6, 67, 128, true, Filter::kChannel, 0.1f}, full, full, false, 2e-3, kLarge,
               true);
  forward_case({3, 0, 1, 1, 40, 32, true, Filter::kNone, 0.2f}, full, full, false, 2e-6);
  forward_case({2, 1, 6, 7, 97, 32, false, Filter::kChannel, 0.0f, 30.0f}, full, full, false, 1e-5);
}

}  // namespace fastht::cuda::test
