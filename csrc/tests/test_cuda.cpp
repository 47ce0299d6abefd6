// The CUDA kernels in the simulator, without Python: what sanitizers and the race detector run.

#include <cstring>

#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

int main(int argc, char** argv) {
  using namespace fastht::cuda::test;
  const bool thorough = !(argc > 1 && std::strcmp(argv[1], "quick") == 0);
  test_rounding();
  test_faults();
  test_mix_up(thorough);
  test_forward(thorough);
  test_contract(thorough);
  test_mix_back(thorough);
  test_spectral(thorough);
  test_expand(thorough);
  test_backward(thorough);
  const int races = fastht::simulate::race_count();
  expect(races == 0, std::to_string(races) + " races");
  if (failures == 0) std::printf("the simulated CUDA kernels are right\n");
  return failures > 0;
}
