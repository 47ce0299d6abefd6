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

// hidden[q] = M1 mean + m1 before its ReLU, for a block of kThreads, a warp for each q. The parameters
// of the first units are asked for when it is made, before the mean is known.
template <int kThreads>
struct HiddenLayer {
  static constexpr int kWarps = kThreads / kLanes, kEach = 4;  // units of a warp at a time
  const GateLayers p;
  float weight[kEach][4], bias[kEach];  // 128 channels at most

  FASTHT_DEVICE explicit HiddenLayer(const GateLayers& layers) : p(layers) {
    load(thread_index() / kLanes);
  }
  FASTHT_DEVICE void load(int first) {
    int at[kEach], at_weight[kEach][4];
    FASTHT_UNROLL for (int e = 0; e < kEach; ++e) {
      const int q = first + e * kWarps;
      at[e] = q < p.hidden ? q : -1;
      FASTHT_UNROLL for (int i = 0; i < 4; ++i)
        at_weight[e][i] = q < p.hidden ? place(q, i) : -1;
    }
    FASTHT_UNROLL for (int e = 0; e < kEach; ++e) read_all(weight[e], p.weight0, at_weight[e]);
    read_all(bias, p.bias0, at);
  }
  // The values lie in shared memory, and a barrier has yet to come.
  FASTHT_DEVICE void run(float* hidden, const float* mean) {
    const int lane = thread_index() % kLanes;
    for (int first = thread_index() / kLanes; first < p.hidden; first += kEach * kWarps) {
      if (first >= kEach * kWarps) load(first);
      float sums[kEach] = {};
      FASTHT_UNROLL for (int e = 0; e < kEach; ++e)
        FASTHT_UNROLL for (int i = 0; i < 4; ++i)
          if (place(0, i) >= 0) sums[e] += weight[e][i] * mean[lane + i * kLanes];
      FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2)
        FASTHT_UNROLL for (int e = 0; e < kEach; ++e) sums[e] += shuffle_xor(sums[e], mask);
      FASTHT_UNROLL for (int e = 0; e < kEach; ++e)
        if (lane == 0 && first + e * kWarps < p.hidden) hidden[first + e * kWarps] = sums[e] + bias[e];
    }
  }

 private:
  // Where number `lane + 32 i` of row q lies, or below 0.
  FASTHT_DEVICE int place(int q, int i) const {
    const int c = thread_index() % kLanes + i * kLanes;
    return c < p.channels ? q * p.channels + c : -1;
  }
};

// softmax(M2 relu(hidden) + m2), in every thread: a lane for each of the hidden layer's units.
struct GateOutput {
  const GateLayers p;
  float weight[3], bias[3];

  FASTHT_DEVICE explicit GateOutput(const GateLayers& layers) : p(layers) {
    const int q = thread_index() % kLanes;
    int at[3], at_bias[3];
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
      at[k] = q < p.hidden ? k * p.hidden + q : -1;
      at_bias[k] = p.hidden > 0 ? k : -1;
    }
    read_all(weight, p.weight2, at);
    read_all(bias, p.bias2, at_bias);
  }
  FASTHT_DEVICE void weights(float (&gate)[3], const float* hidden) const {
    const int q = thread_index() % kLanes;
    float active = 0.0f, largest = 0.0f, total = 0.0f;
    if (q < p.hidden) active = hidden[q] <= 0.0f ? 0.0f : hidden[q];  // a NaN stays
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) gate[k] = weight[k] * active;
    FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2)
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) gate[k] += shuffle_xor(gate[k], mask);
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
      gate[k] += bias[k];
      largest = k == 0 || gate[k] > largest ? gate[k] : largest;
    }
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) total += gate[k] = exponential(gate[k] - largest);
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) gate[k] /= total;
  }
};

}  // namespace fastht::cuda
