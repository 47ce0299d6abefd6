// The backward pass of one call: the gradients of x and of every parameter.
//
// What the forward pass did is done again where that is cheaper than to have kept it: the mix of
// eq. 1 from x and its statistics, the bank and the activation from u; and x, where the caller has
// kept the output in its place, for the images in flight.
#pragma once

#include "cpu/forward.h"
#include "cpu/gradients.h"

namespace fastht::cpu {
namespace {

constexpr int64_t kTokenBlock = 192;  // depth of the products that sum over tokens

template <class T>
class Backward {
 public:
  explicit Backward(const BackwardCall& call)
      : call_(call),
        shape_(call),
        schedule_{call.threads, call.batch, group_size(call.batch)},
        fold_{call_, shape_, true, folded_, call.rebuild},
        sums_(call_, shape_) {}

  Backward(const Backward&) = delete;  // its parts refer to one another

  void lay_out(Layout& memory) {
    fold_.lay_out(memory);
    const int64_t narrow = shape_.narrow, full = call_.full_filter();
    const int64_t map = shape_.tokens * narrow,
                  part = padded_rows(shape_.part_tokens()) + kTileRows;
    const int64_t spectrum = 2 * call_.frequencies() * narrow * full;
    const bool weights = call_.need_params;
    slots_ = memory.take<Slot>(schedule_.slots());
    for (int64_t i = 0; i < schedule_.slots(); ++i) {
      Slot slot;
      slot.map = memory.take<float>(shape_.map_size());
      slot.dv = memory.take<float>(shape_.map_size());
      slot.v = memory.take<float>(weights ? map : 0);
      slot.dy = memory.take<float>(weights ? map : 0);
      slot.z = memory.take<float>(weights ? map : 0);
      slot.du = memory.take<float>(map);
      float** const kernels[] = {&slot.kernel, &slot.flipped, &slot.correlation};
      for (float** kernel : kernels) *kernel = memory.take<float>(kTaps * narrow);
      slot.bias = memory.take<float>(narrow);
      slot.total = memory.take<float>(narrow);
      slot.gate.mean = memory.take<float>(narrow);
      slot.gate.logits = memory.take<float>(3);
      slot.gate.hidden = memory.take<float>(call_.hidden);
      slot.gate.values = memory.take<float>(call_.hidden);
      slot.columns = memory.take<float>(shape_.parts * 4 * shape_.wide);
      Operand** const lefts[] = {&slot.z_left, &slot.du_left, &slot.dy_left};
      for (Operand** left : lefts)
        *left = memory.take<Operand>(weights ? narrow * token_depth() : 0);
      for (float*& s : slot.spectra) s = memory.take<float>(spectrum);
      slot.x = memory.take<T>(call_.rebuild ? shape_.tokens * shape_.dim : 0);
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
      worker.dz = memory.take<float>(part * narrow);
      worker.mask = memory.take<float>(round_up(narrow, 64));
      worker.right = memory.take<Operand>((kTokenBlock + 2) * max(kPanel, narrow));
      if (memory.base != nullptr) workers_[i] = worker;
    }
    if (weights) sums_.lay_out(memory, schedule_.groups());
  }

  void run() {
    // The padding of the masks and the borders of the padded maps are never written again.
    for (int64_t i = 0; i < call_.threads; ++i)
      zero(workers_[i].mask, round_up(shape_.narrow, 64) * sizeof(float));
    const auto begin = [](void* self, int64_t task, int) {
      auto& own = *static_cast<Backward*>(self);
      const int64_t slot = task - own.fold_.tasks();
      if (slot < 0) return own.fold_.run(task);
      zero(own.slots_[slot].map, own.shape_.map_size() * sizeof(float));
      zero(own.slots_[slot].dv, own.shape_.map_size() * sizeof(float));
    };
    parallel_for(call_.threads, fold_.tasks() + schedule_.slots(), begin, this);
    const int64_t weights = call_.need_params, full = call_.full_filter();
    const int64_t blocks = shape_.narrow / kPad;
    const Stage stages[] = {
        {1, false, stage<&Backward::prepare>},
        {full * blocks, false, stage<&Backward::filter>},
        {shape_.parts, false, stage<&Backward::activation>},
        {ceil_div(shape_.narrow, kLanes), false, stage<&Backward::bank>},
        {1, false, stage<&Backward::gate>},
        {shape_.parts, false, stage<&Backward::map>},
        {full * blocks, false, stage<&Backward::filter_backward>},
        {shape_.parts, false, stage<&Backward::input>},
        {3 * weights, false, stage<&Backward::transpose>},
        {(shape_.panels + 1) * weights, true, stage<&Backward::add_gradients>},
    };
    schedule_.run(stages, 10, this);
    if (!call_.need_params) return;
    const auto finish = [](void* self, int64_t task, int) {
      auto& own = *static_cast<Backward*>(self);
      own.sums_.finish(own.folded_, own.schedule_.groups(), task);
    };
    parallel_for(call_.threads, shape_.panels + 1, finish, this);
  }

