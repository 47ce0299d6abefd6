#include "cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

namespace fastht::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
// Numbers of the driver's interface, which do not change: see cuda.h.
constexpr int kSuccess = 0, kSharedOfBlock = 97, kStaticShared = 1, kMaxDynamicShared = 8;
using Handle = void*;

struct Driver {
  int (*cuInit)(unsigned);
  int (*cuDriverGetVersion)(int*);
  int (*cuGetErrorName)(int, const char**);
  int (*cuGetErrorString)(int, const char**);
  int (*cuDeviceGet)(int*, int);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuDevicePrimaryCtxRetain)(Handle*, int);
  int (*cuCtxGetCurrent)(Handle*);
  int (*cuCtxPushCurrent)(Handle);
  int (*cuCtxPopCurrent)(Handle*);
  int (*cuLibraryLoadData)(Handle*, const void*, void*, void*, unsigned, void*, void*, unsigned);
  int (*cuLibraryUnload)(Handle);
  int (*cuLibraryGetKernel)(Handle*, Handle, const char*);
  int (*cuKernelGetFunction)(Handle*, Handle);
  int (*cuKernelGetAttribute)(int*, int, Handle, int);
  int (*cuKernelSetAttribute)(int, int, Handle, int);
  int (*cuKernelGetParamInfo)(Handle, size_t, size_t*, size_t*);  // of CUDA 12.4, else null
  int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, Handle, void**, void**);

  void check(int status, const std::string& what) const {
    if (status == kSuccess) return;
    const char *name = nullptr, *text = nullptr;
    cuGetErrorName(status, &name);
    cuGetErrorString(status, &text);
    throw std::runtime_error(what + ": " + (name ? name : std::to_string(status)) +
                             (text ? std::string(" (") + text + ")" : ""));
  }
};

Driver open_driver() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    throw std::runtime_error(std::string("no NVIDIA driver is installed (") + dlerror() + ")");
  Driver d{};
  const auto find = [&](auto& to, const char* name, bool needed = true) {
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(dlsym(library, name));
    if (to == nullptr && needed)
      throw std::runtime_error(std::string("the NVIDIA driver is too old: it has no ") + name +
                               ", which came with CUDA 12.0 (driver 525)");
  };
  find(d.cuInit, "cuInit");
  find(d.cuDriverGetVersion, "cuDriverGetVersion");
  find(d.cuGetErrorName, "cuGetErrorName");
  find(d.cuGetErrorString, "cuGetErrorString");
  find(d.cuDeviceGet, "cuDeviceGet");
  find(d.cuDeviceGetAttribute, "cuDeviceGetAttribute");
  find(d.cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
  find(d.cuCtxGetCurrent, "cuCtxGetCurrent");
  find(d.cuCtxPushCurrent, "cuCtxPushCurrent_v2");
  find(d.cuCtxPopCurrent, "cuCtxPopCurrent_v2");
  find(d.cuLibraryLoadData, "cuLibraryLoadData");
  find(d.cuLibraryUnload, "cuLibraryUnload");
  find(d.cuLibraryGetKernel, "cuLibraryGetKernel");
  find(d.cuKernelGetFunction, "cuKernelGetFunction");
  find(d.cuKernelGetAttribute, "cuKernelGetAttribute");
  find(d.cuKernelSetAttribute, "cuKernelSetAttribute");
  find(d.cuKernelGetParamInfo, "cuKernelGetParamInfo", false);
  find(d.cuLaunchKernel, "cuLaunchKernel");
  d.check(d.cuInit(0), "the NVIDIA driver finds no GPU that it can use");
  return d;
}

const Driver& driver() {
  static const Driver opened = open_driver();  // tried again at the next call where it throws
  return opened;
}

struct Kernel {
  Handle function;
  size_t params;  // bytes, or 0 where the driver does not tell
  int shared_limit;
};

struct Device {
  int ordinal;
  Handle context;  // the primary one, which is PyTorch's; held until the process ends
  std::unordered_map<std::string, Kernel> kernels;
};

std::shared_mutex mutex;  // of `devices`; entries of either map stay where they are
std::map<int, std::unique_ptr<Device>> devices;

