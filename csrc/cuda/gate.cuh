// The noise gate, and with it each image's own 7x7 kernel (eq. 3 and 4).
#pragma once

#include "cuda/fragments.cuh"

namespace fastht::cuda {

// Row `row` of convolution k (3x3, 5x5, 7x7) as a 7x7 one: a tap, or the bias in row 49.
FASTHT_DEVICE float bank_value(const Array& weight, const Array& bias, int k, int row, int c) {
  if (row == kTaps) return read(bias, c);
  const int side = 3 + 2 * k, edge = 2 - k, i = row / 7 - edge, j = row % 7 - edge;
  if (i < 0 || i >= side || j < 0 || j >= side) return 0.0f;
  return read(weight, c * side * side + i * side + j);
}

// What the gate's functions need of a call.
struct GateLayers {
  Array weight0, bias0, weight2, bias2;
  int channels, hidden;
};

// hidden[q] = M1 mean + m1 before its ReLU, for a block of kThreads, a warp for each q; the values
// lie in shared memory, and a barrier has yet to come.
template <int kThreads>
FASTHT_DEVICE void hidden_layer(float* hidden, const float* mean, const GateLayers& p) {
  const int lane = thread_index() % kLanes;
  for (int q = thread_index() / kLanes; q < p.hidden; q += kThreads / kLanes) {
    float sum = 0.0f;
    for (int c = lane; c < p.channels; c += kLanes)
      sum += read(p.weight0, q * p.channels + c) * mean[c];
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) hidden[q] = sum + read(p.bias0, q);
  }
}

// softmax(M2 relu(hidden) + m2), in every thread.
FASTHT_DEVICE void gate_weights(float (&gate)[3], const float* hidden, const GateLayers& p) {
  float largest = 0.0f, total = 0.0f;
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    float sum = read(p.bias2, k);
    for (int q = 0; q < p.hidden; ++q) {
      const float active = hidden[q] <= 0.0f ? 0.0f : hidden[q];  // a NaN stays
      sum += read(p.weight2, k * p.hidden + q) * active;
    }
    gate[k] = sum;
    largest = k == 0 || sum > largest ? sum : largest;
  }
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) total += gate[k] = exponential(gate[k] - largest);
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) gate[k] /= total;
}

}  // namespace fastht::cuda
