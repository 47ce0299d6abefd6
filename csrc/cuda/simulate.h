// Runs CUDA kernels on a CPU: threads are fibers, warp instructions are meeting points.
//
// What a kernel may use is in device.cuh; this is the CPU's side of it, with the checks that only
// a simulation can make: a warp instruction that not all lanes reach, threads at different
// barriers, shared memory that was never written (it starts as NaN) or not declared (its allocation
// has exactly the declared size, so AddressSanitizer sees the next byte), a copy that was not
// waited for (its target is NaN until then) and, with race.cpp, every data race.
//
// A launch with `order` 0 runs block after block. With another number, threads take turns in an
// order that it seeds, and so do the blocks, of which a few are resident at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FASTHT_ASAN(statement) statement
#else
#define FASTHT_ASAN(statement)
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
// The simulator's own memory is none of the race detector's business. GCC refuses to inline such
// functions into instrumented ones.
#define FASTHT_INTERNAL __attribute__((no_sanitize("thread"), noinline))

namespace fastht::simulate {

constexpr int kWarp = 32;
constexpr size_t kStack = size_t{128} << 10;
constexpr int kResident = 3;  // blocks that run at the same time, where the order is shuffled

enum class State { kReady, kAtBarrier, kInWarp, kDone };
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
};
struct Block;
struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kReady;
  Block* block = nullptr;
  int thread = 0, line = 0, groups = 0;
  std::vector<Copy> copies;
};
struct Meeting {  // of the lanes of a warp
  void* operands[kWarp];
  int arrived, kind, line;
};
struct Block {
  int index = 0, slot = 0, done = 0, waiting = 0;
  uint32_t epoch = 0;  // barriers passed
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Fiber> fibers;
  std::vector<Meeting> meetings;
};

#ifdef FASTHT_RACE
void race_launch();                    // a new launch: all before it is ordered
void race_block(const Block& block);   // a block starts in its slot
void race_ignore(const void* memory, size_t bytes);  // the fibers' stacks
void race_access(const void* at, size_t bytes, bool write, const void* where);
void race_barrier(const Block& block);
void race_fence();
void race_atomic(const void* at);
int race_count();
#else
inline void race_launch() {}
inline void race_block(const Block&) {}
inline void race_ignore(const void*, size_t) {}
inline void race_access(const void*, size_t, bool, const void*) {}
inline void race_barrier(const Block&) {}
inline void race_fence() {}
inline void race_atomic(const void*) {}
inline int race_count() { return 0; }
#endif

struct Machine {
  Block blocks[kResident];
  Block* block = nullptr;  // whose turn it is
  Fiber* fiber = nullptr;
  int threads = 0, block_count = 0;
  bool shuffled = false;
  bool muted = false;     // the race detector does not listen: the library's own work
  bool truncate = false;  // products are rounded towards zero, as tensor cores do
  uint64_t random = 0;
  void (*kernel)(const void*) = nullptr;
  const void* params = nullptr;
#if defined(__x86_64__)
  void* scheduler = nullptr;
#else
  ucontext_t scheduler;
#endif
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  char* stacks = nullptr;
  size_t stacks_bytes = 0;
};
inline Machine machine;

[[noreturn]] FASTHT_INTERNAL inline void fail(const char* what, int line) {
  std::fprintf(stderr, "simulation: %s, line %d, block %d, thread %d\n", what, line,
               machine.block ? machine.block->index : -1,
               machine.fiber ? machine.fiber->thread : -1);
  std::fflush(stderr);
  std::abort();
}

FASTHT_INTERNAL inline uint64_t draw() {  // xorshift64*
  uint64_t& x = machine.random;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  return x * 0x2545F4914F6CDD1Dull;
}

#if defined(__x86_64__)
extern "C" void fastht_switch(void** save, void* load);
asm(R"(
.text
.weak fastht_switch
.hidden fastht_switch
.type fastht_switch, @function
fastht_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size fastht_switch, .-fastht_switch
)");
#endif

FASTHT_INTERNAL inline void pass_barrier_if_all_are_there(Block& block) {
  if (block.waiting == 0 || block.waiting + block.done < machine.threads) return;
  int line = 0;
  for (Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBarrier) continue;
    if (line != 0 && fiber.line != line) fail("threads are at different barriers", fiber.line);
    line = fiber.line;
    fiber.state = State::kReady;
  }
  block.waiting = 0;
  race_barrier(block);
  ++block.epoch;
}

