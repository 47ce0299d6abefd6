// Number formats in memory, and the accesses that all kernels make: one, two, four, eight numbers.
//
// A kernel is a template on the format of x (and out, dout, dx) and on the kind of its products
// (fragments.cuh), whose format the bottleneck's maps and the folded weights have.
#pragma once

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fastht::cuda {

struct Bfloat16 {
  using Unit = unsigned short;
  static constexpr int kBytes = 2;
  FASTHT_DEVICE static Word pack(float low, float high) { return pack_bfloat16(low, high); }
  FASTHT_DEVICE static float first(Word pair) { return as_float(pair << 16); }
  FASTHT_DEVICE static float second(Word pair) { return as_float(pair & 0xffff0000u); }
  FASTHT_DEVICE static Word add(Word a, Word b) { return add_bfloat16(a, b); }
};
struct Float16 {
  using Unit = unsigned short;
  static constexpr int kBytes = 2;
  FASTHT_DEVICE static Word pack(float low, float high) { return pack_float16(low, high); }
  FASTHT_DEVICE static float first(Word pair) { return float16_to_float(pair); }
  FASTHT_DEVICE static float second(Word pair) { return float16_to_float(pair >> 16); }
  FASTHT_DEVICE static Word add(Word a, Word b) { return add_float16(a, b); }
};
struct Float32 {
  using Unit = float;
  static constexpr int kBytes = 4;
};

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

template <class F>
FASTHT_DEVICE const typename F::Unit* units(const void* data) {
  return static_cast<const typename F::Unit*>(data);
}
template <class F>
FASTHT_DEVICE typename F::Unit* units(void* data) {
  return static_cast<typename F::Unit*>(data);
}

template <class F>
FASTHT_DEVICE float load_one(const typename F::Unit* from) {
  if constexpr (F::kBytes == 4)
    return *from;
  else
    return F::first(*from);
}
template <class F>
FASTHT_DEVICE void store_one(typename F::Unit* to, float value) {
  if constexpr (F::kBytes == 4)
    *to = value;
  else
    *to = static_cast<unsigned short>(F::pack(value, 0.0f));
}

// Two neighbours; the address is a multiple of their size. So below with four and eight, 16 bytes
// at most.
template <class F>
FASTHT_DEVICE Pair load_pair(const typename F::Unit* from) {
  if constexpr (F::kBytes == 4) {
    return *reinterpret_cast<const Pair*>(from);
  } else {
    const Word both = *reinterpret_cast<const Word*>(from);
    return {F::first(both), F::second(both)};
  }
}
template <class F>
FASTHT_DEVICE void store_pair(typename F::Unit* to, float low, float high) {
  if constexpr (F::kBytes == 4)
    *reinterpret_cast<Pair*>(to) = {low, high};
  else
    *reinterpret_cast<Word*>(to) = F::pack(low, high);
}

template <class F>
FASTHT_DEVICE Floats load_four(const typename F::Unit* from) {
  if constexpr (F::kBytes == 4) {
    return *reinterpret_cast<const Floats*>(from);
  } else {
    struct alignas(8) Two {
      Word v[2];
    };
    const Two two = *reinterpret_cast<const Two*>(from);
    return {{F::first(two.v[0]), F::second(two.v[0]), F::first(two.v[1]), F::second(two.v[1])}};
  }
}

template <class F>
FASTHT_DEVICE void store_four(typename F::Unit* to, const Floats& values) {
  if constexpr (F::kBytes == 4) {
    *reinterpret_cast<Floats*>(to) = values;
  } else {
    struct alignas(8) Two {
      Word v[2];
    };
    *reinterpret_cast<Two*>(to) = {
        {F::pack(values.v[0], values.v[1]), F::pack(values.v[2], values.v[3])}};
  }
}

// Eight neighbours as they are in memory: one access of 16 bytes, or two.
template <class F>
struct Eight {
  static constexpr int kQuads = F::kBytes / 2;
  Quad quads[kQuads];

  FASTHT_DEVICE float operator[](int i) const {
    if constexpr (F::kBytes == 4) {
      return as_float(quads[i / 4].v[i % 4]);
    } else {
      const Word both = quads[0].v[i / 2];
      return i % 2 == 0 ? F::first(both) : F::second(both);
    }
  }
  FASTHT_DEVICE void set(const float (&values)[8]) {
    FASTHT_UNROLL for (int i = 0; i < 8; i += 2) {
      if constexpr (F::kBytes == 4) {
        quads[i / 4].v[i % 4] = as_word(values[i]);
        quads[i / 4].v[i % 4 + 1] = as_word(values[i + 1]);
      } else {
        quads[0].v[i / 2] = F::pack(values[i], values[i + 1]);
      }
    }
  }
};

// Loads eight numbers, 16 bytes at a time, or zeros where they are not `real`.
template <class F>
FASTHT_DEVICE Eight<F> load_eight(const typename F::Unit* from, bool real) {
  Eight<F> result = {};
  if (real) {
    FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
      result.quads[q] = reinterpret_cast<const Quad*>(from)[q];
  }
  return result;
}
// Starts to bring 16 bytes of numbers to shared memory: `count` of them (none below 1, as many as
// there are above), the others being zeros. kAligned: all or none, in one copy. Else floats are
// copied one by one, and 16-bit numbers, which no copy is small enough for, go through registers.
template <class F, bool kAligned>
FASTHT_DEVICE void fetch_quad(Quad* to, const typename F::Unit* from, int count) {
  if constexpr (kAligned) {
    copy_async(to, from, count > 0);
  } else if constexpr (F::kBytes == 4) {
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) copy_word_async(&to->v[i], from + i, i < count);
  } else {
    Quad value = {{0, 0, 0, 0}};
    FASTHT_UNROLL for (int i = 0; i < 8; ++i)
      if (i < count) value.v[i / 2] |= Word{from[i]} << i % 2 * 16;
    *to = value;
  }
}
// The same of eight numbers, to a place of this thread's own, quads `step` apart, where it finds them
// (`own_eight`) once it has waited: no barrier is needed, and no register holds what is copied.
template <class F, bool kAligned>
FASTHT_DEVICE void fetch_eight(Quad* to, int step, const typename F::Unit* from, int count) {
  constexpr int kEach = 16 / F::kBytes;
  FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
    fetch_quad<F, kAligned>(to + q * step, from + q * kEach, kAligned ? count : count - q * kEach);
}
template <class F>
FASTHT_DEVICE Eight<F> own_eight(const Quad* from, int step) {
  Eight<F> result;
  FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q) result.quads[q] = from[q * step];
  return result;
}
template <class F, bool kAligned>
FASTHT_DEVICE void store_eight(typename F::Unit* to, const Eight<F>& value, int count) {
  if constexpr (kAligned) {
    if (count > 0) {
      FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
        store_quad(reinterpret_cast<Quad*>(to) + q, value.quads[q]);
    }
  } else {
    FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
      if (i >= count) continue;
      if constexpr (F::kBytes == 4)
        to[i] = as_float(value.quads[i / 4].v[i % 4]);
      else
        to[i] = static_cast<unsigned short>(value.quads[0].v[i / 2] >> i % 2 * 16);
    }
  }
}

