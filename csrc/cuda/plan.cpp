#include "cuda/plan.h"

#include <cmath>
#include <stdexcept>

namespace fastht::cuda {

std::string Kernel::source() const {
  return "#include \"cuda/" + file + "\"\nFASTHT_INSTANCE(" +
         function.substr(0, function.find('<')) + ", " + params + ", " +
         std::to_string(threads) + ", " + std::to_string(blocks_per_multiprocessor) + ", " +
         function + ")\n";
}

int padded_channels(int channels) {
  if (channels < 1 || channels > 128)
    throw std::invalid_argument("the bottleneck has " + std::to_string(channels) +
                                " channels; the CUDA kernels take 1 to 128");
  return channels <= 32 ? 32 : channels <= 64 ? 64 : 128;
}

int blocks_at_once(const Device& device, int warps, int registers, int shared) {
  // Each of four schedulers has 512 registers a lane for its warps, given out eight at a time.
  const int by_registers = 512 / (ceil_div(registers, 8) * 8) * 4 / warps;
  const int by_shared = device.shared_per_multiprocessor / (shared + kReserved);
  return by_shared < by_registers ? by_shared : by_registers;
}

int prefetched_features(const Device& device, int blocks, int rows, int x_bytes) {
  constexpr int kPrefetched = 160 * 1024;  // bytes of a multiprocessor's blocks
  // Chips whose multiprocessors have so much shared memory have an L2 cache of more than twice that
  // for each; of others some have little.
  if (device.shared_per_multiprocessor <= kPrefetched) return 0;
  return kPrefetched / (blocks * rows * x_bytes) / 64 * 64;
}

int forward_registers(const Problem& problem) {
  const bool strict = problem.products == Format::kFloat32 && !problem.tf32;
  if (strict || padded_channels(problem.channels) == 128) return 255;
  // Tokens that are not aligned go through registers, or need more addresses. (Of float32 products
  // shared memory keeps a second block out.)
  return problem.aligned || bytes_of(problem.products) == 4 ? 128 : 168;
}

int bytes_of(Format format) { return format == Format::kFloat32 ? 4 : 2; }

std::string numbers_of(const Problem& problem) {
  const char* const formats[] = {"Bfloat16", "Float16", "Float32"};
  std::string products = formats[static_cast<int>(problem.products)];
  if (problem.products == Format::kFloat32 && problem.tf32) products = "Tf32";
  return std::string(formats[static_cast<int>(problem.x)]) + ", " + products + "Products, " +
         std::to_string(padded_channels(problem.channels));
}

Dropout dropout_of(const Problem& problem, const unsigned long long* seed) {
  return {problem.dropout > 0 ? seed : nullptr,
          static_cast<unsigned>(std::nearbyint(problem.dropout * (1 << 24))),
          static_cast<float>(1.0 / (1.0 - problem.dropout)), ceil_div(problem.channels, 4)};
}

void plan_fold(FoldParams& fold, const Problem& problem, const Parameters& params,
               Workspace& workspace) {
  const int padded = padded_channels(problem.channels);
  const int slice = slice_width(padded, bytes_of(problem.products));
  fold.norm_weight = params.norm_weight;
  fold.norm_bias = params.norm_bias;
  fold.gamma = params.gamma;
  fold.gammax = params.gammax;
  fold.down_weight = params.down_weight;
  fold.down_bias = params.down_bias;
  fold.point_bias = params.pointwise_bias;
  fold.up_bias = params.up_bias;
  for (int i = 0; i < 3; ++i) {
    fold.conv_weight[i] = params.conv_weight[i];
    fold.conv_bias[i] = params.conv_bias[i];
  }
  fold.spectral_filter = params.spectral_filter;
  fold.filter = problem.filter;
  fold.batch = problem.batch;
  fold.dim = problem.dim;
  fold.padded_dim = ceil_div(problem.dim, slice) * slice;
  fold.channels = problem.channels;
  fold.scale = workspace.floats(1);
  fold.sums = workspace.floats(2 * padded);
  fold.bank = workspace.floats(3 * kBankRows * padded);
  fold.kernels = workspace.floats(static_cast<long long>(problem.batch) * kBankRows * padded);
  fold.point_bias_out = workspace.floats(padded);
  fold.up_bias_out = workspace.floats(fold.padded_dim);
  fold.counters = workspace.take<unsigned>(problem.batch * 4ll);
  int next = 0;
  for (int i = 0; i < fold.matrix_count; ++i) {
    FoldMatrix& matrix = fold.matrices[i];
    fold.first[i] = next;
    next += ceil_div(matrix.outputs * matrix.groups, kFoldBlocks);
    matrix.to = workspace.take(static_cast<long long>(matrix.outputs) * matrix.groups * 256 *
                               bytes_of(problem.products));
  }
  const int kernels = fold_kernel_parts(padded) * ceil_div(problem.batch, kFoldImages);
  const int counts[] = {padded,
                        ceil_div(3 * kBankRows * padded, kFoldThreads), 1,
                        fold.gate != nullptr ? kernels : 0};
  for (int i = 0; i < 4; ++i) {
    fold.first[fold.matrix_count + i] = next;
    next += counts[i];
  }
  fold.first[fold.matrix_count + 4] = next;
}

int fold_blocks(const FoldParams& fold) { return fold.first[fold.matrix_count + 4]; }

Kernel fold_kernel(const Problem& problem) {
  const std::string numbers = numbers_of(problem);  // without the format of x, which it never sees
  return {"fold.cuh", "FoldParams", "fold<" + numbers.substr(numbers.find(' ') + 1) + ">",
          kFoldThreads, 1};
}

}  // namespace fastht::cuda
