// The backward plan in the simulator against float64, after the forward plan on the same problem.

#include "cuda/contract.cuh"
#include "cuda/down.cuh"
#include "cuda/expand.cuh"
#include "cuda/finish.cuh"
#include "cuda/fold.cuh"
#include "cuda/mix_back.cuh"
#include "cuda/mix_up.cuh"
#include "cuda/row_means.cuh"
#include "cuda/spectral.cuh"
#include "tests/cuda_gradients.h"
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
      INSTANCE(ContractParams, contract<Bfloat16, Bfloat16Products, 64, 2, 32, 256, true>),
      INSTANCE(ContractParams, contract<Bfloat16, Bfloat16Products, 64, 8, 64, 256, true>),
      INSTANCE(MixBackParams, mix_back<Bfloat16Products, 64, 2, 64>),
      INSTANCE(MixBackParams, mix_back<Bfloat16Products, 64, 8, 64>),
      INSTANCE(ExpandParams, expand<Bfloat16, Bfloat16Products, 64, 64, 3, true>),
      INSTANCE(ExpandParams, expand<Bfloat16, Bfloat16Products, 64, 32, 2, true>),
      INSTANCE(FinishParams, finish<64>),
      INSTANCE(SpectralParams, spectral<Bfloat16Products, 64, 8, 128>),
      INSTANCE(SpectralParams, spectral<Float32Products, 32, 8, 128>),
      INSTANCE(RowMeansParams, row_means<Bfloat16Products, 64>),
      INSTANCE(RowMeansParams, row_means<Float32Products, 32>),
      INSTANCE(FoldParams, fold<Float32Products, 32>),
      INSTANCE(DownParams, down<Float32, Float32Products, 32, 4, 3, false>),
      INSTANCE(MixUpParams, mix_up<Float32, Float32Products, 32, 4, 32, 5, 5, false>),
      INSTANCE(MixUpParams, mix_up<Float32, Float32Products, 32, 4, 32, 5, 5, false, true>),
      INSTANCE(ContractParams, contract<Float32, Float32Products, 32, 2, 32, 256, false>),
      INSTANCE(ContractParams, contract<Float32, Float32Products, 32, 4, 32, 256, false>),
      INSTANCE(MixBackParams, mix_back<Float32Products, 32, 2, 32>),
      INSTANCE(MixBackParams, mix_back<Float32Products, 32, 4, 32>),
      INSTANCE(ExpandParams, expand<Float32, Float32Products, 32, 32, 3, false>),
      INSTANCE(ExpandParams, expand<Float32, Float32Products, 32, 32, 2, false>),
      INSTANCE(FinishParams, finish<32>),
  };
  return all;
}

const Device kLarge{232448, 233472, 132}, kSmall{101376, 102400, 84}, kFew{232448, 233472, 2};

// The analytic gradients agree with differences of the forward pass in float64.
void check_gradients(const Setting& setting) {
  Model model(setting, Format::kFloat32, Format::kFloat32, false, true);
  Buffer dout(model.x.size(), Format::kFloat32);
  std::mt19937 random(5);
  dout.normal(random, 1);
  const Gradients exact = gradients_of(model, dout);
  const auto loss = [&] {
    const std::vector<double> update = model.update();
    double sum = 0;
    for (size_t i = 0; i < update.size(); ++i)
      sum += update[i] * dout.at(i / setting.dim * model.stride + i % setting.dim);
    return sum;
  };
  const std::vector<std::string> names = names_of(model.problem);
  for (size_t a = 0; a <= names.size(); ++a) {
    Buffer& array = a < names.size() ? model.arrays[a] : model.x;
    const long long i = a < names.size() ? array.size() / 3 : model.stride + 3;
    const float value = array.at(i), up = value + 0x1p-7f, down = value - 0x1p-7f;
    array.set(i, up);
    const double above = loss();
    array.set(i, down);
    const double below = loss(), slope = (above - below) / (double{up} - down);
    array.set(i, value);
    const double found = a < names.size() ? exact.params[a][i]
                                          : exact.dx[setting.dim + 3] - dout.at(i);
    expect(std::abs(found - slope) < 2e-3 * std::abs(slope) + 1e-3,
           "the float64 gradient of " + (a < names.size() ? names[a] : std::string("x")) + ": " +
               std::to_string(found) + ", by differences " + std::to_string(slope));
  }
}

