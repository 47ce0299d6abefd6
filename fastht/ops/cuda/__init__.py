"""The native CUDA kernels (``csrc/cuda``): compiled at first use, launched through the driver."""
