// The noise gate of eq. 3 and the one depthwise kernel that it makes of the bank, both ways.
#pragma once

#include "cpu/activation.h"
#include "cpu/fold.h"

namespace fastht::cpu {
namespace {

// Where tap (y, x) of the k x k kernel number i lies among the 49.
FASTHT_INLINE int64_t tap_at(int i, int64_t tap) {
  const int64_t k = Fold::side(i), inset = (kKernel - k) / 2;
  return (tap / k + inset) * kKernel + tap % k + inset;
}

// softmax(M2 relu(M1 mean(f) + m1) + m2), from the mean of the unfiltered map; the values of the
// hidden layer after its ReLU go to `hidden` where that is not null.
void noise_gate(const Problem& call, const Folded& folded, const float* pooled, float* hidden,
                float* gate) {
  const int64_t c = call.channels, q = call.hidden;
  if (!call.has_gate()) {
    for (int k = 0; k < 3; ++k) gate[k] = 1.0f / 3.0f;
    return;
  }
  double logits[3];
  for (int k = 0; k < 3; ++k) logits[k] = folded.gate_bias2[k];
  for (int64_t i = 0; i < q; ++i) {
    const float* weights = folded.gate_weight0 + i * c;
    double value = folded.gate_bias0[i];
    for (int64_t j = 0; j < c; ++j)
      value += static_cast<double>(weights[j]) * (folded.filter_mean[j] * pooled[j]);
    value = value < 0.0 ? 0.0 : value;  // NaN stays
    if (hidden != nullptr) hidden[i] = static_cast<float>(value);
    for (int k = 0; k < 3; ++k) logits[k] += folded.gate_weight2[k * q + i] * value;
  }
  const double largest = max(logits[0], max(logits[1], logits[2]));
  double powers[3], total = 0.0;
  for (int k = 0; k < 3; ++k) total += powers[k] = __builtin_exp(logits[k] - largest);
  for (int k = 0; k < 3; ++k) gate[k] = static_cast<float>(powers[k] / total);
}

// kernel = sum_k g_k K_k, 49 taps of each channel, and bias = sum_k g_k b_k. With a channel filter
// (or none) the map is the unfiltered one, so the filter's factor is in the kernel, and the skip
// around the bank is one more on the centre tap.
void combine_bank(const Problem& call, const Shape& shape, const Folded& folded, const float* gate,
                  float* kernel, float* bias) {
  const int64_t narrow = shape.narrow;
  const bool scaled = call.has_filter() && !call.full_filter();
  zero(kernel, kTaps * narrow * sizeof(float));
  for (int i = 0; i < 3; ++i)
    for (int64_t tap = 0; tap < Fold::side(i) * Fold::side(i); ++tap) {
      float* to = kernel + tap_at(i, tap) * narrow;
      const float* from = folded.taps[i] + tap * narrow;
      for (int64_t j = 0; j < narrow; j += kLanes)
        store(to + j, load(to + j) + gate[i] * load(from + j));
    }
  for (int64_t j = 0; j < narrow; j += kLanes) {
    store(bias + j, gate[0] * load(folded.bank_bias[0] + j) +
                        gate[1] * load(folded.bank_bias[1] + j) +
                        gate[2] * load(folded.bank_bias[2] + j));
    if (scaled)
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        float* at = kernel + tap * narrow + j;
        store(at, load(at) * load(folded.filter + j));
      }
    if (!call.full_filter()) {
      float* centre = kernel + kTaps / 2 * narrow + j;
      store(centre, load(centre) + 1.0f);
    }
  }
}

// The same kernel turned by half a circle, for the gradient of the map.
void flip_kernel(const float* kernel, int64_t narrow, float* flipped) {
  for (int64_t tap = 0; tap < kTaps; ++tap)
    __builtin_memcpy(flipped + tap * narrow, kernel + (kTaps - 1 - tap) * narrow,
                     narrow * sizeof(float));
}

// What the gate's gradient of one image leaves for the sums over images.
struct GateGradient {
  float* logits;  // [3]
  float* hidden;  // [q], before the ReLU
  float* values;  // [q], the hidden layer after the ReLU
  float* mean;    // [narrow], of mean(f)
};

// `correlation` is of the gradient of v with the map that the convolution ran on, the filtered one
// if the filter is full; `total` the plain sum of the gradient of v.
void noise_gate_backward(const Problem& call, const Shape& shape, const Folded& folded,
                         const float* pooled, const float* gate, const float* correlation,
                         const float* total, const GateGradient& to) {
  const int64_t c = call.channels, q = call.hidden, narrow = shape.narrow;
  zero(to.mean, narrow * sizeof(float));
  if (!call.has_gate()) return;
  const bool scaled = call.has_filter() && !call.full_filter();
  // Of terms that largely cancel, as the three convolutions are much alike: in float64.
  double by_gate[3] = {}, mean_gradient = 0.0;
  for (int i = 0; i < 3; ++i) {
    for (int64_t j0 = 0; j0 < narrow; j0 += kLanes) {
      double taps[kLanes] = {};
      for (int64_t tap = 0; tap < Fold::side(i) * Fold::side(i); ++tap) {
        const float* weights = folded.taps[i] + tap * narrow + j0;
        const float* found = correlation + tap_at(i, tap) * narrow + j0;
        for (int j = 0; j < kLanes; ++j) taps[j] += static_cast<double>(weights[j]) * found[j];
      }
      for (int j = 0; j < kLanes; ++j)
        by_gate[i] += taps[j] * (scaled ? folded.filter[j0 + j] : 1.0f) +
                      static_cast<double>(folded.bank_bias[i][j0 + j]) * total[j0 + j];
    }
    mean_gradient += gate[i] * by_gate[i];
  }
  float recomputed[3];
  noise_gate(call, folded, pooled, to.values, recomputed);
  for (int i = 0; i < 3; ++i)
    to.logits[i] = static_cast<float>(gate[i] * (by_gate[i] - mean_gradient));
  for (int64_t i = 0; i < q; ++i) {
    float gradient = 0.0f;
    for (int k = 0; k < 3; ++k) gradient += folded.gate_weight2[k * q + i] * to.logits[k];
    // PyTorch's ReLU lets the gradient of a NaN through.
    to.hidden[i] = to.values[i] <= 0.0f ? 0.0f : gradient;
    for (int64_t j = 0; j < c; ++j) to.mean[j] += folded.gate_weight0[i * c + j] * to.hidden[i];
  }
}

}  // namespace
}  // namespace fastht::cpu
