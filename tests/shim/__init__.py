"""The kernels on a CPU: the generated CUDA C compiled by g++ (`shim.h`, `build`) and run as a backend (`backend`)."""
