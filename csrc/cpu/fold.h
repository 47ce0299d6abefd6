// The parameters of one call in the form that the kernels read: float32 vectors padded with zeros,
// packed matrices, kernels by tap.
#pragma once

#include "cpu/depthwise.h"
#include "cpu/layer_norm.h"
#include "cpu/pack.h"
#include "cpu/schedule.h"
#include "cpu/shape.h"
#include "cpu/spectral.h"

namespace fastht::cpu {
namespace {

FASTHT_INLINE float element(const Array& a, int64_t i) {
  return a.dtype == DType::kFloat32 ? static_cast<const float*>(a.data)[i]
                                    : to_float(static_cast<const BFloat16*>(a.data)[i]);
}

void read(const Array& a, float* to, int64_t padded) {
  for (int64_t i = 0; i < a.size; ++i) to[i] = element(a, i);
  for (int64_t i = a.size; i < padded; ++i) to[i] = 0.0f;
}

struct Folded {
  float *skip, *scale, *shift;  // eq. 1, see MixVectors
  float *norm_weight, *norm_bias, *gamma;
  float *down_bias, *pointwise_bias, *up_bias;
  float* filter;       // channel: [narrow]; full: [frequencies][narrow]
  float* filter_mean;  // [narrow]: what the filter makes of a map's mean
  float *gate_weight0, *gate_bias0, *gate_weight2, *gate_bias2;
  float* taps[3];       // [k * k][narrow]
  float* bank_bias[3];  // [narrow]
  // Packed right factors: `down` in the forward pass alone, `up` also in a backward pass that
  // rebuilds x, `..._backward`, for the products with the transposed matrices, in any of those.
  Operand *pointwise, *down, *up;
  Operand *pointwise_backward, *down_backward, *up_backward;
  SpectralTables spectral;

  MixVectors mix() const { return {skip, scale, shift}; }
};

struct Fold {
  const Problem& call;
  const Shape& shape;
  const bool backward;
  Folded& folded;
  const bool rebuild = false;  // x, in the backward pass

  void lay_out(Layout& memory) const {
    const int64_t wide = shape.wide, narrow = shape.narrow, q = call.hidden;
    float** const wides[] = {&folded.skip,      &folded.scale, &folded.shift,  &folded.norm_weight,
                             &folded.norm_bias, &folded.gamma, &folded.up_bias};
    for (float** vector : wides) *vector = memory.take<float>(wide);
    float** const narrows[] = {&folded.down_bias, &folded.pointwise_bias, &folded.filter_mean};
    for (float** vector : narrows) *vector = memory.take<float>(narrow);
    for (int i = 0; i < 3; ++i) {
      folded.taps[i] = memory.take<float>(side(i) * side(i) * narrow);
      folded.bank_bias[i] = memory.take<float>(narrow);
    }
    folded.filter = memory.take<float>((call.full_filter() ? call.frequencies() : 1) * narrow);
    folded.gate_weight0 = memory.take<float>(q * call.channels);
    folded.gate_bias0 = memory.take<float>(q);
    folded.gate_weight2 = memory.take<float>(3 * q);
    folded.gate_bias2 = memory.take<float>(3);
    folded.pointwise = memory.take<Operand>(shape.depth * narrow);
    if (!backward) {
      folded.down = memory.take<Operand>(padded_depth(shape.dim) * narrow);
    } else {
      folded.up_backward = memory.take<Operand>(padded_depth(shape.dim) * narrow);
      folded.down_backward = memory.take<Operand>(shape.depth * wide);
      folded.pointwise_backward = memory.take<Operand>(shape.depth * narrow);
    }
    if (!backward || rebuild) folded.up = memory.take<Operand>(shape.depth * wide);
    if (call.full_filter()) {
      const int64_t h = shape.height, w = shape.width, half = w / 2 + 1;
      folded.spectral = {memory.take<float>(half * w),
                         memory.take<float>(half * w),
                         memory.take<float>(4 * h * h),
                         memory.take<float>(4 * h * h),
                         memory.take<float>(half * w),
                         memory.take<float>(half * w),
                         folded.filter};
    }
  }

