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
    int at[4];  // 128 channels at most
    float weight[4], sum = 0.0f;
    FASTHT_UNROLL for (int i = 0; i < 4; ++i)
      at[i] = lane + i * kLanes < p.channels ? q * p.channels + lane + i * kLanes : -1;
    read_all(weight, p.weight0, at);
    const float bias = read(p.bias0, q);
    FASTHT_UNROLL for (int i = 0; i < 4; ++i)
      if (at[i] >= 0) sum += weight[i] * mean[lane + i * kLanes];
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) hidden[q] = sum + bias;
  }
}

// softmax(M2 relu(hidden) + m2), in every thread: a lane for each of the hidden layer's units.
FASTHT_DEVICE void gate_weights(float (&gate)[3], const float* hidden, const GateLayers& p) {
  const int q = thread_index() % kLanes;
  int at[3];
  float weight[3], bias[3], active = 0.0f, largest = 0.0f, total = 0.0f;
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) at[k] = q < p.hidden ? k * p.hidden + q : -1;
  read_all(weight, p.weight2, at);
  read_all(bias, p.bias2, {0, 1, 2});
  if (q < p.hidden) active = hidden[q] <= 0.0f ? 0.0f : hidden[q];  // a NaN stays
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    float sum = weight[k] * active;
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    gate[k] = sum + bias[k];
    largest = k == 0 || gate[k] > largest ? gate[k] : largest;
  }
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) total += gate[k] = exponential(gate[k] - largest);
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) gate[k] /= total;
}

}  // namespace fastht::cuda