FASTHT_INTERNAL inline void yield() {
  Fiber& fiber = *machine.fiber;
  FASTHT_ASAN(__sanitizer_start_switch_fiber(
                  fiber.state == State::kDone ? nullptr : &fiber.fake_stack,
                  machine.scheduler_stack, machine.scheduler_stack_size);)
#if defined(__x86_64__)
  fastht_switch(&fiber.stack_pointer, machine.scheduler);
#else
  swapcontext(&fiber.context, &machine.scheduler);
#endif
  FASTHT_ASAN(__sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);)
}

FASTHT_INTERNAL inline void enter() {
  FASTHT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack,
                                              &machine.scheduler_stack_size);)
  machine.kernel(machine.params);
  Fiber& fiber = *machine.fiber;
  Block& block = *fiber.block;
  if (!fiber.copies.empty()) fail("a thread ends with copies that it did not wait for", 0);
  const Meeting& meeting = block.meetings[fiber.thread / kWarp];
  if (meeting.arrived > 0) fail("a lane ends while others wait for it", meeting.line);
  fiber.state = State::kDone;
  ++block.done;
  pass_barrier_if_all_are_there(block);
  yield();
  __builtin_unreachable();
}

FASTHT_INTERNAL inline void resume(Fiber& fiber) {
  machine.fiber = &fiber;
  machine.block = fiber.block;
  FASTHT_ASAN(void* fake = nullptr; __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);)
#if defined(__x86_64__)
  fastht_switch(&machine.scheduler, fiber.stack_pointer);
#else
  swapcontext(&machine.scheduler, &fiber.context);
#endif
  FASTHT_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
  machine.fiber = nullptr;
  machine.block = nullptr;
}

FASTHT_INTERNAL inline void prepare(Fiber& fiber, Block& block, int thread, char* stack) {
  FASTHT_ASAN(ASAN_UNPOISON_MEMORY_REGION(stack, kStack);)  // the last block's
  fiber.stack = stack;
  fiber.fake_stack = nullptr;
  fiber.state = State::kReady;
  fiber.block = &block;
  fiber.thread = thread;
  fiber.groups = 0;
#if defined(__x86_64__)
  void** const frame = reinterpret_cast<void**>(stack + kStack - 16);
  *frame = reinterpret_cast<void*>(&enter);
  for (int i = 1; i <= 6; ++i) frame[-i] = nullptr;
  fiber.stack_pointer = frame - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
#endif
}

FASTHT_INTERNAL inline void start_block(int slot, int index, size_t shared_bytes) {
  Block& block = machine.blocks[slot];
  block.index = index;
  block.slot = slot;
  block.done = block.waiting = 0;
  block.epoch = 0;
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, shared_bytes > 0 ? shared_bytes : 1) != 0) std::abort();
  std::memset(memory, 0xff, shared_bytes);
  block.shared = static_cast<unsigned char*>(memory);
  block.shared_bytes = shared_bytes;
  block.fibers.resize(machine.threads);
  block.meetings.assign(machine.threads / kWarp, {});
  for (int t = 0; t < machine.threads; ++t)
    prepare(block.fibers[t], block, t,
            machine.stacks + (static_cast<size_t>(slot) * machine.threads + t) * kStack);
  race_block(block);
}

template <class T>
FASTHT_INTERNAL void shuffle(std::vector<T>& all) {
  for (size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[draw() % i]);
}

struct Launch {
  int blocks, threads;
  size_t shared_bytes;
  uint64_t order;
  bool truncate;
};

