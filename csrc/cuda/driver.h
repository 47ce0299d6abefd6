// Starts kernels through the NVIDIA driver, which is looked for when it is first needed: nothing
// of CUDA is linked, no header of it is included, and a machine without a GPU can build all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastht::cuda {

// Why no kernel can be started on this machine; empty where they can.
std::string driver_problem();

// The driver's CUDA version, 1000 * major + 10 * minor. Throws std::runtime_error without a driver.
int driver_version();

// Makes the kernel `symbol` of an image ready on a device, which is all that has to wait for
// anything: machine code goes to the device, and the kernel may use as much shared memory as a
// block of that device can have.
// `name` is what it is called from then on, and in messages; nothing is done where a kernel of that
// name is ready there. Throws std::runtime_error.
void load_kernel(int device, const std::string& name, const std::string& symbol, const void* image);
bool kernel_is_loaded(int device, const std::string& name);

// A stream of a device whose context is the calling thread's as long as this lives.
class Stream {
 public:
  Stream(int device, uintptr_t stream);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Puts a kernel that was made ready into the stream and does not wait for it. `params` are the
  // kernel's one parameter, a structure; its size is compared where `bytes` is given and the driver
  // knows it. Throws std::runtime_error.
  void launch(const std::string& name, unsigned blocks, unsigned threads, unsigned shared_bytes,
              const void* params, size_t bytes = 0) const;

 private:
  int device_;
  void* stream_;
  bool pushed_ = false;
};

}  // namespace fastht::cuda
