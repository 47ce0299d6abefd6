#include "cuda/plan.h"

#include <stdexcept>

namespace fastht::cuda {

std::string Kernel::source() const {
  return "#include \"cuda/" + file + "\"\nFASTHT_INSTANCE(" + params + ", " +
         std::to_string(threads) + ", " + std::to_string(blocks_per_multiprocessor) + ", " +
         function + ")\n";
}

int padded_channels(int channels) {
  if (channels < 1 || channels > 128)
    throw std::invalid_argument("the bottleneck has " + std::to_string(channels) +
                                " channels; the CUDA kernels take 1 to 128");
  return channels <= 32 ? 32 : channels <= 64 ? 64 : 128;
}

int bytes_of(Format format) { return format == Format::kFloat32 ? 4 : 2; }

}  // namespace fastht::cuda