 private:
  struct Slot {
    float* map;              // padded; filtered if the filter is full
    float* dv;               // padded: gradient of the bank's output
    float *v, *dy, *z, *du;  // [tokens][narrow]; v and dy of the patches alone
    float *kernel, *flipped, *correlation;
    float *bias, *total;
    GateGradient gate;
    float* columns;                       // [parts][4][wide]: ColumnSums, sum of dout
    Operand *z_left, *du_left, *dy_left;  // [narrow][token_depth]
    float* spectra[4];                    // of s, two for work, and of the gradient of f
    T* x;                                 // [tokens][dim], where it is rebuilt
  };
  struct Worker {
    Operand *rows, *operand, *right;
    float *strip, *v, *y, *dz, *mask;
  };

  // One set of sums for up to four images, eight sets for few images and never more than 64: their
  // traffic stays small beside the products', and there are enough to keep threads evenly busy.
  static int64_t group_size(int64_t batch) {
    return max(min<int64_t>(4, ceil_div(batch, 8)), ceil_div(batch, 64));
  }
  int64_t token_depth() const { return round_up(shape_.tokens, 64); }

  template <void (Backward::*step)(Slot&, Worker&, int64_t, int64_t)>
  static void stage(void* self, int64_t slot, int worker, int64_t image, int64_t part) {
    auto& own = *static_cast<Backward*>(self);
    prepare_products();
    (own.*step)(own.slots_[slot], own.workers_[worker], image, part);
    finish_products();
  }

  static T* row(const Tokens& tokens, int64_t image, int64_t token) {
    return static_cast<T*>(tokens.data) + image * tokens.batch_stride + token * tokens.token_stride;
  }
  // The tokens that the forward pass was given.
  const T* x_row(const Slot& slot, int64_t image, int64_t token) const {
    return call_.rebuild ? slot.x + token * shape_.dim : row(call_.x, image, token);
  }
  int64_t x_stride() const { return call_.rebuild ? shape_.dim : call_.x.token_stride; }
  // A panel of as many tokens as the product is deep, a cache line of each row with every tile.
  static Ahead panel_ahead(const T* panel, int64_t token_stride) {
    return {reinterpret_cast<const char*>(panel), token_stride * static_cast<int64_t>(sizeof(T)),
            64};
  }
  const RowStats* stats(int64_t image, int64_t token) const {
    return reinterpret_cast<const RowStats*>(call_.saved.stats) + image * shape_.tokens + token;
  }
  Vec u(int64_t image, int64_t token, int64_t c) const {
    return load(call_.saved.u + (image * shape_.tokens + token) * shape_.channels + c,
                shape_.channels - c);
  }
  bool need_correlation() const { return call_.need_params || call_.has_gate(); }

  // The padded map, and the bank as one kernel.
  void prepare(Slot& slot, Worker&, int64_t image, int64_t) {
    const Shape& s = shape_;
    for (int64_t y = 0; y < s.height; ++y)
      for (int64_t x = 0; x < s.width; ++x)
        for (int64_t c = 0; c < s.narrow; c += kLanes)
          store(slot.map + s.map_at(y) + x * s.narrow + c, u(image, s.prefix + y * s.width + x, c));
    combine_bank(call_, s, folded_, call_.saved.gate + image * 3, slot.kernel, slot.bias);
    flip_kernel(slot.kernel, s.narrow, slot.flipped);
  }

  void filter(Slot& slot, Worker&, int64_t, int64_t part) {
    filter_channels(shape_, folded_, part * kPad, slot.map + shape_.map_at(0), shape_.map_row(),
                    slot.spectra[0], slot.spectra[1], slot.spectra[2]);
  }

