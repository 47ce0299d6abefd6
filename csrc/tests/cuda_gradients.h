// The adapter's gradients in float64, for the tests of the backward plan.
#pragma once

#include "tests/cuda_model.h"

namespace fastht::cuda::test {

struct Gradients {
  std::vector<double> dx;                   // [B, N, D]
  std::vector<std::vector<double>> params;  // in the order of Model::arrays
};
// Of the sum of dout * out; dout lies as the model's x does.
Gradients gradients_of(const Model& model, const Buffer& dout);

// The arrays of `params` that a model has, in the order of Model::arrays.
std::vector<Array*> arrays_of(Parameters& params, const Problem& problem);
std::vector<std::string> names_of(const Problem& problem);

}  // namespace fastht::cuda::test
