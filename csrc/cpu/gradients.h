// The sums over images that the parameters' gradients are made of: one set for each group of
// images, added in the groups' order at the end, so that the result does not depend on threads.
#pragma once

#include "cpu/gate.h"

namespace fastht::cpu {
namespace {

class GradientSums {
 public:
  GradientSums(const BackwardCall& call, const Shape& shape) : call_(call), shape_(shape) {}

  void lay_out(Layout& memory, int64_t groups) {
    const int64_t wide = shape_.wide, narrow = shape_.narrow;
    sets_ = memory.take<Set>(groups);
    for (int64_t g = 0; g < groups; ++g) {
      Set set;
      set.down = memory.take<float>(narrow * wide);
      set.up = memory.take<float>(narrow * wide);
      set.columns = memory.take<float>(4 * wide);
      Layout small{memory.base == nullptr ? nullptr : memory.base + memory.size};
      set.pointwise = small.take<float>(narrow * narrow);
      set.pointwise_bias = small.take<float>(narrow);
      set.down_bias = small.take<float>(narrow);
      for (int i = 0; i < 3; ++i) {
        set.taps[i] = small.take<float>(Fold::side(i) * Fold::side(i) * narrow);
        set.bank_bias[i] = small.take<float>(narrow);
      }
      set.filter = small.take<float>((call_.full_filter() ? call_.frequencies() : 1) * narrow);
      set.gate_weight0 = small.take<float>(call_.hidden * call_.channels);
      set.gate_bias0 = small.take<float>(call_.hidden);
      set.gate_weight2 = small.take<float>(3 * call_.hidden);
      set.gate_bias2 = small.take<float>(3);
      small_size_ = small.size;
      memory.size += small.size;
      if (memory.base != nullptr) sets_[g] = set;
    }
  }

  // Panels of 64 columns, [narrow][64] each.
  float* down(int64_t group) { return sets_[group].down; }
  float* up(int64_t group) { return sets_[group].up; }
  // [4][wide]: the three of ColumnSums, and the sum of dout.
  float* columns(int64_t group) { return sets_[group].columns; }
  float* pointwise(int64_t group) { return sets_[group].pointwise; }
  float* filter(int64_t group) { return sets_[group].filter; }

  void clear_small(int64_t group) { zero(sets_[group].pointwise, small_size_); }

  void add_tokens(int64_t group, const float* dy, int64_t patches, const float* du,
                  int64_t tokens) {
    const int64_t narrow = shape_.narrow;
    add_rows(dy, narrow, patches, narrow, sets_[group].pointwise_bias);
    add_rows(du, narrow, tokens, narrow, sets_[group].down_bias);
  }

  void add_bank(const Folded& folded, int64_t group, const float* gate, const float* correlation,
                const float* total) {
    Set& set = sets_[group];
    const int64_t narrow = shape_.narrow;
    const bool scaled = call_.has_filter() && !call_.full_filter();
    for (int64_t c = 0; c < narrow; c += kLanes) {
      const Vec factor = scaled ? load(folded.filter + c) : broadcast(1.0f);
      Vec by_filter{};
      for (int i = 0; i < 3; ++i) {
        for (int64_t tap = 0; tap < Fold::side(i) * Fold::side(i); ++tap) {
          const Vec value = gate[i] * load(correlation + tap_at(i, tap) * narrow + c);
          float* to = set.taps[i] + tap * narrow + c;
          store(to, load(to) + value * factor);
          by_filter += value * load(folded.taps[i] + tap * narrow + c);
        }
        store(set.bank_bias[i] + c, load(set.bank_bias[i] + c) + gate[i] * load(total + c));
      }
      if (scaled) store(set.filter + c, load(set.filter + c) + by_filter);
    }
  }

  void add_gate(const Folded& folded, int64_t group, const GateGradient& gradient,
                const float* pooled) {
    if (!call_.has_gate()) return;
    Set& set = sets_[group];
    for (int64_t i = 0; i < call_.hidden; ++i) {
      set.gate_bias0[i] += gradient.hidden[i];
      for (int64_t c = 0; c < call_.channels; ++c)
        set.gate_weight0[i * call_.channels + c] +=
            gradient.hidden[i] * (folded.filter_mean[c] * pooled[c]);
    }
    for (int k = 0; k < 3; ++k) {
      set.gate_bias2[k] += gradient.logits[k];
      for (int64_t i = 0; i < call_.hidden; ++i)
        set.gate_weight2[k * call_.hidden + i] += gradient.logits[k] * gradient.values[i];
    }
    if (call_.has_filter() && !call_.full_filter())
      for (int64_t c = 0; c < call_.channels; ++c) set.filter[c] += gradient.mean[c] * pooled[c];
  }

  // Adds the groups up and writes the gradients: task 0 those of the small parameters, each other
  // one those of a panel of columns.
  void finish(const Folded& folded, int64_t groups, int64_t task) {
    if (task == 0)
      finish_small(groups);
    else
      finish_panel(folded, groups, task - 1);
  }

 private:
  struct Set {
    float *down, *up, *columns;
    float* pointwise;  // the first of the small ones, which are cleared together
    float *pointwise_bias, *down_bias;
    float *taps[3], *bank_bias[3];
    float* filter;
    float *gate_weight0, *gate_bias0, *gate_weight2, *gate_bias2;
  };

