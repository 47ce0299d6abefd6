// How the work of one call is spread over threads and over scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastht::cpu {

// Runs body(context, task, worker) for every task; tasks are handed out in order to at most
// `threads` workers, numbered from 0. In a process that has an OpenMP runtime (as torch brings one)
// its threads are used, so that two pools never fight for the cores; otherwise own threads.
void parallel_for(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context);

// One step of an image's work, in parts that are independent of each other.
struct Stage {
  int64_t parts;
  bool sums_over_images;  // its parts add to their group's sums: a group's images go in order
  void (*run)(void* self, int64_t slot, int worker, int64_t image, int64_t part);
};

// Images are cut into groups of `group_size`, one set of sums each; which is a matter of the shape
// alone, so results do not depend on the number of threads.
//
// With enough groups for the threads, a thread takes a whole group and each image passes through
// all stages while it is in that core's cache; scratch is then one slot a thread. With fewer, all
// images pass through one stage after another, their parts spread over the threads; scratch is
// then one slot an image.
struct Schedule {
  int threads;
  int64_t images, group_size;

  int64_t groups() const { return (images + group_size - 1) / group_size; }
  bool by_group() const;
  int64_t slots() const { return by_group() ? threads : images; }
  void run(const Stage* stages, int count, void* self) const;
};

// Scratch memory for one call, kept for the next one.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t size_;
};

// Lays out arrays one after another, each aligned to a cache line. Measures while `base` is null.
struct Layout {
  char* base = nullptr;
  size_t size = 0;

  template <class T>
  T* take(int64_t count) {
    T* at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + size);
    size += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

}  // namespace fastht::cpu
