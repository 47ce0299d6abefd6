// All that kernels use of the device: by PTX for nvcc and NVRTC, simulated for a C++ compiler.
//
// Nothing is included for the device, so that NVRTC needs no header of the toolkit. A kernel that
// keeps to this file can be proved on a CPU (simulate.h).
#pragma once

#ifdef __CUDACC__
#define FASTHT_DEVICE __device__ __forceinline__
#define FASTHT_UNROLL _Pragma("unroll")
#define FASTHT_ROLLED _Pragma("unroll 1")
#define FASTHT_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define FASTHT_UNROLL_BY(count) FASTHT_PRAGMA(unroll(count))
#else
#include "cuda/simulate.h"
#define FASTHT_DEVICE inline
#define FASTHT_UNROLL
#define FASTHT_ROLLED
#define FASTHT_UNROLL_BY(count)
#endif

namespace fastht::cuda {

using Word = unsigned int;        // also two 16-bit numbers, the first in the lower half
using Long = unsigned long long;  // 64 bits everywhere
struct alignas(16) Quad {
  Word v[4];
};
struct alignas(8) Pair {
  float x, y;
};
struct alignas(16) Floats {
  float v[4];
};
constexpr int kLanes = 32;

#ifdef __CUDACC__

FASTHT_DEVICE int thread_index() { return threadIdx.x; }
// The same, but read again here: no register keeps it, or what was made of it, until then.
FASTHT_DEVICE int reread_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
FASTHT_DEVICE int block_index() { return blockIdx.x; }
FASTHT_DEVICE int block_count() { return gridDim.x; }
FASTHT_DEVICE void sync_block() { __syncthreads(); }
FASTHT_DEVICE float as_float(Word bits) { return __uint_as_float(bits); }
FASTHT_DEVICE float absolute(float value) { return fabsf(value); }
FASTHT_DEVICE Word as_word(float value) { return __float_as_uint(value); }
FASTHT_DEVICE Word high_product(Word a, Word b) { return __umulhi(a, b); }
// Of two words of two 16-bit numbers each: both first ones, both second ones.
FASTHT_DEVICE Word first_of_each(Word a, Word b) { return __byte_perm(a, b, 0x5410); }
FASTHT_DEVICE Word second_of_each(Word a, Word b) { return __byte_perm(a, b, 0x7632); }
FASTHT_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
FASTHT_DEVICE float error_function(float x) { return erff(x); }
FASTHT_DEVICE float exponential(float x) { return expf(x); }
FASTHT_DEVICE float square_root(float x) { return sqrtf(x); }
// One instruction each, two or three units in the last place off; what is subnormal is zero.
FASTHT_DEVICE float power_of_two(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
FASTHT_DEVICE float reciprocal(float x) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
FASTHT_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Two floats as 16-bit numbers, rounded to nearest even.
FASTHT_DEVICE Word pack_bfloat16(float low, float high) {
  Word pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
FASTHT_DEVICE Word pack_float16(float low, float high) {
  Word pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
FASTHT_DEVICE float float16_to_float(Word half) {  // of the lower 16 bits
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(half)));
  return value;
}
// a + b of two numbers each. (Compute capability 8 adds bfloat16 by multiplying.)
FASTHT_DEVICE Word add_bfloat16(Word a, Word b) {
  Word sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
}
FASTHT_DEVICE Word add_float16(Word a, Word b) {
  Word sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3c003c00u), "r"(b));
  return sum;
}
FASTHT_DEVICE Word round_to_tf32(float value) {
  Word bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
// The same, but done here: the compiler keeps no copy for later.
FASTHT_DEVICE Word round_to_tf32_here(float value) {
  Word bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// The same number, of which nothing is known: no register keeps what was made of it before.
FASTHT_DEVICE int anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
// The value is made here, not where it is used.
FASTHT_DEVICE void settle(Word value) { asm volatile("" ::"r"(value)); }
FASTHT_DEVICE void settle(const void* value) { asm volatile("" ::"l"(value)); }

// Loads do not move over it: where the compiler would take up more operands than registers hold.
FASTHT_DEVICE void keep_order() { __syncwarp(); }

// c += a b for 16 x 8 numbers of c. Not volatile: a product that nobody needs may go.
FASTHT_DEVICE void mma_bfloat16(float (&c)[4], const Word (&a)[4], Word b0, Word b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
FASTHT_DEVICE void mma_float16(float (&c)[4], const Word (&a)[4], Word b0, Word b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
FASTHT_DEVICE void mma_tf32(float (&c)[4], const Word (&a)[4], Word b0, Word b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

FASTHT_DEVICE Word shared_address(const void* shared) {
  return static_cast<Word>(__cvta_generic_to_shared(shared));
}

// Four 8x8 tiles of 16-bit numbers, transposed: lane 8i + r names row r of tile i (16 bytes in
// shared memory) and receives in word i numbers 2t and 2t + 1 of column g of tile i.
FASTHT_DEVICE void load_tiles_transposed(Word (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same not transposed: numbers 2t and 2t + 1 of row g of tile i.
FASTHT_DEVICE void load_tiles(Word (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts to copy 16 bytes to shared memory, or zeros where they are not `real`.
FASTHT_DEVICE void copy_async(void* shared, const void* global, bool real = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(real ? 16 : 0)
               : "memory");
}
// The same of 8 bytes.
FASTHT_DEVICE void copy_pair_async(void* shared, const void* global, bool real = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(real ? 8 : 0)
               : "memory");
}
// The same of 4 bytes: the address needs no more than a float's.
FASTHT_DEVICE void copy_word_async(void* shared, const void* global, bool real = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(real ? 4 : 0)
               : "memory");
}
FASTHT_DEVICE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Brings the 64 bytes around an address to the L2 cache, some time.
FASTHT_DEVICE void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}
// Stores 16 bytes at once: the compiler makes four stores of some that it could not prove aligned.
FASTHT_DEVICE void store_quad(void* global, const Quad& value) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(global), "r"(value.v[0]),
               "r"(value.v[1]), "r"(value.v[2]), "r"(value.v[3])
               : "memory");
}
template <int kPending>
FASTHT_DEVICE void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

FASTHT_DEVICE void fence() { __threadfence(); }
FASTHT_DEVICE Word add_atomically(Word* counter, Word value) { return atomicAdd(counter, value); }

extern __shared__ __align__(128) unsigned char shared_memory[];
struct Carver {  // hands out the block's shared memory
  unsigned char* next = shared_memory;
  template <class T>
  FASTHT_DEVICE T* take(int count) {
    T* const start = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
    return start;
  }
};

#else  // simulated

using simulate::machine;
inline int thread_index() { return machine.fiber->thread; }
inline int reread_thread_index() { return thread_index(); }
inline int block_index() { return machine.block->index; }
inline int block_count() { return machine.block_count; }
inline void sync_block(int line = __builtin_LINE()) { simulate::barrier(line); }
inline float absolute(float value) { return __builtin_fabsf(value); }
inline float as_float(Word bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline Word as_word(float value) {
  Word bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline Word high_product(Word a, Word b) { return static_cast<Word>((Long{a} * b) >> 32); }
inline Word first_of_each(Word a, Word b) { return (a & 0xffff) | b << 16; }
inline Word second_of_each(Word a, Word b) { return a >> 16 | (b & 0xffff0000); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float error_function(float x) { return std::erf(x); }
inline float exponential(float x) { return std::exp(x); }
inline float square_root(float x) { return std::sqrt(x); }
inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }

inline Word round_to_bfloat16(float value) {
  const Word bits = as_word(value);
  if (value != value) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline Word round_to_float16(float value) {
  const Word bits = as_word(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (magnitude < 0x38800000)  // subnormal: the sum has the half's last bit as its own
    return sign | (as_word(as_float(magnitude) + 0.5f) - 0x3f000000);
  return sign | (((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10));
}
inline float float16_to_float(Word half) {
  const Word sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float value = as_float(magnitude << 13) * 0x1p112f;  // subnormals come out right
  return as_float(sign | as_word(value));
}
inline Word pack_bfloat16(float low, float high) {
  return round_to_bfloat16(low) | round_to_bfloat16(high) << 16;
}
inline Word pack_float16(float low, float high) {
  return round_to_float16(low) | round_to_float16(high) << 16;
}
inline Word add_bfloat16(Word a, Word b) {  // rounded once: what float cuts off is no tie
  return pack_bfloat16(as_float(a << 16) + as_float(b << 16),
                       as_float(a & 0xffff0000u) + as_float(b & 0xffff0000u));
}
inline Word add_float16(Word a, Word b) {
  return pack_float16(float16_to_float(a) + float16_to_float(b),
                      float16_to_float(a >> 16) + float16_to_float(b >> 16));
}
inline Word round_to_tf32(float value) {  // to nearest, ties away from zero
  const Word bits = as_word(value);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000;
}
inline void keep_order() {}
inline int anew(int value) { return value; }
inline void settle(Word) {}
inline void settle(const void*) {}
inline Word round_to_tf32_here(float value) { return round_to_tf32(value); }

// PTX ISA, "Matrix fragments for mma.m16n8k16" and ".m16n8k8": with g = lane / 4 and t = lane % 4,
// register r of A holds row g + 8 (r % 2) and of half r / 2 the columns 2t, 2t + 1 (16-bit numbers)
// or t (tf32); register r of B those rows of half r, column g; number r of C holds row
// g + 8 (r / 2), column 2t + r % 2.
struct MmaOperands {
  float* c;
  const Word* a;
  Word b[2];
};
template <int kDepth, class Unpack>
FASTHT_INTERNAL void multiply_for_warp(void** all, Unpack unpack) {
  constexpr int kEach = kDepth / 8;  // numbers a register
  const auto of = [&](int lane) -> MmaOperands& { return *static_cast<MmaOperands*>(all[lane]); };
  double left[16][kDepth], right[kDepth][8];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < kEach; ++e) {
        const int k = r / 2 * (kDepth / 2) + lane % 4 * kEach + e;
        left[lane / 4 + r % 2 * 8][k] = unpack(of(lane).a[r], e);
        if (r % 2 == 0) right[k][lane / 4] = unpack(of(lane).b[r / 2], e);
      }
  double sums[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += left[row][k] * right[k][column];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int r = 0; r < 4; ++r) {
      float& c = of(lane).c[r];
      const double sum = double{c} + sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
      float result = static_cast<float>(sum);
      if (machine.truncate && std::abs(double{result}) > std::abs(sum) && !std::isinf(sum))
        result = std::nextafter(result, 0.0f);
      c = result;
    }
}
FASTHT_INTERNAL inline void mma_bfloat16(float (&c)[4], const Word (&a)[4], Word b0, Word b1,
                                         int line = __builtin_LINE()) {
  MmaOperands mine{c, a, {b0, b1}};
  simulate::meet(1, line, &mine, [](void** all) {
    multiply_for_warp<16>(all, [](Word w, int e) { return as_float(w >> 16 * e << 16); });
  });
}
FASTHT_INTERNAL inline void mma_float16(float (&c)[4], const Word (&a)[4], Word b0, Word b1,
                                        int line = __builtin_LINE()) {
  MmaOperands mine{c, a, {b0, b1}};
  simulate::meet(2, line, &mine, [](void** all) {
    multiply_for_warp<16>(all, [](Word w, int e) { return float16_to_float(w >> 16 * e); });
  });
}
FASTHT_INTERNAL inline void mma_tf32(float (&c)[4], const Word (&a)[4], Word b0, Word b1,
                                     int line = __builtin_LINE()) {
  MmaOperands mine{c, a, {b0, b1}};
  simulate::meet(3, line, &mine, [](void** all) {
    // The last 13 bits are not looked at.
    multiply_for_warp<8>(all, [](Word w, int) { return as_float(w & 0xffffe000); });
  });
}
FASTHT_INTERNAL inline float shuffle_xor(float value, int mask, int line = __builtin_LINE()) {
  struct Operands {
    float in, out;
    int mask;
  } mine{value, 0.0f, mask};
  simulate::meet(4, line, &mine, [](void** all) {
    const auto of = [&](int lane) -> Operands& { return *static_cast<Operands*>(all[lane]); };
    for (int lane = 0; lane < kLanes; ++lane) of(lane).out = of(lane ^ of(lane).mask).in;
  });
  return mine.out;
}
struct TileOperands {
  Word* tiles;
  const void* row;
};
template <bool kTransposed>
FASTHT_INTERNAL void load_tiles_for_warp(void** all) {
  const auto of = [&](int lane) -> TileOperands& { return *static_cast<TileOperands*>(all[lane]); };
  for (int tile = 0; tile < 4; ++tile)
    for (int lane = 0; lane < kLanes; ++lane) {
      Word both = 0;
      for (int e = 0; e < 2; ++e) {
        const int one = lane / 4, other = lane % 4 * 2 + e;
        const void* from = of(tile * 8 + (kTransposed ? other : one)).row;
        const int column = kTransposed ? one : other;
        both |= Word{static_cast<const unsigned short*>(from)[column]} << 16 * e;
      }
      of(lane).tiles[tile] = both;
    }
}
FASTHT_INTERNAL inline void load_tiles_transposed(Word (&tiles)[4], const void* row,
                                                  int line = __builtin_LINE()) {
  TileOperands mine{tiles, row};
  simulate::race_access(row, 16, false, __builtin_return_address(0));
  simulate::meet(5, line, &mine, load_tiles_for_warp<true>);
}
FASTHT_INTERNAL inline void load_tiles(Word (&tiles)[4], const void* row,
                                       int line = __builtin_LINE()) {
  TileOperands mine{tiles, row};
  simulate::race_access(row, 16, false, __builtin_return_address(0));
  simulate::meet(6, line, &mine, load_tiles_for_warp<false>);
}
inline void copy_async(void* shared, const void* global, bool real = true) {
  simulate::start_copy(shared, global, 16, real);
}
inline void copy_pair_async(void* shared, const void* global, bool real = true) {
  simulate::start_copy(shared, global, 8, real);
}
inline void copy_word_async(void* shared, const void* global, bool real = true) {
  simulate::start_copy(shared, global, 4, real);
}
inline void prefetch(const void*) {}
inline void store_quad(void* global, const Quad& value) { *static_cast<Quad*>(global) = value; }
FASTHT_INTERNAL inline void end_group() { ++machine.fiber->groups; }
template <int kPending>
inline void wait_groups() {
  simulate::finish_copies(kPending);
}
FASTHT_INTERNAL inline void fence() { simulate::race_fence(); }
FASTHT_INTERNAL inline Word add_atomically(Word* counter, Word value) {
  simulate::pause();
  simulate::race_atomic(counter);
  const Word before = *counter;
  *counter = before + value;
  simulate::pause();
  return before;
}
struct Carver {
  size_t next = 0;
  template <class T>
  T* take(int count) {
    T* const start = reinterpret_cast<T*>(machine.block->shared + next);
    next += count * sizeof(T);
    if (next > machine.block->shared_bytes) simulate::fail("too little shared memory", __LINE__);
    return start;
  }
};

#endif

// Starts to copy kCount quads by kThreads threads, of which this is number `thread`. Ends no group.
template <int kCount, int kThreads>
FASTHT_DEVICE void copy_quads(Quad* shared, const Quad* global, int thread) {
  if constexpr (kCount <= 4 * kThreads) {
    FASTHT_UNROLL for (int i = 0; i < kCount; i += kThreads)
      if (kCount % kThreads == 0 || thread + i < kCount)
        copy_async(shared + thread + i, global + thread + i);
  } else {
    FASTHT_ROLLED for (int i = thread; i < kCount; i += kThreads) copy_async(shared + i, global + i);
  }
}

FASTHT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
FASTHT_DEVICE int larger(int a, int b) { return a > b ? a : b; }
FASTHT_DEVICE float larger_of(float a, float b) { return a > b ? a : b; }
FASTHT_DEVICE bool is_finite(float value) { return absolute(value) < as_float(0x7f800000u); }
// As round_to_tf32 of a finite number: that looks for NaN first, two instructions more.
FASTHT_DEVICE Word round_finite_to_tf32(float value) {
  return (as_word(value) + 0x1000u) & 0xffffe000u;
}

// Makes a kernel of one instantiation, fastht_<name>, which profilers show. Its source file is an
// include and this line: what NVRTC, nvcc and the simulator's compiler are given
// (Kernel::source() in plan.h). `blocks` of them shall fit a multiprocessor's registers.
#ifdef __CUDACC__
#define FASTHT_INSTANCE(name, Params, threads, blocks, ...)                                   \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                               \
      fastht_##name(const __grid_constant__ fastht::cuda::Params params) {                    \
    using namespace fastht::cuda;                                                             \
    __VA_ARGS__(params);                                                                      \
  }
#else
#define FASTHT_INSTANCE(name, Params, threads, blocks, ...)                                   \
  extern "C" __attribute__((visibility("default"))) void fastht_##name(                       \
      const fastht::simulate::Launch* how, const void* params) {                              \
    fastht::simulate::launch(*how, [](const void* p) {                                        \
      using namespace fastht::cuda;                                                           \
      __VA_ARGS__(*static_cast<const Params*>(p));                                            \
    }, params);                                                                               \
  }
#endif

// Whether this block is the last of `count` that come here with the same counter, which starts at
// zero. All that the others wrote before is then visible to all threads of this one. The counter
// chooses only who goes on; sums stay in the order in which they are written down.
FASTHT_DEVICE bool last_to_arrive(Word* counter, int count, Word* shared_flag) {
  sync_block();
  if (thread_index() == 0) {
    fence();
    *shared_flag = add_atomically(counter, 1) == static_cast<Word>(count - 1);
    fence();
  }
  sync_block();
  return *shared_flag != 0;
}

}  // namespace fastht::cuda
