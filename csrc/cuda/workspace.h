// The arrays of one call inside one allocation.
#pragma once

#include <cstddef>

namespace fastht::cuda {

// Made over null, it only counts the bytes.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T = void>
  T* take(long long bytes) {
    char* const start = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<size_t>(bytes) + 255) / 256 * 256;
    return static_cast<T*>(static_cast<void*>(start));
  }
  float* floats(long long count) { return take<float>(count * 4); }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace fastht::cuda
