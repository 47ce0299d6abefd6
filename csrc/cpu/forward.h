// The forward pass of one call.
#pragma once

#include "cpu/bottleneck.h"

namespace fastht::cpu {
namespace {

template <class T>
class Forward {
 public:
  explicit Forward(const ForwardCall& call)
      : call_(call),
        shape_(call),
        schedule_{call.threads, call.batch, 1},
        fold_{call_, shape_, false, folded_} {}

  Forward(const Forward&) = delete;  // its parts refer to one another

  void lay_out(Layout& memory) {
    fold_.lay_out(memory);
    const int64_t narrow = shape_.narrow, full = call_.full_filter();
    const int64_t part = padded_rows(shape_.part_tokens()) + kTileRows;
    const int64_t spectrum = 2 * call_.frequencies() * narrow * full;
    slots_ = memory.take<Slot>(schedule_.slots());
    for (int64_t i = 0; i < schedule_.slots(); ++i) {
      Slot slot;
      slot.u = memory.take<float>(call_.saved.u == nullptr ? shape_.tokens * narrow : 0);
      slot.map = memory.take<float>(shape_.map_size());
      slot.pool = memory.take<float>(shape_.parts * narrow);
      slot.kernel = memory.take<float>(kTaps * narrow);
      slot.bias = memory.take<float>(narrow);
      for (float*& s : slot.spectra) s = memory.take<float>(spectrum);
      if (memory.base != nullptr) slots_[i] = slot;
    }
    workers_ = memory.take<Worker>(call_.threads);
    for (int64_t i = 0; i < call_.threads; ++i) {
      Worker worker;
      worker.rows = memory.take<Operand>(kTileRows * max(padded_depth(shape_.wide), shape_.depth));
      worker.strip = memory.take<float>(kTileRows * max(shape_.wide, narrow));
      worker.operand = memory.take<Operand>(part * shape_.depth);
      worker.v = memory.take<float>(part * narrow);
      worker.y = memory.take<float>(part * narrow);
      worker.mask = memory.take<float>(round_up(narrow, 64));
      if (memory.base != nullptr) workers_[i] = worker;
    }
  }

  void run() {
    // The padding of the masks and the borders of the padded maps are never written again.
    for (int64_t i = 0; i < call_.threads; ++i)
      zero(workers_[i].mask, round_up(shape_.narrow, 64) * sizeof(float));
    const auto begin = [](void* self, int64_t task, int) {
      auto& own = *static_cast<Forward*>(self);
      const int64_t slot = task - own.fold_.tasks();
      if (slot < 0) return own.fold_.run(task);
      zero(own.slots_[slot].map, own.shape_.map_size() * sizeof(float));
    };
    parallel_for(call_.threads, fold_.tasks() + schedule_.slots(), begin, this);
    const Stage stages[] = {
        {shape_.parts, false, stage<&Forward::project>},
        {call_.full_filter() ? shape_.narrow / kPad : 0, false, stage<&Forward::filter>},
        {1, false, stage<&Forward::gate>},
        {shape_.parts, false, stage<&Forward::mix>},
    };
    schedule_.run(stages, 4, this);
  }

 private:
  struct Slot {
    float* u;     // [tokens][narrow], unless it is saved
    float* map;   // padded; filtered if the filter is full
    float* pool;  // [parts][narrow]: sums of u over a part's patches
    float *kernel, *bias;
    float* spectra[3];
  };
  struct Worker {
    Operand* rows;     // a tile of h
    float* strip;      // a tile of results
    Operand* operand;  // a part's rows of a left factor
    float *v, *y, *mask;
  };

  template <void (Forward::*step)(Slot&, Worker&, int64_t, int64_t)>
  static void stage(void* self, int64_t slot, int worker, int64_t image, int64_t part) {
    auto& own = *static_cast<Forward*>(self);
    prepare_products();
    (own.*step)(own.slots_[slot], own.workers_[worker], image, part);
    finish_products();
  }

  const T* x_row(int64_t image, int64_t token) const {
    return static_cast<const T*>(call_.x.data) + image * call_.x.batch_stride +
           token * call_.x.token_stride;
  }
  T* out_row(int64_t image, int64_t token) const {
    return static_cast<T*>(call_.out.data) + image * call_.out.batch_stride +
           token * call_.out.token_stride;
  }

