// The tests of the simulated CUDA kernels, one a kernel. `thorough`: with all number types, which
// the race detector and the sanitizers need not see again.
#pragma once

namespace fastht::cuda::test {

void test_mix_up(bool thorough);
void test_forward(bool thorough);
void test_faults();
void test_rounding();

}  // namespace fastht::cuda::test
