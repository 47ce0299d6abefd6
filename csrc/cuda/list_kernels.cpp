// Prints the kernels that are compiled at install: function, new line, source, and a zero byte.
#include <cstdio>

#include "cuda/shipped.h"

int main() {
  for (const fastht::cuda::Kernel& kernel : fastht::cuda::shipped_kernels(true))
    std::printf("%s\n%s%c", kernel.function.c_str(), kernel.source().c_str(), 0);
}
