// The adapter's forward pass in float64, and a problem with its parameters, for the tests of plans.
#pragma once

#include <vector>

#include "cuda/plan.h"
#include "tests/cuda_support.h"

namespace fastht::cuda::test {

struct Setting {
  int batch, prefix, height, width, dim, channels;
  bool gate = true;
  Filter filter = Filter::kChannel;
  float dropout = 0.0f;
  float offset = 0.0f;
  Format format = Format::kFloat32;  // of the parameters
};

// A configuration with tokens and parameters, and what the forward pass makes of them in float64.
class Model {
 public:
  Model(const Setting& s, Format x, Format products, bool tf32, bool aligned);

  Problem problem;
  Setting setting;
  int stride;
  Buffer x, out;
  std::vector<Buffer> arrays;  // in the order of `Parameters`
  Parameters params;
  unsigned long long seed = 0x123456789abcdefull;

  Tokens tokens(const Buffer& buffer) const {
    return {buffer.data(), static_cast<long long>(problem.grid.tokens) * stride, stride};
  }
  OutTokens out_tokens(const Buffer& buffer) const {
    return {buffer.data(), static_cast<long long>(problem.grid.tokens) * stride, stride};
  }
  // out - x, [B, N, D].
  std::vector<double> update() const;
};

// irfft2(rfft2(s) * A) of the map [H, W] of channel c, where A is [channels, H, W / 2 + 1].
std::vector<double> filtered(const std::vector<double>& s, const Array& filter, int c, int height,
                             int width);
// Adds the gradient of A for that channel, of the sum of gradient * filtered(s), to `to`.
void add_filter_gradient(std::vector<double>& to, const std::vector<double>& s,
                         const std::vector<double>& gradient, int c, int height, int width);

// Which kernels a test has compiled, by the names that plans give them; fails for any other.
using Runner = void (*)(const void* params, int blocks, int threads, int shared, uint64_t order,
                        bool truncate);
struct Instance {
  const char* function;
  Runner run;
};
Launch launcher(const std::vector<Kernel>& kernels, const std::vector<Instance>& instances,
                uint64_t order, bool truncate);
template <class Params, void (*kernel)(const Params&)>
void run_instance(const void* params, int blocks, int threads, int shared, uint64_t order,
                  bool truncate) {
  run<Params>(kernel, *static_cast<const Params*>(params), blocks, threads, shared, order,
              truncate);
}

}  // namespace fastht::cuda::test
