#include "cpu/paths.h"

#include <stdexcept>

#include "cpu/check.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastht::cpu {

#define FASTHT_DECLARE(path)               \
  void path##_forward(const ForwardCall&); \
  void path##_backward(const BackwardCall&);

FASTHT_DECLARE(portable)
FASTHT_DECLARE(avx2)
FASTHT_DECLARE(avx512)
FASTHT_DECLARE(avx512_bf16)
FASTHT_DECLARE(amx_bf16)

namespace {

#define FASTHT_ENTRY(path, bf16, supported) \
  {#path, bf16, supported, path##_forward, path##_backward}

[[maybe_unused]] bool has_avx2() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

[[maybe_unused]] bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

[[maybe_unused]] bool has_avx512_bf16() {
#if defined(__x86_64__)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The kernel grants the large tile registers to a process that asks for them.
[[maybe_unused]] bool has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool granted = [] {
    if (!has_avx512_bf16()) return false;
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const bool tiles = edx >> 24 & 1, bf16 = edx >> 22 & 1;
    constexpr long request_permission = 0x1023, tile_data = 18;
    return tiles && bf16 && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

// Fastest first. A call with float32 products takes the first that does not round.
constexpr Path kPaths[] = {
#if defined(FASTHT_HAS_AMX_BF16)
    FASTHT_ENTRY(amx_bf16, true, has_amx_bf16),
#endif
#if defined(FASTHT_HAS_AVX512_BF16)
    FASTHT_ENTRY(avx512_bf16, true, has_avx512_bf16),
#endif
#if defined(FASTHT_HAS_AVX512)
    FASTHT_ENTRY(avx512, false, has_avx512),
#endif
#if defined(FASTHT_HAS_AVX2)
    FASTHT_ENTRY(avx2, false, has_avx2),
#endif
    FASTHT_ENTRY(portable, false, [] { return true; }),
};

}  // namespace

std::vector<std::string> usable_paths() {
  std::vector<std::string> names;
  for (const Path& path : kPaths)
    if (path.supported()) names.emplace_back(path.name);
  return names;
}

const Path& choose_path(const std::string& name, bool bf16_products) {
  std::string known;
  for (const Path& path : kPaths) {
    known += (known.empty() ? "" : ", ") + std::string(path.name);
    if (name.empty() ? !path.supported() || (path.bf16_products && !bf16_products)
                     : name != path.name)
      continue;
    if (!path.supported())
      throw std::invalid_argument("this processor cannot run the path '" + name + "'");
    if (path.bf16_products && !bf16_products)
      throw std::invalid_argument("the path '" + name +
                                  "' rounds products to bfloat16, and this call's are float32");
    return path;
  }
  throw std::invalid_argument("there is no path '" + name + "'; this build has " + known);
}

void forward(const ForwardCall& call, const std::string& path) {
  check(call);
  choose_path(path, call.bf16_products).forward(call);
}

void backward(const BackwardCall& call, const std::string& path) {
  check(call);
  choose_path(path, call.bf16_products).backward(call);
}

}  // namespace fastht::cpu
