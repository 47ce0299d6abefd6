// Every kernel that calls can need: what is compiled ahead and what the compile gate looks at.
#pragma once

#include <vector>

#include "cuda/plan.h"

namespace fastht::cuda {

// Without repetition, in a fixed order. `common`: only those of aligned tokens.
std::vector<Kernel> shipped_kernels(bool common);

}  // namespace fastht::cuda
