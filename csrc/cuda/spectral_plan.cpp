// The launches of a full spectral filter, in either pass.

#include <stdexcept>

#include "cuda/plan.h"

namespace fastht::cuda {
namespace {

std::string products_of(const Problem& problem) {
  const std::string numbers = numbers_of(problem);  // without the format of x, which it never sees
  return numbers.substr(numbers.find(' ') + 1);
}

}  // namespace

SpectralPlan::SpectralPlan(const Problem& problem, const Device& device)
    : padded_(padded_channels(problem.channels)) {
  // Eight channels of 16 bits are a half of the 32 bytes that memory hands out at once; fewer of
  // them only where the maps are large.
  for (slice_ = 8; slice_ >= 2; slice_ /= 2) {
    shared_ = spectral_shared(problem.grid, slice_);
    if (shared_ <= device.shared_per_block) break;
  }
  if (slice_ < 2)
    throw std::invalid_argument(
        "the full spectral filter of a grid of " + std::to_string(problem.grid.height) + "x" +
        std::to_string(problem.grid.width) + " patches needs more shared memory than this GPU's" +
        " blocks have (" + std::to_string(device.shared_per_block) + " bytes)");
  threads_ = problem.grid.height * problem.grid.width > 256 ? 256 : 128;
  // As many blocks as the multiprocessors hold at once, four of 128 threads each, add up the
  // filter's gradient.
  const int slices = padded_ / slice_;
  const int groups = largest(4 * device.multiprocessors * 128 / threads_ / slices, 1);
  each_ = ceil_div(problem.batch, groups);
}

std::vector<Kernel> SpectralPlan::kernels(const Problem& problem) const {
  const std::string numbers = products_of(problem);
  return {{"spectral.cuh", "SpectralParams",
           "spectral<" + numbers + ", " + std::to_string(slice_) + ", " +
               std::to_string(threads_) + ">",
           threads_, 512 / threads_},
          {"row_means.cuh", "RowMeansParams", "row_means<" + numbers + ">", kRowMeansThreads, 1}};
}

int SpectralPlan::blocks(const SpectralParams& p) const {
  return ceil_div(p.batch, p.each) * (padded_ / slice_);
}

}  // namespace fastht::cuda