void backward_case(const Setting& setting, Format x, Format products, bool aligned, double bound,
                   const Device& device = kLarge, bool need_input = true, bool need_params = true,
                   bool rebuild = false) {
  Model model(setting, x, products, false, aligned);
  const Problem& problem = model.problem;
  const int padded = padded_channels(setting.channels);
  const long long maps = static_cast<long long>(problem.batch) * problem.grid.tokens * padded;
  Buffer u(maps, products), u_norm(maps, products), stats(maps / padded * 2, Format::kFloat32),
      pooled(problem.batch * padded, Format::kFloat32), gate(problem.batch * 4, Format::kFloat32);
  const Saved saved{u.data(), u_norm.data(), stats.floats(), pooled.floats(), gate.floats()};
  const auto workspace_of = [](size_t bytes) {
    return Buffer(static_cast<long long>(bytes / 4), Format::kFloat32);
  };
  {
    const ForwardPlan plan(problem, device);
    const Buffer workspace = workspace_of(plan.workspace_bytes());
    plan.run({model.tokens(model.x), model.out_tokens(model.out), model.params, &model.seed, saved,
              workspace.data()}, launcher(plan.kernels(), instances(), 0, false));
  }
  Buffer dout(model.x.size(), x, aligned ? 0 : 1);
  std::mt19937 random(5);
  dout.normal(random, 1);
  const Gradients exact = gradients_of(model, dout);
  const std::vector<std::string> names = names_of(problem);
  const BackwardPlan plan(problem, device, need_input, need_params, rebuild);
  std::vector<Buffer> first;
  for (int mode = 0; mode < 3; ++mode) {  // in order, shuffled, truncating
    std::vector<Buffer> found;
    found.emplace_back(model.x.size(), x, aligned ? 0 : 1);
    Parameters grads = model.params;
    const std::vector<Array*> arrays = arrays_of(grads, problem);
    for (size_t i = 0; i < arrays.size(); ++i) {
      found.emplace_back(model.arrays[i].size(), setting.format);
      *arrays[i] = found.back().array();
    }
    const Buffer workspace = workspace_of(plan.workspace_bytes());
    BackwardCall call{model.tokens(dout), model.tokens(model.x), {}, model.params, grads,
                      need_params, &model.seed, saved, workspace.data()};
    if (need_input) call.dx = model.out_tokens(found[0]);
    Buffer scratch(rebuild && !need_input ? model.x.size() : 0, x, aligned ? 0 : 1);
    if (rebuild) {  // x is made of the output where dx comes later, or in memory of its own
      Buffer& made = need_input ? found[0] : scratch;
      call.x = model.tokens(made);
      call.out = model.tokens(model.out);
      call.rebuilt = model.out_tokens(made);
    }
    plan.run(call, launcher(plan.kernels(), instances(), mode == 1 ? 5 : 0, mode == 2));
    const auto below = [&](const Error& error, const std::string& name) {
      char text[200];
      std::snprintf(text, sizeof text, "backward B%d P%d %dx%d D%d C%d, mode %d, %s: %.2e, bound %.0e",
                    setting.batch, setting.prefix, setting.height, setting.width, setting.dim,
                    setting.channels, mode, name.c_str(), error.relative(), bound);
      expect(error.relative() < bound, text);
    };
    Error error;
    for (int row = 0; row < setting.batch * problem.grid.tokens && need_input; ++row)
      for (int d = 0; d < setting.dim; ++d) {  // the residual would hide errors
        const long long at = static_cast<long long>(row) * model.stride + d;
        error.add(double{found[0].at(at)} - dout.at(at),
                  exact.dx[static_cast<size_t>(row) * setting.dim + d] - dout.at(at));
      }
    below(error, "dx");
    for (size_t i = 0; i < arrays.size() && need_params; ++i) {
      Error of;
      for (long long j = 0; j < found[i + 1].size(); ++j) of.add(found[i + 1].at(j), exact.params[i][j]);
      below(of, names[i]);
    }
    if (mode == 0) first = std::move(found);
    for (size_t i = 0; i < found.size() && mode == 1; ++i)
      expect(first[i].same_bits(found[i]), "backward: other bits in another order, " +
                                               (i == 0 ? std::string("dx") : names[i - 1]));
  }
}

}  // namespace

void test_backward(bool thorough) {
  const Format half = Format::kBfloat16, full = Format::kFloat32;
  check_gradients({2, 1, 3, 4, 12, 8});
  check_gradients({2, 1, 3, 4, 12, 8, true, Filter::kFull});
  backward_case({2, 1, 5, 6, 72, 64, true, Filter::kChannel, 0.1f}, half, half, true, 2e-2, kSmall);
  backward_case({3, 1, 5, 6, 67, 16, true, Filter::kChannel, 0.1f}, full, full, false, 5e-6, kFew);
  // Two blocks of images a slice of channels: 2 multiprocessors of 4 blocks, 4 slices, 3 images.
  backward_case({3, 1, 5, 6, 67, 16, true, Filter::kFull, 0.1f}, full, full, false, 5e-6, kFew);
  backward_case({3, 1, 5, 6, 67, 16, true, Filter::kFull, 0.1f}, full, full, false, 5e-6, kFew, true,
                true, true);
  if (!thorough) return;
  for (const bool input : {true, false})  // each half alone, x from the output
    backward_case({3, 1, 5, 6, 67, 16, true, Filter::kChannel, 0.1f}, full, full, false, 5e-6, kFew,
                  input, !input, true);
  backward_case({2, 5, 9, 15, 128, 64, false, Filter::kFull, 0.0f}, half, half, true, 2e-2);
  backward_case({2, 1, 5, 6, 72, 64, true, Filter::kFull}, half, half, true, 2e-2, kSmall, true, false);
  backward_case({2, 5, 9, 15, 128, 64, false, Filter::kNone, 0.0f}, half, half, true, 2e-2);
  backward_case({3, 0, 1, 1, 40, 32, true, Filter::kNone, 0.2f}, full, full, false, 5e-6);
  backward_case({2, 1, 6, 7, 97, 32, false, Filter::kChannel, 0.0f, 30.0f}, full, full, false, 2e-5);
  backward_case({2, 1, 5, 6, 72, 64}, half, half, true, 2e-2, kSmall, true, false);
  backward_case({2, 1, 5, 6, 72, 64}, half, half, true, 2e-2, kSmall, false, true);
}

}  // namespace fastht::cuda::test