  static void put(const Array& to, int64_t at, float value) {
    if (to.dtype == DType::kFloat32)
      static_cast<float*>(to.data)[at] = value;
    else
      from_float(value, static_cast<BFloat16*>(to.data) + at);
  }

  static void put_row(const Array& to, int64_t at, const float* values, int64_t count) {
    if (to.dtype == DType::kFloat32)
      __builtin_memcpy(static_cast<float*>(to.data) + at, values, count * sizeof(float));
    else
      each_vector(count, [&](int64_t j, auto extent) {
        store(static_cast<BFloat16*>(to.data) + at + j, load(values + j, extent), extent);
      });
  }

  static void add(float* to, const float* from, int64_t count) {
    each_vector(count, [&](int64_t j, auto extent) {
      store(to + j, load(to + j, extent) + load(from + j, extent), extent);
    });
  }

  void finish_panel(const Folded& folded, int64_t groups, int64_t panel) {
    const int64_t narrow = shape_.narrow, wide = shape_.wide, c_count = call_.channels;
    const int64_t n0 = panel * kPanel, width = panel_width(wide, panel);
    const int64_t end = min(n0 + width, call_.dim);
    const Set& set = sets_[0];
    float *down = set.down + n0 * narrow, *up = set.up + n0 * narrow;
    for (int64_t g = 1; g < groups; ++g) {
      add(down, sets_[g].down + n0 * narrow, narrow * width);
      add(up, sets_[g].up + n0 * narrow, narrow * width);
      for (int64_t i = 0; i < 4; ++i)
        add(set.columns + i * wide + n0, sets_[g].columns + i * wide + n0, width);
    }
    const Parameters& to = call_.grads;
    const float *by_x = set.columns, *by_norm = by_x + wide, *plain = by_norm + wide;
    put_row(to.gammax, n0, by_x + n0, end - n0);
    put_row(to.up_bias, n0, plain + wide + n0, end - n0);
    for (int64_t d = n0; d < end; ++d) {
      put(to.gamma, d, folded.norm_weight[d] * by_norm[d] + folded.norm_bias[d] * plain[d]);
      put(to.norm_weight, d, folded.gamma[d] * by_norm[d]);
      put(to.norm_bias, d, folded.gamma[d] * plain[d]);
    }
    for (int64_t c = 0; c < c_count; ++c)
      put_row(to.down_weight, c * call_.dim + n0, down + c * width, end - n0);
    for (int64_t d = n0; d < end; ++d)
      for (int64_t c0 = 0; c0 < c_count; c0 += kPanel) {
        float row[kPanel];
        const int64_t count = min(kPanel, c_count - c0);
        for (int64_t c = 0; c < count; ++c) row[c] = up[(c0 + c) * width + d - n0];
        put_row(to.up_weight, d * c_count + c0, row, count);
      }
  }

  void finish_small(int64_t groups) {
    const int64_t narrow = shape_.narrow, c_count = call_.channels, q = call_.hidden;
    const Set& set = sets_[0];
    for (int64_t g = 1; g < groups; ++g)
      add(set.pointwise, sets_[g].pointwise, small_size_ / static_cast<int64_t>(sizeof(float)));
    const Parameters& to = call_.grads;
    for (int64_t o = 0; o < c_count; ++o) {
      for (int64_t i = 0; i < c_count; ++i) {
        const int64_t n0 = i / kPanel * kPanel, width = min(narrow - n0, kPanel);
        put(to.pointwise_weight, o * c_count + i, set.pointwise[n0 * narrow + o * width + i - n0]);
      }
      put(to.pointwise_bias, o, set.pointwise_bias[o]);
      put(to.down_bias, o, set.down_bias[o]);
      for (int k = 0; k < 3; ++k) {
        const int64_t taps = Fold::side(k) * Fold::side(k);
        for (int64_t tap = 0; tap < taps; ++tap)
          put(to.conv_weight[k], o * taps + tap, set.taps[k][tap * narrow + o]);
        put(to.conv_bias[k], o, set.bank_bias[k][o]);
      }
    }
    if (call_.has_filter()) {
      const int64_t count = call_.full_filter() ? call_.frequencies() : 1;
      const int64_t half = count / shape_.height;
      for (int64_t c = 0; c < c_count; ++c)
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = count == 1 ? 0 : i % shape_.height * half + i / shape_.height;
          put(to.spectral_filter, c * count + at, set.filter[i * narrow + c]);
        }
    }
    if (!call_.has_gate()) return;
    for (int64_t i = 0; i < q * c_count; ++i) put(to.gate_weight0, i, set.gate_weight0[i]);
    for (int64_t i = 0; i < q; ++i) put(to.gate_bias0, i, set.gate_bias0[i]);
    for (int64_t i = 0; i < 3 * q; ++i) put(to.gate_weight2, i, set.gate_weight2[i]);
    for (int64_t i = 0; i < 3; ++i) put(to.gate_bias2, i, set.gate_bias2[i]);
  }

  const BackwardCall& call_;
  const Shape& shape_;
  Set* sets_ = nullptr;
  size_t small_size_ = 0;
};

}  // namespace
}  // namespace fastht::cpu
