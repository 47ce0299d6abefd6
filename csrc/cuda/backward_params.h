// Parameters and shapes of the backward kernels.
#pragma once

#include "cuda/params.h"

namespace fastht::cuda {}  // namespace fastht::cuda
