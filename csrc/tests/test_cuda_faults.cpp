// Planted faults: each thing that the simulator and its race detector can find, they must find
// here. Each fault is a small kernel of its own, beside the same kernel without it.

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>

#include "cuda/fragments.cuh"
#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

struct Params {
  float* out;
  const float* in;  // 32 numbers a warp
  Word* counter;
  bool fault;
};
using Body = void (*)(const Params&);
constexpr int kThreads = 64, kBlocks = 4, kOrders = 8;

// Every thread hands its number to another warp.
void no_barrier(const Params& p) {
  Carver carver;
  float* const shared = carver.take<float>(kThreads);
  const int t = thread_index();
  shared[t] = static_cast<float>(t);
  if (!p.fault) sync_block();
  p.out[block_index() * kThreads + t] = shared[kThreads - 1 - t];
}

// A buffer is filled again while others may still read it: right in every order of the threads
// here, as nobody runs between a thread's wait and its barrier.
void refilled_too_early(const Params& p) {
  Carver carver;
  Quad* const shared = carver.take<Quad>(kThreads);
  const int t = thread_index();
  float sum = 0.0f;
  for (int i = 0; i < 3; ++i) {
    if (!p.fault) sync_block();
    copy_async(shared + t, p.in + t * 4);
    end_group();
    wait_groups<0>();
    sync_block();
    sum += as_float(shared[(t + 32) % kThreads].v[i]);
  }
  p.out[block_index() * kThreads + t] = sum;
}

void waits_too_little(const Params& p) {
  Carver carver;
  Quad* const shared = carver.take<Quad>(kThreads);
  const int t = thread_index();
  copy_async(shared + t, p.in + t * 4);
  end_group();
  if (p.fault)
    wait_groups<1>();
  else
    wait_groups<0>();
  p.out[block_index() * kThreads + t] = as_float(shared[t].v[1]);
  wait_groups<0>();
}

void waits_never(const Params& p) {
  Carver carver;
  Quad* const shared = carver.take<Quad>(kThreads);
  copy_async(shared + thread_index(), p.in + thread_index() * 4);
  end_group();
  if (!p.fault) wait_groups<0>();
}

void copies_unaligned(const Params& p) {
  Carver carver;
  Quad* const shared = carver.take<Quad>(kThreads);
  copy_async(shared + thread_index(), p.in + thread_index() * 4 + (p.fault ? 1 : 0));
  end_group();
  wait_groups<0>();
}

void reads_unwritten(const Params& p) {
  Carver carver;
  float* const shared = carver.take<float>(kThreads);
  if (!p.fault || thread_index() != 5) shared[thread_index()] = 1.0f;
  sync_block();
  p.out[block_index() * kThreads + thread_index()] = shared[thread_index()];
}

void lane_leaves_early(const Params& p) {
  if (p.fault && thread_index() == 7) return;
  float c[4] = {};
  const Word a[4] = {};
  mma_bfloat16(c, a, 0, 0);
  p.out[block_index() * kThreads + thread_index()] = c[0];
}

void lanes_diverge(const Params& p) {
  float value = 1.0f;
  if (p.fault && thread_index() % 2 == 0)
    value = shuffle_xor(value, 1);
  else
    value = shuffle_xor(value, 1);
  p.out[block_index() * kThreads + thread_index()] = value;
}

void barriers_differ(const Params& p) {
  if (p.fault && thread_index() < 32)
    sync_block();
  else
    sync_block();
}

void too_little_declared(const Params& p) {
  Carver carver;
  float* const shared = carver.take<float>(p.fault ? 65 * 4 : kThreads);
  shared[thread_index()] = 0.0f;
}

void reads_past_shared(const Params& p) {
  Carver carver;
  float* const shared = carver.take<float>(4 * kThreads);
  shared[4 * thread_index()] = 0.0f;
  sync_block();
  if (thread_index() == 0) p.out[block_index() * kThreads] = shared[p.fault ? 4 * kThreads : 0];
}

void reads_past_global(const Params& p) {
  p.out[block_index() * kThreads + thread_index()] =
      p.in[thread_index() * 4 + (p.fault && thread_index() == kThreads - 1 ? 4 : 0)];
}