  // From dout back through the up-projection, the activation and the 1x1 convolution, for a part.
  void activation(Slot& slot, Worker& worker, int64_t image, int64_t part) {
    const Shape& s = shape_;
    const auto [first, count, plain, patches] = PartTokens(s, part);
    const auto u_at = [&](int64_t token, int64_t c) { return u(image, token, c); };
    bank_and_pointwise(call_, s, folded_, part, slot.map, slot.kernel, slot.bias, u_at, worker.v,
                       worker.operand, worker.y);
    if (call_.need_params)
      __builtin_memcpy(slot.v + (first + plain) * s.narrow, worker.v,
                       patches * s.narrow * sizeof(float));

    float* sums = call_.need_params ? slot.columns + (part * 4 + 3) * s.wide : nullptr;
    if (sums != nullptr) zero(sums, s.wide * sizeof(float));
    contract(worker, image, first, count, sums);
    for (int64_t t = 0; t < count; ++t) {
      const float* y = worker.y + t * s.narrow;
      float* dz = worker.dz + t * s.narrow;
      if (call_.dropout) dropout_factors(call_, image * s.tokens + first + t, worker.mask);
      for (int64_t c = 0; c < s.narrow; c += kLanes) {
        Gelu g = gelu(load(y + c));
        Vec gradient = load(dz + c);
        if (call_.dropout) {
          const Vec factor = load(worker.mask + c);
          g.value *= factor;
          gradient *= factor;
        }
        store(dz + c, gradient * g.slope);
        if (call_.need_params) store(slot.z + (first + t) * s.narrow + c, g.value);
        if (call_.rebuild) store(worker.y + t * s.narrow + c, g.value);
      }
    }
    if (call_.rebuild) rebuild(slot, worker, image, first, count);

    // Of the prefix tokens that is already the gradient of u.
    __builtin_memcpy(slot.du + first * s.narrow, worker.dz, plain * s.narrow * sizeof(float));
    float* dy = worker.dz + plain * s.narrow;
    if (call_.need_params)
      __builtin_memcpy(slot.dy + (first + plain) * s.narrow, dy,
                       patches * s.narrow * sizeof(float));
    for (int64_t t = 0; t < patches; ++t)
      operand_row(dy + t * s.narrow, s.narrow, worker.operand + t * s.depth, s.depth);
    gemm(patches, s.narrow, s.depth, worker.operand, s.depth, folded_.pointwise_backward, dy,
         s.narrow, true);
    for (int64_t t = 0; t < patches; ++t) {
      const int64_t patch = first + plain + t - s.prefix;
      __builtin_memcpy(slot.dv + s.map_at(patch / s.width) + patch % s.width * s.narrow,
                       dy + t * s.narrow, s.narrow * sizeof(float));
    }
  }

  // x = out - z W2' - b2 for `count` tokens whose z is in worker.y: the update is the forward pass's
  // to the bit, so x is what it was but for the rounding of out.
  void rebuild(Slot& slot, Worker& worker, int64_t image, int64_t first, int64_t count) {
    const Shape& s = shape_;
    for (int64_t t = 0; t < count; ++t)
      operand_row(worker.y + t * s.narrow, s.narrow, worker.operand + t * s.depth, s.depth);
    by_tile_rows(count, [&](int64_t r0, int64_t rows) {
      gemm(rows, s.wide, s.depth, worker.operand + r0 * s.depth, s.depth, folded_.up, worker.strip,
           s.wide, false, rows_ahead(row(call_.x, image, first + r0), s.depth));
      for (int64_t r = 0; r < rows; ++r) {
        const float* update = worker.strip + r * s.wide;
        const T* out = row(call_.x, image, first + r0 + r);
        T* x = slot.x + (first + r0 + r) * s.dim;
        each_vector(s.dim, [&](int64_t j, auto extent) {
          const Vec change = load(update + j) + load(folded_.up_bias + j);
          store(x + j, load(out + j, extent) - change, extent);
        });
      }
    });
  }

  // dz = dout W2 for `count` tokens, into worker.dz; adds their dout to `sums`.
  void contract(Worker& worker, int64_t image, int64_t first, int64_t count, float* sums) {
    const Shape& s = shape_;
    const int64_t depth = padded_depth(s.dim);
    by_tile_rows(count, [&](int64_t r0, int64_t rows) {
      const T* from = row(call_.dout, image, first + r0);
      const int64_t stride = call_.dout.token_stride, lda = padded_depth(s.wide);
      if (sums != nullptr) add_rows(from, stride, rows, s.dim, sums);
      const auto product = [&](const Operand* a, int64_t a_stride) {
        gemm(rows, s.narrow, depth, a, a_stride, folded_.up_backward, worker.dz + r0 * s.narrow,
             s.narrow, false, rows_ahead(row(call_.dout, image, first + r0 + rows), depth));
      };
      if constexpr (sizeof(T) == sizeof(Operand) && !kPairs) {
        product(from, stride);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          copy_row(from + r * stride, s.dim, lda, worker.rows + r * lda);
        product(worker.rows, lda);
      }
    });
  }

