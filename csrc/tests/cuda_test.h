// What the tests of the CUDA kernels share: exact arrays full of NaN, random numbers in a format,
// matrices in fragment order, launches on the simulator.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/fragments.cuh"

namespace fastht::cuda::test {

inline std::mt19937 random_bits(1);

// An exact allocation, so that a sanitizer sees every step beyond it, full of NaN.
template <class F>
class Numbers {
 public:
  using Unit = typename F::Unit;
  explicit Numbers(size_t size) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, std::max<size_t>(16, size * sizeof(Unit))) != 0) std::abort();
    std::memset(memory, 0xff, size * sizeof(Unit));
    data_.reset(static_cast<Unit*>(memory));
  }
  Numbers(size_t size, float deviation, float mean = 0.0f) : Numbers(size) {
    std::normal_distribution<float> normal(mean, deviation);
    for (size_t i = 0; i < size; ++i) set(i, normal(random_bits));
  }
  void set(size_t i, float value) { store_one<F>(data_.get() + i, value); }
  void fill(float value) {
    for (size_t i = 0; i < size_; ++i) set(i, value);
  }
  double operator[](size_t i) const { return load_one<F>(data_.get() + i); }
  Unit* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool same_bits(const Numbers& other) const {
    return std::memcmp(data(), other.data(), size_ * sizeof(Unit)) == 0;
  }

 private:
  struct Free {
    void operator()(Unit* memory) const { std::free(memory); }
  };
  size_t size_;
  std::unique_ptr<Unit, Free> data_;
};

// Writes `rows_of(k, column)` as right operands: `groups` of 32 k, `blocks` of 8 columns, block
// after block of group after group, or the other way round.
enum class Order { kMemory, kRegister };
enum class Names { kNarrow, kWide };
template <class F, class Value>
void put_fragments(Numbers<F>& to, Order order, Names names, int groups, int blocks, bool group_first,
                   Value value) {
  for (int group = 0; group < groups; ++group)
    for (int block = 0; block < blocks; ++block) {
      const size_t at = size_t(group_first ? group * blocks + block : block * groups + group) * kBlock;
      for (int lane = 0; lane < kLanes; ++lane)
        for (int w = 0; w < 8; ++w) {
          const int k = order == Order::kMemory ? memory_order(group, lane, w)
                                                : register_order(group, lane, w);
          const int column = names == Names::kNarrow ? narrow_number(block, lane)
                                                     : wide_number(block, lane);
          to.set(at + fragment_at<F>(lane, w), value(k, column));
        }
    }
}

inline int failures = 0;
inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// The largest error beside the largest number; NaN where either side has one that the other lacks.
class Error {
 public:
  void add(double found, double exact) {
    const double error = std::abs(found - exact);
    if (worst_ == worst_ && !(error <= worst_)) worst_ = error;
    largest_ = std::max(largest_, std::abs(exact));
  }
  double relative() const { return worst_ / std::max(largest_, 1e-30); }
  void expect_below(double limit, const std::string& what) const {
    char text[64];
    std::snprintf(text, sizeof text, ": relative error %.2e, limit %.1e", relative(), limit);
    expect(relative() <= limit, what + text);
    if (std::getenv("FASTHT_SHOW")) std::printf("  %s%s\n", what.c_str(), text);
  }

 private:
  double worst_ = 0.0, largest_ = 0.0;
};

struct How {
  uint64_t order = 0;  // the seed of threads' and blocks' turns; 0: one after the other
  bool truncate = false;
};
template <class Params, void kKernel(const Params&)>
void launch(int blocks, int threads, size_t shared, const Params& params, const How& how) {
  simulate::launch({blocks, threads, shared, how.order, how.truncate},
                   [](const void* p) { kKernel(*static_cast<const Params*>(p)); }, &params);
}

}  // namespace fastht::cuda::test