void blocks_overlap(const Params& p) {
  const int step = p.fault ? kThreads - 1 : kThreads;
  p.out[block_index() * step + thread_index()] = 1.0f;
}

// The last block of all adds up what the blocks have written.
void sum_of_blocks(const Params& p, bool fenced, bool behind_barrier) {
  Carver carver;
  Word* const flag = carver.take<Word>(4);
  const int t = thread_index();
  p.out[block_index() * kThreads + t] = static_cast<float>(t);
  if (behind_barrier) sync_block();
  if (t == 0) {
    if (fenced) fence();
    *flag = add_atomically(p.counter, 1) == kBlocks - 1;
    if (fenced) fence();
  }
  sync_block();
  if (*flag == 0) return;
  float sum = 0.0f;
  for (int b = 0; b < kBlocks; ++b) sum += p.out[b * kThreads + (t + 1) % kThreads];
  p.out[kBlocks * kThreads + t] = sum;
}
void no_fence(const Params& p) { sum_of_blocks(p, !p.fault, true); }
void no_barrier_before_counter(const Params& p) { sum_of_blocks(p, true, !p.fault); }

void counts_before_writing(const Params& p) {
  Carver carver;
  Word* const flag = carver.take<Word>(4);
  const int t = thread_index();
  if (!p.fault) p.out[block_index() * kThreads + t] = 1.0f;
  const bool last = last_to_arrive(p.counter, kBlocks, flag);
  if (p.fault) p.out[block_index() * kThreads + t] = 1.0f;
  if (!last) return;
  float sum = 0.0f;
  for (int b = 0; b < kBlocks; ++b) sum += p.out[b * kThreads + t];
  p.out[kBlocks * kThreads + t] = sum;
}

// A sum in the order in which threads arrive.
void sums_as_they_come(const Params& p) {
  if (thread_index() % 32 == 0) {
    const Word place = add_atomically(p.counter, 1);
    const float value = 1.0f / (3.0f + static_cast<float>(block_index() * 2 + thread_index() / 32));
    p.out[p.fault ? place : block_index() * 2 + thread_index() / 32] = value;
  }
}

struct Outcome {
  bool aborted, nan, orders_differ;
  int races;
  std::string text;
};

// Runs a kernel in a process of its own, as most faults end it, in some orders.
Outcome outcome(Body body, bool fault) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    std::vector<float> results[kOrders];
    bool differ = false;
    bool nan = false;
    for (int i = 0; i < kOrders; ++i) {
      Buffer in(kThreads * 4, Format::kFloat32), out((kBlocks + 1) * kThreads, Format::kFloat32);
      for (long long j = 0; j < in.size(); ++j) in.set(j, 1.0f + j % 5);
      Word counter = 0;
      const Params p{out.floats(), in.floats(), &counter, fault};
      run<Params>(body, p, kBlocks, kThreads, kThreads * 16, i, false);
      // Of what the unfaulty kernel writes.
      Buffer good((kBlocks + 1) * kThreads, Format::kFloat32);
      counter = 0;
      const Params right{good.floats(), in.floats(), &counter, false};
      run<Params>(body, right, kBlocks, kThreads, kThreads * 16, 0, false);
      for (long long j = 0; j < out.size(); ++j) {
        nan = nan || (std::isnan(out.at(j)) && !std::isnan(good.at(j)));
        results[i].push_back(std::isnan(out.at(j)) ? -1.0f : out.at(j));
      }
      differ = differ || results[i] != results[0];
    }
    std::fprintf(stderr, "\ndone %d %d %d\n", nan, differ, simulate::race_count());
    _exit(0);
  }
  close(ends[1]);
  Outcome result{};
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) result.text.append(buffer, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  result.aborted = status != 0;
  const size_t done = result.text.rfind("done ");
  int nan = 0, differ = 0;
  if (done != std::string::npos)
    std::sscanf(result.text.c_str() + done, "done %d %d %d", &nan, &differ, &result.races);
  result.nan = nan != 0;
  result.orders_differ = differ != 0;
  return result;
}

#ifdef FASTHT_RACE
constexpr bool kRaces = true;
#else
constexpr bool kRaces = false;
#endif
#ifdef __SANITIZE_ADDRESS__
constexpr bool kAddresses = true;
#else
constexpr bool kAddresses = false;
#endif

}  // namespace