  // The correlations of 16 or fewer channels from which the bank's, gate's and filter's gradients
  // follow.
  void bank(Slot& slot, Worker&, int64_t, int64_t part) {
    if (!need_correlation()) return;
    const int64_t c = part * kLanes;
    correlate(slot.map + c, slot.dv + c, shape_.height, shape_.width, shape_.narrow,
              slot.correlation + c, slot.total + c);
  }

  // The gate's gradient; what it adds to each pixel's goes into the bias of the convolution.
  void gate(Slot& slot, Worker&, int64_t image, int64_t) {
    const float* pooled = call_.saved.pooled + image * shape_.channels;
    noise_gate_backward(call_, shape_, folded_, pooled, call_.saved.gate + image * 3,
                        slot.correlation, slot.total, slot.gate);
    const float scale = 1.0f / static_cast<float>(shape_.height * shape_.width);
    for (int64_t c = 0; c < shape_.narrow; c += kLanes) {
      // A full filter is still to come, and scales the mean itself.
      const Vec factor = call_.full_filter() ? broadcast(1.0f) : load(folded_.filter_mean + c);
      store(slot.bias + c, load(slot.gate.mean + c) * factor * scale);
    }
  }

  // The gradient of the map for a part's patches; of the filtered one if the filter is full.
  void map(Slot& slot, Worker&, int64_t, int64_t part) {
    const Shape& s = shape_;
    for (int64_t y = s.first_row(part); y < s.last_row(part); ++y)
      convolve_row(slot.dv, y, s.width, s.narrow, slot.flipped, slot.bias,
                   slot.du + (s.prefix + y * s.width) * s.narrow);
  }

  void filter_backward(Slot& slot, Worker&, int64_t, int64_t part) {
    const Shape& s = shape_;
    const int64_t c = part * kPad, map_row = s.width * s.narrow;
    float* map = slot.du + s.prefix * s.narrow;
    filter_channels(s, folded_, c, map, map_row, slot.spectra[3], slot.spectra[1], slot.spectra[2]);
    for (int64_t y = 0; y < s.height; ++y)
      for (int64_t x = 0; x < s.width; ++x)
        for (int64_t j = 0; j < kPad; j += kLanes) {
          float* du = map + y * map_row + x * s.narrow + c + j;
          store(du, load(du) + load(slot.dv + s.map_at(y) + x * s.narrow + c + j));
        }
  }

  // From the gradient of u to the gradient of x and the column sums, for a part's tokens.
  void input(Slot& slot, Worker& worker, int64_t image, int64_t part) {
    const Shape& s = shape_;
    const int64_t first = s.first_token(part), count = s.last_token(part) - first;
    const bool need_input = call_.dx.data != nullptr;
    if (!need_input && !call_.need_params) return;
    float* columns = slot.columns + part * 4 * s.wide;
    zero(columns, 3 * s.wide * sizeof(float));
    const ColumnSums sums{columns, columns + s.wide, columns + 2 * s.wide};
    by_tile_rows(count, [&](int64_t r0, int64_t rows) {
      const int64_t token = first + r0;
      for (int64_t r = 0; r < rows; ++r)
        operand_row(slot.du + (token + r) * s.narrow, s.narrow, worker.rows + r * s.depth, s.depth);
      gemm(rows, s.wide, s.depth, worker.rows, s.depth, folded_.down_backward, worker.strip, s.wide,
           false, rows_ahead(x_row(slot, image, token), s.depth));
      mix_backward<T>(
          {worker.strip, x_row(slot, image, token), row(call_.dout, image, token),
           need_input ? row(call_.dx, image, token) : nullptr, s.wide, x_stride(),
           call_.dout.token_stride, call_.dx.token_stride, stats(image, token)},
          rows, s.dim, folded_.mix(), sums);
    });
  }

  // Left factors of the products that sum over tokens.
  void transpose(Slot& slot, Worker&, int64_t, int64_t part) {
    const Shape& s = shape_;
    const float* const rows[] = {slot.z, slot.du, slot.dy + s.prefix * s.narrow};
    Operand* const left[] = {slot.z_left, slot.du_left, slot.dy_left};
    transpose_rows(rows[part], s.narrow, s.narrow, part == 2 ? s.tokens - s.prefix : s.tokens,
                   left[part], token_depth());
  }

