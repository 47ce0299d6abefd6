// The tests of the simulated CUDA kernels, one a kernel. `thorough`: with all number types, which
// the race detector and the sanitizers need not see again.
#pragma once

namespace fastht::cuda::test {

void test_mix_up(bool thorough);
void test_forward(bool thorough);
void test_faults();
void test_rounding();
void test_contract(bool thorough);
void test_mix_back(bool thorough);
void test_expand(bool thorough);
void test_spectral(bool thorough);
void test_backward(bool thorough);

}  // namespace fastht::cuda::test