void test_faults() {
  const auto said = [](const char* words) {
    return [=](const Outcome& o) { return o.aborted && o.text.find(words) != std::string::npos; };
  };
  const auto nan = [](const Outcome& o) { return o.nan; };
  const auto differ = [](const Outcome& o) { return o.orders_differ; };
  const auto race = [](const Outcome& o) { return o.races > 0; };
  struct Fault {
    const char* name;
    Body body;
    std::function<bool(const Outcome&)> found;
    bool looked_for = true;
  };
  const Fault faults[] = {
      {"no barrier (value)", no_barrier, nan, !kRaces},
      {"no barrier", no_barrier, race, kRaces},
      {"a buffer filled again too early", refilled_too_early, race, kRaces},
      {"a wait that is one group too lax", waits_too_little, nan},
      {"a copy without a wait", waits_never, said("copies that it did not wait for")},
      {"an unaligned copy", copies_unaligned, said("not aligned")},
      {"shared memory that nobody wrote", reads_unwritten, nan},
      {"a lane that leaves before a product", lane_leaves_early, said("")},
      {"lanes at different instructions", lanes_diverge, said("different instructions")},
      {"threads at different barriers", barriers_differ, said("different barriers")},
      {"too little shared memory", too_little_declared, said("too little shared memory")},
      {"a read past shared memory", reads_past_shared, said("AddressSanitizer"), kAddresses},
      {"a read past an array", reads_past_global, said("AddressSanitizer"), kAddresses},
      {"blocks that write the same", blocks_overlap, race, kRaces},
      {"no fence at the counter", no_fence, race, kRaces},
      {"no barrier before the counter", no_barrier_before_counter, race, kRaces},
      {"a counter before the write (value)", counts_before_writing, nan},
      {"a counter before the write", counts_before_writing, race, kRaces},
      {"a sum in the order of arrival", sums_as_they_come, differ},
  };
  for (const Fault& fault : faults) {
    if (!fault.looked_for) continue;
    expect(fault.found(outcome(fault.body, true)), std::string("not found: ") + fault.name);
    const Outcome good = outcome(fault.body, false);
    expect(!good.aborted && !good.nan && !good.orders_differ && good.races == 0,
           std::string("found where it is not: ") + fault.name + good.text);
  }
}

// Products are exact sums, rounded once: to nearest, or towards zero as on a GPU.
void test_rounding() {
  struct P {
    float* out;
  };
  Buffer nearest(32 * 4, Format::kFloat32), truncated(32 * 4, Format::kFloat32);
  const auto body = [](const P& p) {
    float c[4] = {1.0f, -1.0f, 1.0f, -1.0f};
    const Word a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // ones
    // Column g is a sum of 16 times 3 * 2^-29 = 0.75 ulp of 1; with a sign as c's.
    const Word tiny = 0x31c031c0;
    mma_bfloat16(c, a, tiny, tiny);
    for (int i = 0; i < 4; ++i) p.out[thread_index() * 4 + i] = c[i];
  };
  run<P>(+body, {nearest.floats()}, 1, 32, 0, 0, false);
  run<P>(+body, {truncated.floats()}, 1, 32, 0, 0, true);
  expect(nearest.at(0) == 1.0f + 0x1p-23f, "products are not rounded to nearest");
  expect(truncated.at(0) == 1.0f, "products are not truncated");
  // The two parts of a float32 number are TensorFloat-32 and miss it by less than its last digit.
  // What is not finite is the first part alone.
  for (const Word bits : {0x3f800001u, 0xc0490fdbu, 0x42c80fffu, 0x0da24260u, 0u, 0x7f7fe123u,
                          0x7f7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7fffffffu}) {
    const float value = as_float(bits);
    Word big, small;
    Float32Products::split(value, big, small);
    const float first = as_float(big), second = as_float(small);
    const bool whole = ((big | small) & 0x1fffu) == 0;
    const double sum = static_cast<double>(first) + second;
    const bool near = std::isfinite(first)
                          ? std::abs(sum - value) <= std::abs(value) * 0x1p-22
                          : small == 0 && std::isnan(first) == std::isnan(value);
    expect((whole || std::isnan(first)) && near, "the parts of float32 are wrong");
  }
}

}  // namespace fastht::cuda::test