  void add_gradients(Slot& slot, Worker& worker, int64_t image, int64_t part) {
    const int64_t group = image / schedule_.group_size;
    const bool first = image % schedule_.group_size == 0;
    if (part == shape_.panels)
      add_small(slot, worker, group, image, first);
    else
      add_panel(slot, worker, group, image, part, first);
  }

  // 64 columns of dW1 = du' h and dW2' = z' dout, and of everything else that is as wide as x.
  void add_panel(Slot& slot, Worker& worker, int64_t group, int64_t image, int64_t panel,
                 bool first) {
    const Shape& s = shape_;
    const int64_t n0 = panel * kPanel, width = panel_width(s.wide, panel);
    const MixVectors mix = folded_.mix();
    float* columns = sums_.columns(group);
    if (first)
      for (int64_t i = 0; i < 4; ++i) zero(columns + i * s.wide + n0, width * sizeof(float));
    for (int64_t j = n0; j < n0 + width; j += kLanes)
      for (int64_t i = 0; i < 4; ++i) {
        float* to = columns + i * s.wide + j;
        Vec total = load(to);
        for (int64_t p = 0; p < s.parts; ++p)
          total += load(slot.columns + (p * 4 + i) * s.wide + j);
        store(to, total);
      }
    const int64_t valid = min(width, s.dim - n0);
    for (int64_t t0 = 0; t0 < s.tokens; t0 += kTokenBlock) {
      const int64_t count = min(kTokenBlock, s.tokens - t0), depth = padded_depth(count);
      const bool accumulate = !first || t0 > 0;
      const T* dout = row(call_.dout, image, t0) + n0;
      const T* x = x_row(slot, image, t0) + n0;
      pack_tokens(worker.right, width, valid, count, depth, [&](int64_t t, int64_t j, auto extent) {
        return load(dout + t * call_.dout.token_stride + j, extent);
      });
      gemm_panel(s.narrow, width, depth, slot.z_left + t0, token_depth(), worker.right,
                 sums_.up(group) + n0 * s.narrow, width, accumulate,
                 panel_ahead(x, x_stride()));
      pack_tokens(worker.right, width, valid, count, depth, [&](int64_t t, int64_t j, auto extent) {
        return mixed(load(x + t * x_stride() + j, extent), stats(image, t0)[t], mix,
                     n0 + j);
      });
      gemm_panel(s.narrow, width, depth, slot.du_left + t0, token_depth(), worker.right,
                 sums_.down(group) + n0 * s.narrow, width, accumulate,
                 panel_ahead(dout + kPanel, call_.dout.token_stride));
    }
  }

  // Everything that is only as wide as the bottleneck.
  void add_small(Slot& slot, Worker& worker, int64_t group, int64_t image, bool first) {
    const Shape& s = shape_;
    if (first) sums_.clear_small(group);
    const int64_t patches = s.tokens - s.prefix;
    const float* v = slot.v + s.prefix * s.narrow;
    for (int64_t n0 = 0; n0 < s.narrow; n0 += kPanel) {
      const int64_t width = panel_width(s.narrow, n0 / kPanel);
      for (int64_t t0 = 0; t0 < patches; t0 += kTokenBlock) {
        const int64_t count = min(kTokenBlock, patches - t0), depth = padded_depth(count);
        pack_tokens(worker.right, width, width, count, depth, [&](int64_t t, int64_t j, auto) {
          return load(v + (t0 + t) * s.narrow + n0 + j);
        });
        gemm_panel(s.narrow, width, depth, slot.dy_left + t0, token_depth(), worker.right,
                   sums_.pointwise(group) + n0 * s.narrow, width, true);
      }
    }
    sums_.add_tokens(group, slot.dy + s.prefix * s.narrow, patches, slot.du, s.tokens);
    sums_.add_bank(folded_, group, call_.saved.gate + image * 3, slot.correlation, slot.total);
    sums_.add_gate(folded_, group, slot.gate, call_.saved.pooled + image * s.channels);
    if (call_.full_filter())
      filter_gradient({s.height, s.width, s.narrow}, slot.spectra[0], slot.spectra[3],
                      sums_.filter(group));
  }

  const BackwardCall call_;
  const Shape shape_;
  const Schedule schedule_;
  Folded folded_;
  const Fold fold_;
  GradientSums sums_;
  Slot* slots_ = nullptr;
  Worker* workers_ = nullptr;
};

}  // namespace
}  // namespace fastht::cpu
