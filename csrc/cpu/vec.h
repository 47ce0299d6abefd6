// Vectors of floats for the instruction set that this file is compiled for.
//
// Everything in the headers that path.cpp includes lives in an anonymous namespace: the same
// function is compiled once per instruction set, and two with one external name would be merged by
// the linker, AVX-512 code then running on machines without it. For the same reason there is no
// std:: template in them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FASTHT_INLINE inline __attribute__((always_inline))

namespace fastht::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int64_t kPad = 16;  // rows of scratch hold a multiple of this, whatever the path

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInt __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecHalf __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr FASTHT_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr FASTHT_INLINE T max(T a, T b) {
  return a < b ? b : a;
}
constexpr FASTHT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr FASTHT_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

FASTHT_INLINE Vec broadcast(float a) { return a - Vec{}; }  // not a + 0, which would lose -0

FASTHT_INLINE VecBits bits(Vec a) { return (VecBits)a; }
FASTHT_INLINE Vec from_bits(VecBits a) { return (Vec)a; }

FASTHT_INLINE Vec select(VecInt mask, Vec a, Vec b) { return mask ? a : b; }

FASTHT_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
FASTHT_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

FASTHT_INLINE Vec load(const BFloat16* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof half);
  return from_bits(__builtin_convertvector(half, VecBits) << 16);
}

// Rounds to nearest, ties to even, and keeps NaN a NaN.
FASTHT_INLINE VecHalf round_to_half(Vec v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  return (VecHalf)half;
#else
  const VecBits b = bits(v);
  const VecBits rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const VecBits quiet = (b >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet, VecHalf);
#endif
}

FASTHT_INLINE void store(BFloat16* p, Vec v) {
  const VecHalf half = round_to_half(v);
  __builtin_memcpy(p, &half, sizeof half);
}

FASTHT_INLINE float to_float(float a) { return a; }
FASTHT_INLINE float to_float(BFloat16 a) {
  const uint32_t wide = uint32_t{a.bits} << 16;
  float f;
  __builtin_memcpy(&f, &wide, sizeof f);
  return f;
}
FASTHT_INLINE void from_float(float value, float* to) { *to = value; }
FASTHT_INLINE void from_float(float value, BFloat16* to) {
  uint32_t b;
  __builtin_memcpy(&b, &value, sizeof b);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value == value ? rounded : (b >> 16) | 0x40u);
}

// The first n elements of a vector; zeros beyond.
template <class T>
FASTHT_INLINE Vec load(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T buffer[kLanes] = {};
  __builtin_memcpy(buffer, p, n > 0 ? n * sizeof(T) : 0);
  return load(buffer);
}
template <class T>
FASTHT_INLINE void store(T* p, Vec v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  T buffer[kLanes];
  store(buffer, v);
  __builtin_memcpy(p, buffer, n > 0 ? n * sizeof(T) : 0);
}

// Where a loop over columns stands: at a whole vector, or at the last `count` columns.
struct Whole {};
struct Last {
  int64_t count;
};

template <class T>
FASTHT_INLINE Vec load(const T* p, Whole) {
  return load(p);
}
template <class T>
FASTHT_INLINE Vec load(const T* p, Last last) {
  return load(p, last.count);
}
template <class T>
FASTHT_INLINE void store(T* p, Vec v, Whole) {
  store(p, v);
}
template <class T>
FASTHT_INLINE void store(T* p, Vec v, Last last) {
  store(p, v, last.count);
}

// Calls body(j, extent) for the columns [0, count), a vector at a time.
template <class Body>
FASTHT_INLINE void each_vector(int64_t count, Body&& body) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) body(j, Whole{});
  if (j < count) body(j, Last{count - j});
}

// Adds the lanes in a fixed order.
template <int Lanes>
FASTHT_INLINE float sum_lanes(const float* lanes) {
  if constexpr (Lanes == 1) {
    return lanes[0];
  } else {
    typedef float Half __attribute__((vector_size(Lanes * 2), may_alias));
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof low);
    __builtin_memcpy(&high, lanes + Lanes / 2, sizeof high);
    low += high;
    return sum_lanes<Lanes / 2>(reinterpret_cast<const float*>(&low));
  }
}
FASTHT_INLINE float sum(Vec v) { return sum_lanes<kLanes>(reinterpret_cast<const float*>(&v)); }

FASTHT_INLINE void zero(void* p, int64_t bytes) { __builtin_memset(p, 0, bytes); }

}  // namespace
}  // namespace fastht::cpu
