// What lets g++ compile the CUDA C of this repository as it is, with `-include shim.h`, and run it on a CPU.
// Used by tests/shim/build.py only. Knows CUDA's words, not the kernels. Needs g++ 12 (std::barrier, _Float16).
//
// A launch runs its blocks one after another. The threads of a block run one after another too, unless the kernel calls
// __syncthreads(): then each is a std::thread, so that ThreadSanitizer sees what a missing barrier would do.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct shim_index { unsigned x, y, z; };
static thread_local shim_index threadIdx, blockIdx, blockDim, gridDim;
static std::barrier<>* shim_barrier = nullptr;

inline void __syncthreads() {
  if (!shim_barrier) {
    std::fputs("shim: __syncthreads() in a kernel launched without threads\n", stderr);
    std::abort();
  }
  shim_barrier->arrive_and_wait();
}

inline float shim_half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return float(x);
}
inline unsigned short shim_float_to_half(float x) {
  const _Float16 y = _Float16(x);
  unsigned short bits;
  std::memcpy(&bits, &y, 2);
  return bits;
}

// A T that may only lie at multiples of N, as a vector access of N bytes demands: UBSan reports any other address.
template <class T, int N> struct alignas(N) shim_aligned : T {};

template <class... A, std::size_t... I>
void shim_call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}

// args: the addresses of the kernel's arguments, as for cuLaunchKernel.
template <class... A> void shim_launch(void (*kernel)(A...), unsigned blocks, unsigned threads, bool parallel, void** args) {
  const auto run = [=](unsigned block, unsigned thread) {
    threadIdx = {thread, 0, 0};
    blockIdx = {block, 0, 0};
    blockDim = {threads, 1, 1};
    gridDim = {blocks, 1, 1};
    shim_call(kernel, args, std::index_sequence_for<A...>());
  };
  if (!parallel) {
    for (unsigned block = 0; block < blocks; ++block)
      for (unsigned thread = 0; thread < threads; ++thread) run(block, thread);
    return;
  }
  std::barrier<> barrier(threads);
  shim_barrier = &barrier;
  std::vector<std::thread> team;
  for (unsigned thread = 0; thread < threads; ++thread)
    team.emplace_back([=, &barrier] {
      for (unsigned block = 0; block < blocks; ++block) {
        run(block, thread);
        barrier.arrive_and_wait();  // a block has shared memory of its own, here all have the same
      }
    });
  for (auto& thread : team) thread.join();
  shim_barrier = nullptr;
}

// Stands behind the unit: the one function that Python calls.
#define SHIM_ENTRY(kernel)                                                                   \
  extern "C" void shim_entry(unsigned blocks, unsigned threads, int parallel, void** args) { \
    shim_launch(kernel, blocks, threads, parallel != 0, args);                               \
  }