  // u = h W1' + b1 for a part's tokens, into the padded map and the sums of the gate's mean.
  void project(Slot& slot, Worker& worker, int64_t image, int64_t part) {
    const Shape& s = shape_;
    const int64_t depth = padded_depth(s.dim), lda = padded_depth(s.wide);
    const int64_t first = s.first_token(part), count = s.last_token(part) - first;
    const MixVectors mix = folded_.mix();
    float* pool = slot.pool + part * s.narrow;
    zero(pool, s.narrow * sizeof(float));
    by_tile_rows(count, [&](int64_t r0, int64_t rows) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = first + r0 + r;
        const T* x = x_row(image, token);
        const RowStats stats = row_stats(x, s.dim, call_.eps);
        mix_row(x, s.dim, lda, stats, mix, worker.rows + r * lda);
        if (call_.saved.stats != nullptr) {
          float* to = call_.saved.stats + (image * s.tokens + token) * 2;
          to[0] = stats.mean;
          to[1] = stats.rstd;
        }
      }
      gemm(rows, s.narrow, depth, worker.rows, lda, folded_.down, worker.strip, s.narrow, false,
           rows_ahead(x_row(image, first + r0 + rows), depth));
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = first + r0 + r, patch = token - s.prefix;
        const float* from = worker.strip + r * s.narrow;
        float* map =
            patch < 0 ? nullptr : slot.map + s.map_at(patch / s.width) + patch % s.width * s.narrow;
        for (int64_t c = 0; c < s.narrow; c += kLanes) {
          const Vec u = load(from + c) + load(folded_.down_bias + c);
          if (call_.saved.u != nullptr)
            store(call_.saved.u + (image * s.tokens + token) * s.channels + c, u, s.channels - c);
          else
            store(slot.u + token * s.narrow + c, u);
          if (map == nullptr) continue;
          store(map + c, u);
          store(pool + c, load(pool + c) + u);
        }
      }
    });
  }

  // Replaces 16 channels of the map by their filtered values.
  void filter(Slot& slot, Worker&, int64_t, int64_t part) {
    filter_channels(shape_, folded_, part * kPad, slot.map + shape_.map_at(0), shape_.map_row(),
                    slot.spectra[0], slot.spectra[1], slot.spectra[2]);
  }

  void gate(Slot& slot, Worker& worker, int64_t image, int64_t) {
    const int64_t narrow = shape_.narrow;
    const float scale = 1.0f / static_cast<float>(shape_.height * shape_.width);
    float* pooled = worker.y;
    for (int64_t c = 0; c < narrow; c += kLanes) {
      Vec total{};
      for (int64_t part = 0; part < shape_.parts; ++part)
        total += load(slot.pool + part * narrow + c);
      store(pooled + c, total * scale);
    }
    float gate[3];
    noise_gate(call_, folded_, pooled, nullptr, gate);
    combine_bank(call_, shape_, folded_, gate, slot.kernel, slot.bias);
    if (call_.saved.gate == nullptr) return;
    for (int k = 0; k < 3; ++k) call_.saved.gate[image * 3 + k] = gate[k];
    for (int64_t c = 0; c < shape_.channels; ++c)
      call_.saved.pooled[image * shape_.channels + c] = pooled[c];
  }

  Vec u_at(const Slot& slot, int64_t image, int64_t token, int64_t c) const {
    if (call_.saved.u == nullptr) return load(slot.u + token * shape_.narrow + c);
    return load(call_.saved.u + (image * shape_.tokens + token) * shape_.channels + c,
                shape_.channels - c);
  }

  // From the map to the output, for a part's tokens.
  void mix(Slot& slot, Worker& worker, int64_t image, int64_t part) {
    const Shape& s = shape_;
    const int64_t first = s.first_token(part), count = s.last_token(part) - first;
    const auto u = [&](int64_t token, int64_t c) { return u_at(slot, image, token, c); };
    bank_and_pointwise(call_, s, folded_, part, slot.map, slot.kernel, slot.bias, u, worker.v,
                       worker.operand, worker.y);
    for (int64_t t = 0; t < count; ++t) {
      float* y = worker.y + t * s.narrow;
      if (call_.dropout) dropout_factors(call_, image * s.tokens + first + t, worker.mask);
      for (int64_t c = 0; c < s.narrow; c += kLanes) {
        Vec z = gelu(load(y + c)).value;
        if (call_.dropout) z *= load(worker.mask + c);
        store(y + c, z);
      }
      operand_row(y, s.narrow, worker.operand + t * s.depth, s.depth);
    }
    by_tile_rows(count, [&](int64_t r0, int64_t rows) {
      gemm(rows, s.wide, s.depth, worker.operand + r0 * s.depth, s.depth, folded_.up, worker.strip,
           s.wide, false, rows_ahead(out_row(image, first + r0), s.depth));
      for (int64_t r = 0; r < rows; ++r) {
        const float* update = worker.strip + r * s.wide;
        const T* x = x_row(image, first + r0 + r);
        T* out = out_row(image, first + r0 + r);
        each_vector(s.dim, [&](int64_t j, auto extent) {
          const Vec change = load(update + j) + load(folded_.up_bias + j);
          store(out + j, load(x + j, extent) + change, extent);
        });
      }
    });
  }

  const ForwardCall call_;
  const Shape shape_;
  const Schedule schedule_;
  Folded folded_;
  const Fold fold_;
  Slot* slots_ = nullptr;
  Worker* workers_ = nullptr;
};

}  // namespace
}  // namespace fastht::cpu