  static int64_t side(int i) { return 3 + 2 * i; }

  // Independent tasks: one for everything small, then slices of the two large matrices.
  int64_t tasks() const { return 1 + shape.panels * 2; }

  void run(int64_t task) const {
    if (task == 0) return small();
    const int64_t d = shape.dim, c = shape.channels, slice = (task - 1) / 2;
    const int64_t from = slice * kPanel;
    const int64_t to = slice == shape.panels - 1 ? padded_depth(d) : from + kPanel;
    const Array &down = call.params.down_weight, &up = call.params.up_weight;
    if ((task - 1) % 2 == 0) {
      if (backward)
        pack_all({up, c, 1, d, c}, padded_depth(d), from, to, folded.up_backward);
      else
        pack_all({down, 1, d, d, c}, padded_depth(d), from, to, folded.down);
    } else {
      if (backward)
        pack_weight({down, d, 1, c, d}, shape.depth, slice, 0, shape.depth, folded.down_backward);
      if (!backward || rebuild)
        pack_weight({up, 1, c, c, d}, shape.depth, slice, 0, shape.depth, folded.up);
    }
  }

 private:
  void pack_all(const Weight& from, int64_t packed_depth, int64_t first, int64_t last,
                Operand* packed) const {
    for (int64_t panel = 0; panel * kPanel < from.columns; ++panel)
      pack_weight(from, packed_depth, panel, first, last, packed);
  }

  void small() const {
    const Parameters& p = call.params;
    const int64_t wide = shape.wide, narrow = shape.narrow, c = shape.channels;
    read(p.gammax, folded.skip, wide);
    read(p.norm_weight, folded.norm_weight, wide);
    read(p.norm_bias, folded.norm_bias, wide);
    read(p.gamma, folded.gamma, wide);
    for (int64_t j = 0; j < wide; ++j) {
      folded.scale[j] = folded.gamma[j] * folded.norm_weight[j];
      folded.shift[j] = folded.gamma[j] * folded.norm_bias[j];
    }
    read(p.up_bias, folded.up_bias, wide);
    read(p.down_bias, folded.down_bias, narrow);
    read(p.pointwise_bias, folded.pointwise_bias, narrow);
    for (int i = 0; i < 3; ++i) {
      read(p.conv_bias[i], folded.bank_bias[i], narrow);
      const int64_t taps = side(i) * side(i);
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t j = 0; j < narrow; ++j)
          folded.taps[i][tap * narrow + j] =
              j < c ? element(p.conv_weight[i], j * taps + tap) : 0.0f;
    }
    if (call.has_gate()) {
      read(p.gate_weight0, folded.gate_weight0, 0);
      read(p.gate_bias0, folded.gate_bias0, 0);
      read(p.gate_weight2, folded.gate_weight2, 0);
      read(p.gate_bias2, folded.gate_bias2, 0);
    }
    filter();
    const int64_t depth = shape.depth;
    pack_all({p.pointwise_weight, 1, c, c, c}, depth, 0, depth, folded.pointwise);
    if (backward)
      pack_all({p.pointwise_weight, c, 1, c, c}, depth, 0, depth, folded.pointwise_backward);
  }

  void filter() const {
    const Array& weight = call.params.spectral_filter;
    const int64_t narrow = shape.narrow, c = shape.channels;
    for (int64_t j = 0; j < narrow; ++j) folded.filter_mean[j] = j < c ? 1.0f : 0.0f;
    if (!call.has_filter()) return;
    const int64_t h = shape.height, count = call.full_filter() ? call.frequencies() : 1;
    const int64_t half = count / h;
    for (int64_t j = 0; j < narrow; ++j) {
      if (j < c) folded.filter_mean[j] = element(weight, j * count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = count == 1 ? 0 : i % h * half + i / h;  // ours goes down the columns
        folded.filter[i * narrow + j] = j < c ? element(weight, j * count + from) : 0.0f;
      }
    }
    if (call.full_filter()) fill_spectral_tables(h, shape.width, folded.spectral);
  }
};

}  // namespace
}  // namespace fastht::cpu