FASTHT_INTERNAL inline void launch(const Launch& how, void (*kernel)(const void*),
                                   const void* params) {
  if (how.threads % kWarp != 0 || how.threads > 1024 || how.threads < kWarp)
    fail("a block is whole warps, 1024 threads at most", 0);
  machine.kernel = kernel;
  machine.params = params;
  machine.threads = how.threads;
  machine.block_count = how.blocks;
  machine.shuffled = how.order != 0;
  machine.truncate = how.truncate;
  machine.random = how.order * 0x9E3779B97F4A7C15ull + 1;
  const int slots = machine.shuffled ? kResident : 1;
  const size_t bytes = kStack * how.threads * slots;
  if (machine.stacks_bytes < bytes) {
    std::free(machine.stacks);
    void* memory = nullptr;
    if (posix_memalign(&memory, 4096, bytes) != 0) std::abort();
    machine.stacks = static_cast<char*>(memory);
    machine.stacks_bytes = bytes;
    race_ignore(memory, bytes);
  }
  race_launch();
  std::vector<int> turn(how.blocks);
  for (int b = 0; b < how.blocks; ++b) turn[b] = b;
  if (machine.shuffled) shuffle(turn);
  int next = 0, running = 0;
  const auto fill = [&](int slot) {
    if (next == how.blocks) return;
    start_block(slot, turn[next++], how.shared_bytes);
    ++running;
  };
  for (int slot = 0; slot < slots; ++slot) fill(slot);
  std::vector<Fiber*> order;
  while (running > 0) {
    order.clear();
    // A block stands still now and then, so that the others overtake it.
    const int still = machine.shuffled && running > 1 ? static_cast<int>(draw() % 6) : -1;
    for (Block& block : machine.blocks)
      if (block.shared != nullptr && block.slot != still)
        for (Fiber& fiber : block.fibers)
          if (fiber.state == State::kReady) order.push_back(&fiber);
    if (order.empty() && still >= 0) continue;
    if (order.empty())
      fail("nobody can go on: a barrier or warp instruction is not reached by all", 0);
    if (machine.shuffled) shuffle(order);
    for (Fiber* fiber : order) resume(*fiber);
    for (int slot = 0; slot < slots; ++slot) {
      Block& block = machine.blocks[slot];
      if (block.shared == nullptr || block.done < machine.threads) continue;
      std::free(block.shared);
      block.shared = nullptr;
      --running;
      fill(slot);
    }
  }
}

FASTHT_INTERNAL inline void barrier(int line) {
  Fiber& fiber = *machine.fiber;
  fiber.state = State::kAtBarrier;
  fiber.line = line;
  ++fiber.block->waiting;
  pass_barrier_if_all_are_there(*fiber.block);
  if (fiber.state != State::kReady) yield();
}

// Waits until all lanes of the warp are here, then the last one runs `together` for all of them.
FASTHT_INTERNAL inline void meet(int kind, int line, void* operands, void (*together)(void**)) {
  Fiber& fiber = *machine.fiber;
  Block& block = *fiber.block;
  const int warp = fiber.thread / kWarp;
  Meeting& meeting = block.meetings[warp];
  if (meeting.arrived == 0) meeting.kind = kind, meeting.line = line;
  if (meeting.kind != kind || meeting.line != line)
    fail("lanes of a warp are at different instructions", line);
  meeting.operands[fiber.thread % kWarp] = operands;
  fiber.state = State::kInWarp;
  fiber.line = line;
  if (++meeting.arrived < kWarp) return yield();
  meeting.arrived = 0;
  together(meeting.operands);
  for (int lane = 0; lane < kWarp; ++lane)
    block.fibers[warp * kWarp + lane].state = State::kReady;
}

// Lets other threads and blocks come between, where the order is shuffled.
FASTHT_INTERNAL inline void pause() {
  if (machine.shuffled) yield();
}

FASTHT_INTERNAL inline void start_copy(void* to, const void* from, size_t bytes, bool real) {
  Fiber& fiber = *machine.fiber;
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fail("an asynchronous copy is not aligned to its size", fiber.line);
  race_access(to, bytes, true, __builtin_return_address(0));
  std::memset(to, 0xff, bytes);  // NaN: nobody may read it before it has arrived
  machine.muted = true;
  fiber.copies.push_back({to, real ? from : nullptr, bytes, fiber.groups});
  machine.muted = false;
}

FASTHT_INTERNAL inline void finish_copies(int pending_groups) {
  Fiber& fiber = *machine.fiber;
  size_t kept = 0;
  Copy* const all = fiber.copies.data();
  for (size_t i = 0; i < fiber.copies.size(); ++i) {
    const Copy copy = all[i];
    if (copy.group >= fiber.groups - pending_groups) {
      all[kept++] = copy;
      continue;
    }
    race_access(copy.to, copy.bytes, true, __builtin_return_address(0));
    if (copy.from != nullptr) {
      race_access(copy.from, copy.bytes, false, __builtin_return_address(0));
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  machine.muted = true;
  fiber.copies.resize(kept);
  machine.muted = false;
}

}  // namespace fastht::simulate
