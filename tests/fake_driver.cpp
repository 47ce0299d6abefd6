// Stands for the NVIDIA driver in tests: two GPUs that run nothing; each call is a line of the file
// that FAKE_DRIVER_LOG names, and FAKE_DRIVER_FAILS names a function that fails.
//
// Where cuda.h is found it is included, so that the compiler compares the signatures with the real
// ones.
#if __has_include(<cuda.h>)
#include <cuda.h>
#undef cuCtxPushCurrent
#undef cuCtxPopCurrent
#else
#include <cstddef>
using CUresult = int;
using CUdevice = int;
using CUdevice_attribute = int;
using CUfunction_attribute = int;
using CUjit_option = int;
using CUlibraryOption = int;
using CUcontext = void*;
using CUlibrary = void*;
using CUkernel = void*;
using CUfunction = void*;
using CUstream = void*;
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {
thread_local std::vector<CUcontext> contexts;
template <class T>
T handle(uintptr_t number) {
  return reinterpret_cast<T>(number);
}
CUresult done(const char* function, const std::string& said = "") {
  const char* const fails = std::getenv("FAKE_DRIVER_FAILS");
  const bool failed = fails != nullptr && std::strcmp(fails, function) == 0;
  if (std::FILE* log = std::fopen(std::getenv("FAKE_DRIVER_LOG"), "a")) {
    std::fprintf(log, "%s%s%s%s\n", function, said.empty() ? "" : " ", said.c_str(),
                 failed ? " failed" : "");
    std::fclose(log);
  }
  return static_cast<CUresult>(failed ? 700 : 0);
}
std::string text(uintptr_t number) { return std::to_string(number); }
}  // namespace

extern "C" {
CUresult cuInit(unsigned) { return done("cuInit"); }
CUresult cuDriverGetVersion(int* version) { return *version = 13020, done("cuDriverGetVersion"); }
CUresult cuGetErrorName(CUresult, const char** name) {
  return *name = "CUDA_ERROR_ILLEGAL_ADDRESS", static_cast<CUresult>(0);
}
CUresult cuGetErrorString(CUresult, const char** name) {
  return *name = "an illegal memory access was encountered", static_cast<CUresult>(0);
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal + 40;  // not the ordinal: the two must not be mixed up
  return done("cuDeviceGet", text(ordinal));
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  *value = which == 97 ? 101376 : -1;
  return done("cuDeviceGetAttribute", text(which) + " " + text(device));
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = handle<CUcontext>(device + 100);
  return done("cuDevicePrimaryCtxRetain", text(device));
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return static_cast<CUresult>(0);
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  contexts.push_back(context);
  return done("cuCtxPushCurrent", text(reinterpret_cast<uintptr_t>(context)));
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  *context = contexts.back();
  contexts.pop_back();
  return done("cuCtxPopCurrent");
}
#ifndef FAKE_OLD_DRIVER
CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  *library = handle<CUlibrary>(7);
  return done("cuLibraryLoadData", static_cast<const char*>(code));
}
#endif
CUresult cuLibraryUnload(CUlibrary) { return done("cuLibraryUnload"); }
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char* name) {
  *kernel = handle<CUkernel>(8);
  return done("cuLibraryGetKernel", name);
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel) {
  *function = handle<CUfunction>(contexts.empty() ? 0 : reinterpret_cast<uintptr_t>(contexts.back()) + 900);
  return done("cuKernelGetFunction");
}
CUresult cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel, CUdevice device) {
  *value = which == 1 ? 1024 : -1;
  return done("cuKernelGetAttribute", text(which) + " " + text(device));
}
CUresult cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel, CUdevice device) {
  return done("cuKernelSetAttribute", text(which) + " " + text(value) + " " + text(device));
}
CUresult cuKernelGetParamInfo(CUkernel, size_t, size_t* offset, size_t* bytes) {
  return *offset = 0, *bytes = 8, done("cuKernelGetParamInfo");
}
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads,
                        unsigned, unsigned, unsigned shared, CUstream stream, void** params,
                        void** extra) {
  const bool current = !contexts.empty() && reinterpret_cast<uintptr_t>(contexts.back()) + 900 ==
                                                reinterpret_cast<uintptr_t>(function);
  long long first;
  std::memcpy(&first, params[0], sizeof first);
  return done("cuLaunchKernel",
              text(reinterpret_cast<uintptr_t>(function)) + " grid " + text(x * y * z) + " block " +
                  text(threads) + " shared " + text(shared) + " stream " +
                  text(reinterpret_cast<uintptr_t>(stream)) + " params " + text(first) +
                  (extra != nullptr ? " extra" : "") + (current ? "" : " in a foreign context"));
}
}