// Parameters and their gradients have a format of their own each, known at run time only.
FASTHT_DEVICE float read(const Array& array, long long i) {
  if (array.format == Format::kFloat32) return load_one<Float32>(units<Float32>(array.data) + i);
  if (array.format == Format::kFloat16) return load_one<Float16>(units<Float16>(array.data) + i);
  return load_one<Bfloat16>(units<Bfloat16>(array.data) + i);
}
// Numbers at[i] of an array, zeros where that is below 0: one look at the format, and all loads on
// their way at once.
template <class F, int kCount>
FASTHT_DEVICE void read_as(float (&values)[kCount], const void* data, const int (&at)[kCount]) {
  FASTHT_UNROLL for (int i = 0; i < kCount; ++i)
    values[i] = at[i] < 0 ? 0.0f : load_one<F>(units<F>(data) + at[i]);
}
template <int kCount>
FASTHT_DEVICE void read_all(float (&values)[kCount], const Array& array, const int (&at)[kCount]) {
  if (array.format == Format::kFloat32)
    read_as<Float32>(values, array.data, at);
  else if (array.format == Format::kFloat16)
    read_as<Float16>(values, array.data, at);
  else
    read_as<Bfloat16>(values, array.data, at);
}
FASTHT_DEVICE void write(const Array& array, long long i, float value) {
  if (array.format == Format::kFloat32)
    store_one<Float32>(units<Float32>(array.data) + i, value);
  else if (array.format == Format::kFloat16)
    store_one<Float16>(units<Float16>(array.data) + i, value);
  else
    store_one<Bfloat16>(units<Bfloat16>(array.data) + i, value);
}

}  // namespace fastht::cuda
