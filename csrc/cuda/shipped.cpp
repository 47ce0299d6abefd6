#include "cuda/shipped.h"

#include <set>
#include <stdexcept>
#include <string>

namespace fastht::cuda {
namespace {

struct Numbers {
  Format x, products;
  bool tf32;
};
// x and products of one dtype, and float32 tokens under autocast.
constexpr Numbers kNumbers[] = {
    {Format::kBfloat16, Format::kBfloat16, false}, {Format::kFloat16, Format::kFloat16, false},
    {Format::kFloat32, Format::kBfloat16, false},  {Format::kFloat32, Format::kFloat16, false},
    {Format::kFloat32, Format::kFloat32, true},    {Format::kFloat32, Format::kFloat32, false},
};
// Of compute capabilities 8.0, 8.6 (and 8.9, 12.0), 9.0 (and 10.0): CUDA C++ programming guide.
constexpr Device kDevices[] = {
    {166912, 167936, 108}, {101376, 102400, 84}, {232448, 233472, 132}};
constexpr Grid kGrids[] = {{5, 1, 2, 2}, {50, 1, 7, 7}, {197, 1, 14, 14}, {1025, 1, 32, 32},
                           {1370, 1, 37, 37}};

}  // namespace

std::vector<Kernel> shipped_kernels(bool common) {
  std::vector<Kernel> kernels;
  std::set<std::string> known;
  const auto add = [&](const std::vector<Kernel>& some) {
    for (const Kernel& kernel : some)
      if (known.insert(kernel.source()).second) kernels.push_back(kernel);
  };
  for (const Numbers& numbers : kNumbers)
    for (const int channels : {32, 64, 128})
      for (const bool aligned : {true, false})
        for (const Filter filter : {Filter::kChannel, Filter::kFull})
          for (const Device& device : kDevices)
            for (const Grid& grid : kGrids) {
              if (common && !aligned) continue;
              const Problem problem{2, grid, 768, channels, channels / 4, 1e-5f, true, filter,
                                    numbers.x, numbers.products, numbers.tf32, 0.1, aligned};
              try {
                add(ForwardPlan(problem, device).kernels());
                // x is rebuilt by default where it is float32.
                const bool rebuild = numbers.x == Format::kFloat32;
                for (const bool input : {true, false})
                  add(BackwardPlan(problem, device, input, true, rebuild).kernels());
                add(BackwardPlan(problem, device, true, false).kernels());
              } catch (const std::invalid_argument&) {
                // The grid does not fit the device's shared memory; a call says so.
              }
            }
  return kernels;
}

}  // namespace fastht::cuda
