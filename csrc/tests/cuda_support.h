// What the tests of the CUDA kernels share: buffers, packing, a launch of one simulated kernel.
//
// Every array has exactly the size that a kernel may touch and is full of NaN before it is written.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/fragments.cuh"

namespace fastht::cuda::test {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// An exact, 16-byte aligned allocation in a format; `shift` numbers off that alignment.
class Buffer {
 public:
  Buffer(long long size, Format format, int shift = 0)
      : size_(size), format_(format), shift_(shift) {
    const size_t bytes = static_cast<size_t>(size + shift) * each();
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes > 0 ? bytes : 1) != 0) std::abort();
    std::memset(memory, 0xff, bytes);
    memory_ = static_cast<char*>(memory);
  }
  Buffer(Buffer&& other) noexcept
      : size_(other.size_), format_(other.format_), shift_(other.shift_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(size_, other.size_), std::swap(format_, other.format_);
    std::swap(shift_, other.shift_), std::swap(memory_, other.memory_);
    return *this;
  }
  ~Buffer() { std::free(memory_); }

  Buffer& normal(std::mt19937& random, float deviation, float mean = 0.0f) {
    std::normal_distribution<float> draw(mean, deviation);
    for (long long i = 0; i < size_; ++i) set(i, draw(random));
    return *this;
  }
  Buffer& zeros() {
    for (long long i = 0; i < size_; ++i) set(i, 0.0f);
    return *this;
  }
  void set(long long i, float value) { write({data(), format_}, i, value); }
  Buffer& fill(float value) {
    for (long long i = 0; i < size_; ++i) set(i, value);
    return *this;
  }
  double operator[](long long i) const { return at(i); }
  float at(long long i) const { return read({data(), format_}, i); }
  void* data() const { return memory_ + static_cast<size_t>(shift_) * each(); }
  float* floats() const { return static_cast<float*>(data()); }
  Array array() const { return {data(), format_}; }
  long long size() const { return size_; }
  bool same_bits(const Buffer& other) const {
    return std::memcmp(data(), other.data(), static_cast<size_t>(size_) * each()) == 0;
  }

 private:
  size_t each() const { return format_ == Format::kFloat32 ? 4 : 2; }
  long long size_;
  Format format_;
  int shift_;
  char* memory_;
};

// A matrix [rows][depth] (row r: the weights of output r) in fragment order, padded with zeros.
// `wide`: the blocks' columns have wide numbers; `memory`: k is in memory order. Blocks follow one
// another by output, or `by_depth`; `tiles`: as load_tiles reads them.
inline Buffer fragments(const Buffer& matrix, int rows, int depth, int padded_rows,
                        int padded_depth, Format format, bool wide, bool memory,
                        bool by_depth = false, bool tiles = false) {
  Buffer result(static_cast<long long>(padded_rows) * padded_depth, format);
  const int outputs = padded_rows / 8, groups = padded_depth / 32;
  for (int n = 0; n < outputs; ++n)
    for (int k = 0; k < groups; ++k)
      for (int lane = 0; lane < 32; ++lane)
        for (int w = 0; w < 8; ++w) {
          const int row = wide ? wide_number(n, lane) : narrow_number(n, lane);
          const int column = memory ? memory_order(k, lane, w) : register_order(k, lane, w);
          const int at = format == Format::kFloat32 ? fragment_at<Float32>(lane, w)
                         : tiles                    ? tile_at<Bfloat16>(lane, w)
                                                    : fragment_at<Bfloat16>(lane, w);
          const bool real = row < rows && column < depth;
          result.set((by_depth ? k * outputs + n : n * groups + k) * kBlock + at,
                     real ? matrix.at(row * depth + column) : 0.0f);
        }
  return result;
}

template <class P>
constexpr Format format_of() {
  if (Same<P, Bfloat16>::value) return Format::kBfloat16;
  return Same<P, Float16>::value ? Format::kFloat16 : Format::kFloat32;
}

template <class Params>
struct Call {
  void (*kernel)(const Params&);
  const Params* params;
};
// Runs one kernel in the simulator.
template <class Params>
void run(void (*kernel)(const Params&), const Params& params, int blocks, int threads, int shared,
         uint64_t order = 0, bool truncate = false) {
  const Call<Params> call{kernel, &params};
  simulate::launch({blocks, threads, static_cast<size_t>(shared), order, truncate},
                   [](const void* c) {
                     const auto& it = *static_cast<const Call<Params>*>(c);
                     it.kernel(*it.params);
                   },
                   &call);
}

// The largest error relative to the largest exact value; NaN stays.
class Error {
 public:
  void add(double value, double exact) {
    const double error = std::abs(value - exact);
    if (worst_ == worst_ && !(error <= worst_)) worst_ = error;
    if (std::abs(exact) > largest_) largest_ = std::abs(exact);
  }
  double relative() const { return worst_ / (largest_ > 0 ? largest_ : 1); }

 private:
  double worst_ = 0, largest_ = 0;
};

}  // namespace fastht::cuda::test
