#include "cpu/schedule.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace fastht::cpu {
namespace {

struct Region {
  void (*body)(void*, int64_t, int);
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next_task{0};
  std::atomic<int> next_worker{0};

  void work() {
    const int worker = next_worker.fetch_add(1);
    for (int64_t task; (task = next_task.fetch_add(1)) < tasks;) body(context, task, worker);
  }
};

using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// GNU's entry point, which LLVM's and Intel's runtimes have too. Looked up rather than linked: a
// second runtime in the process would bring a second pool of threads.
OpenMpParallel open_mp() {
  static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

void parallel_for(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
  Region region{body, context, tasks};
  const auto workers = static_cast<unsigned>(std::min<int64_t>(threads, tasks));
  if (workers <= 1) {
    region.work();
  } else if (const OpenMpParallel parallel = open_mp()) {
    parallel([](void* r) { static_cast<Region*>(r)->work(); }, &region, workers, 0);
  } else {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < workers; ++i) others.emplace_back([&region] { region.work(); });
    region.work();
    for (std::thread& other : others) other.join();
  }
}

bool Schedule::by_group() const {
  const int64_t rounds = (groups() + threads - 1) / threads;
  return groups() * 20 >= rounds * threads * 17;  // at most 15 % of the threads' time is idle
}

void Schedule::run(const Stage* stages, int count, void* self) const {
  struct Context {
    const Schedule& schedule;
    const Stage* stages;
    int count;
    void* self;
    const Stage* stage;

    int64_t last_of(int64_t group) const {
      return std::min((group + 1) * schedule.group_size, schedule.images);
    }
  };
  Context context{*this, stages, count, self, nullptr};
  if (by_group()) {
    const auto body = [](void* c, int64_t group, int worker) {
      const Context& own = *static_cast<Context*>(c);
      for (int64_t image = group * own.schedule.group_size; image < own.last_of(group); ++image)
        for (int s = 0; s < own.count; ++s)
          for (int64_t part = 0; part < own.stages[s].parts; ++part)
            own.stages[s].run(own.self, worker, worker, image, part);
    };
    parallel_for(threads, groups(), body, &context);
    return;
  }
  for (int s = 0; s < count; ++s) {
    context.stage = &stages[s];
    if (stages[s].sums_over_images) {
      const auto body = [](void* c, int64_t task, int worker) {
        const Context& own = *static_cast<Context*>(c);
        const int64_t group = task / own.stage->parts, part = task % own.stage->parts;
        for (int64_t image = group * own.schedule.group_size; image < own.last_of(group); ++image)
          own.stage->run(own.self, image, worker, image, part);
      };
      parallel_for(threads, groups() * stages[s].parts, body, &context);
    } else {
      const auto body = [](void* c, int64_t task, int worker) {
        const Context& own = *static_cast<Context*>(c);
        const int64_t image = task / own.stage->parts, part = task % own.stage->parts;
        own.stage->run(own.self, image, worker, image, part);
      };
      parallel_for(threads, images * stages[s].parts, body, &context);
    }
  }
}

namespace {

constexpr size_t kHugePage = size_t{1} << 21;

struct Kept {
  std::mutex mutex;
  char* data = nullptr;
  size_t size = 0;
};

// Never destroyed: a thread may return its scratch while the process ends.
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), size_(0) {
  if (std::unique_lock<std::mutex> lock(kept().mutex); kept().size >= bytes) {
    data_ = std::exchange(kept().data, nullptr);
    size_ = std::exchange(kept().size, 0);
    return;
  }
  // Whole huge pages where there are any: scratch is walked through in every direction.
  const size_t page = bytes < kHugePage ? 64 : kHugePage;
  size_ = (bytes + page - 1) / page * page;
  data_ = static_cast<char*>(std::aligned_alloc(page, size_));
  if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (page == kHugePage) madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Scratch::~Scratch() {
  std::unique_lock<std::mutex> lock(kept().mutex);
  if (size_ > kept().size) {
    std::swap(data_, kept().data);
    std::swap(size_, kept().size);
  }
  lock.unlock();
  std::free(data_);
}

}  // namespace fastht::cpu