Device& device_of(int index) {
  {
    const std::shared_lock lock(mutex);
    if (const auto at = devices.find(index); at != devices.end()) return *at->second;
  }
  const std::unique_lock lock(mutex);
  if (const auto at = devices.find(index); at != devices.end()) return *at->second;
  auto made = std::make_unique<Device>();
  const std::string what = "CUDA device " + std::to_string(index);
  driver().check(driver().cuDeviceGet(&made->ordinal, index), what);
  driver().check(driver().cuDevicePrimaryCtxRetain(&made->context, made->ordinal), what);
  // Only now: what threw before would leave an entry of no device.
  return *devices.emplace(index, std::move(made)).first->second;
}

const Kernel* find_kernel(const Device& device, const std::string& name) {
  const std::shared_lock lock(mutex);
  const auto at = device.kernels.find(name);
  return at == device.kernels.end() ? nullptr : &at->second;
}

}  // namespace

std::string driver_problem() {
  try {
    driver();
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

int driver_version() {
  int version = 0;
  driver().check(driver().cuDriverGetVersion(&version), "cuDriverGetVersion");
  return version;
}

bool kernel_is_loaded(int device, const std::string& name) {
  return find_kernel(device_of(device), name) != nullptr;
}

void load_kernel(int index, const std::string& name, const std::string& symbol, const void* image) {
  const Driver& d = driver();
  Device& device = device_of(index);
  if (find_kernel(device, name) != nullptr) return;
  const Stream current(index, 0);  // its context, for cuKernelGetFunction
  const std::string what = "kernel " + name + " on CUDA device " + std::to_string(index);
  Handle library = nullptr, kernel = nullptr;
  d.check(d.cuLibraryLoadData(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0), what);
  try {
    Kernel made{};
    int available = 0, used = 0;
    d.check(d.cuLibraryGetKernel(&kernel, library, symbol.c_str()), what);
    // Asked for now, so that no launch has to load anything, also not while a graph is captured.
    d.check(d.cuKernelGetFunction(&made.function, kernel), what);
    d.check(d.cuDeviceGetAttribute(&available, kSharedOfBlock, device.ordinal), what);
    d.check(d.cuKernelGetAttribute(&used, kStaticShared, kernel, device.ordinal), what);
    made.shared_limit = available - used;
    d.check(d.cuKernelSetAttribute(kMaxDynamicShared, made.shared_limit, kernel, device.ordinal),
            what);
    size_t offset = 0;
    if (d.cuKernelGetParamInfo != nullptr)
      d.check(d.cuKernelGetParamInfo(kernel, 0, &offset, &made.params), what);
    const std::unique_lock lock(mutex);
    if (device.kernels.emplace(name, made).second) return;
  } catch (...) {
    d.cuLibraryUnload(library);
    throw;
  }
  d.cuLibraryUnload(library);  // another thread was faster
}

Stream::Stream(int device, uintptr_t stream)
    : device_(device), stream_(reinterpret_cast<void*>(stream)) {
  const Handle wanted = device_of(device).context;
  Handle current = nullptr;
  driver().check(driver().cuCtxGetCurrent(&current), "cuCtxGetCurrent");
  if (current == wanted) return;
  driver().check(driver().cuCtxPushCurrent(wanted), "cuCtxPushCurrent");
  pushed_ = true;
}

Stream::~Stream() {
  Handle popped = nullptr;
  if (pushed_) driver().cuCtxPopCurrent(&popped);
}

void Stream::launch(const std::string& name, unsigned blocks, unsigned threads,
                    unsigned shared_bytes, const void* params, size_t bytes) const {
  const Kernel* const kernel = find_kernel(device_of(device_), name);
  if (kernel == nullptr) throw std::runtime_error("kernel " + name + " has not been loaded");
  if (kernel->params != 0 && bytes != 0 && kernel->params != bytes)
    throw std::runtime_error("kernel " + name + " takes " + std::to_string(kernel->params) +
                             " bytes of parameters, not " + std::to_string(bytes));
  if (shared_bytes > static_cast<unsigned>(kernel->shared_limit))
    throw std::runtime_error("kernel " + name + " needs " + std::to_string(shared_bytes) +
                             " bytes of shared memory; a block of this GPU can have " +
                             std::to_string(kernel->shared_limit));
  if (blocks == 0) return;
  void* arguments[] = {const_cast<void*>(params)};
  driver().check(driver().cuLaunchKernel(kernel->function, blocks, 1, 1, threads, 1, 1,
                                         shared_bytes, stream_, arguments, nullptr),
                 "kernel " + name);
}

}  // namespace fastht::cuda
