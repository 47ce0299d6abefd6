// Finds data races in simulated kernels, exactly and without annotations.
//
// The kernels are compiled with -fsanitize=thread and -DFASTHT_RACE, which puts a call before each
// access to memory, and linked with this file instead of ThreadSanitizer's library. All memory but
// the threads' stacks is watched, in granules of two bytes (the smallest number that kernels have).
//
// Two accesses of which one writes race unless something orders them. Inside a block that is a
// barrier between. Between blocks it is the chain that the last-block pattern makes: write,
// barrier, fence, atomic | the other block's atomic on the same address, fence, barrier, read.
// Launches are ordered.
#include <map>
#include <unordered_map>

#include "cuda/simulate.h"

#define QUIET __attribute__((no_sanitize("thread")))

namespace fastht::simulate {
namespace {

constexpr int kNobody = -1, kMany = -2;
constexpr uintptr_t kGranule = 2, kPage = 4096;

struct Cell {  // a granule: its last writer and its readers since
  int writer = kNobody, write_block = kNobody, reader = kNobody, read_block = kNobody;
  uint32_t write_epoch = 0, read_epoch = 0;
};
using Clock = std::map<int, uint32_t>;  // block -> all of it before this epoch is known
struct Page {
  Cell cells[kPage / kGranule];
};

struct Detector {
  std::unordered_map<uintptr_t, Page> pages;
  std::map<int, Clock> seen;                           // by block
  std::map<int, Clock> arriving;                       // by block: seen from the next barrier on
  std::map<std::pair<int, int>, uint32_t> fenced;      // by block and thread: epoch of its fence
  std::map<std::pair<int, int>, Clock> acquired;       // by atomics, until a fence
  std::map<const void*, Clock> published;              // by address of the atomic
  uintptr_t ignored = 0;
  size_t ignored_bytes = 0;
  int found = 0;
  uintptr_t last_page = 0;
  Page* last = nullptr;
};

Detector& detector() {
  static Detector* const one = new Detector;
  return *one;
}

QUIET void merge(Clock& into, const Clock& from) {
  for (const auto& [block, epoch] : from)
    if (into[block] < epoch) into[block] = epoch;
}

QUIET bool ordered(int block, uint32_t epoch, int thread) {
  const Block& mine = *machine.block;
  if (block == mine.index) return epoch < mine.epoch || thread == machine.fiber->thread;
  const Clock& seen = detector().seen[mine.index];
  const auto known = seen.find(block);
  return known != seen.end() && epoch < known->second;
}

QUIET void report(const char* what, uintptr_t at, int block, int thread, const void* where) {
  if (++detector().found > 5) return;
  const Block& mine = *machine.block;
  const auto shared = reinterpret_cast<uintptr_t>(mine.shared);
  const bool inside = at >= shared && at < shared + mine.shared_bytes;
  std::fprintf(stderr, "race: %s at %s %zu; block %d thread %d and block %d thread %d, pc %p\n",
               what, inside ? "shared memory, byte" : "address", inside ? at - shared : at, block,
               thread, mine.index, machine.fiber->thread, where);
}

}  // namespace

QUIET void race_ignore(const void* memory, size_t bytes) {
  detector().ignored = reinterpret_cast<uintptr_t>(memory);
  detector().ignored_bytes = bytes;
}

QUIET void race_launch() {
  Detector& d = detector();
  d.pages.clear(), d.seen.clear(), d.arriving.clear(), d.fenced.clear(), d.acquired.clear();
  d.published.clear();
  d.last = nullptr;
}

// The block's shared memory may lie where that of an earlier block was.
QUIET void race_block(const Block& block) {
  const auto start = reinterpret_cast<uintptr_t>(block.shared);
  for (uintptr_t at = start; at < start + block.shared_bytes; at += kGranule) {
    const auto page = detector().pages.find(at / kPage);
    if (page != detector().pages.end()) page->second.cells[at % kPage / kGranule] = {};
  }
}

QUIET void race_barrier(const Block& block) {
  Detector& d = detector();
  const auto arriving = d.arriving.find(block.index);
  if (arriving == d.arriving.end()) return;
  merge(d.seen[block.index], arriving->second);
  d.arriving.erase(arriving);
}

QUIET void race_fence() {
  Detector& d = detector();
  const std::pair<int, int> me{machine.block->index, machine.fiber->thread};
  d.fenced[me] = machine.block->epoch;
  const auto acquired = d.acquired.find(me);
  if (acquired == d.acquired.end()) return;
  merge(d.arriving[me.first], acquired->second);
  d.acquired.erase(acquired);
}

QUIET void race_atomic(const void* at) {
  Detector& d = detector();
  const std::pair<int, int> me{machine.block->index, machine.fiber->thread};
  const auto fenced = d.fenced.find(me);
  if (fenced != d.fenced.end()) {  // all of this block before the fence's last barrier, and all
    Clock mine = d.seen[me.first];  // that it knew
    mine[me.first] = fenced->second;
    merge(d.published[at], mine);
  }
  merge(d.acquired[me], d.published[at]);
}

QUIET int race_count() { return detector().found; }

QUIET void race_access(const void* at, size_t bytes, bool write, const void* where) {
  if (machine.fiber == nullptr || machine.muted) return;
  Detector& d = detector();
  const auto address = reinterpret_cast<uintptr_t>(at);
  if (address - d.ignored < d.ignored_bytes) return;
  const int block = machine.block->index, thread = machine.fiber->thread;
  const uint32_t epoch = machine.block->epoch;
  for (uintptr_t i = address / kGranule * kGranule; i < address + bytes; i += kGranule) {
    if (d.last == nullptr || d.last_page != i / kPage) {
      d.last_page = i / kPage;
      d.last = &d.pages[d.last_page];
    }
    Cell& cell = d.last->cells[i % kPage / kGranule];
    if (cell.writer != kNobody && !ordered(cell.write_block, cell.write_epoch, cell.writer))
      return report(write ? "two writes" : "a write, then a read", i, cell.write_block, cell.writer,
                    where);
    const bool read = cell.reader != kNobody &&
                      !ordered(cell.read_block, cell.read_epoch, cell.reader);
    if (write && read)
      return report("a read, then a write", i, cell.read_block, cell.reader, where);
    if (write) {
      cell.writer = thread, cell.write_block = block, cell.write_epoch = epoch;
      cell.reader = kNobody;
    } else {
      cell.reader = read ? kMany : thread;  // nobody alone is ordered with several readers
      cell.read_block = read && cell.read_block != block ? kMany : block;
      cell.read_epoch = epoch;
    }
  }
}

}  // namespace fastht::simulate

// What the compiler calls.
namespace {
QUIET inline void access(const void* at, size_t bytes, bool write, const void* where) {
  fastht::simulate::race_access(at, bytes, write, where);
}
}  // namespace
#define WHERE __builtin_return_address(0)
#define HOOKS(n)                                                                     \
  QUIET void __tsan_read##n(void* at) { access(at, n, false, WHERE); }               \
  QUIET void __tsan_write##n(void* at) { access(at, n, true, WHERE); }               \
  QUIET void __tsan_unaligned_read##n(void* at) { access(at, n, false, WHERE); }     \
  QUIET void __tsan_unaligned_write##n(void* at) { access(at, n, true, WHERE); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
QUIET void __tsan_read_range(void* at, size_t n) { access(at, n, false, WHERE); }
QUIET void __tsan_write_range(void* at, size_t n) { access(at, n, true, WHERE); }
QUIET void __tsan_init() {}
QUIET void __tsan_func_entry(void*) {}
QUIET void __tsan_func_exit() {}
QUIET void __tsan_vptr_update(void**, void*) {}
QUIET void __tsan_vptr_read(void**) {}
}
