// What lets g++ compile the CUDA C of this repository as it is, with `-include shim.h`, and run it on a CPU.
// Used by tests/shim/build.py only. Knows CUDA's words, not the kernels. Needs g++ 12 (std::barrier, _Float16).
//
// A launch runs its blocks one after another. The threads of a block run one after another too, each up to its end or, where the
// kernel calls __syncthreads(), up to the next of these calls: a context of its own, all in one thread of the CPU. Under
// ThreadSanitizer each is a std::thread instead, so that it sees what a missing barrier would do; that takes many times as long.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <type_traits>
#include <ucontext.h>
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

inline void shim_stop(const char* why) {
  std::fprintf(stderr, "shim: %s\n", why);
  std::abort();
}

#ifdef __SANITIZE_THREAD__
static std::barrier<>* shim_barrier = nullptr;

inline void __syncthreads() {
  if (!shim_barrier) shim_stop("__syncthreads() in a kernel launched without threads");
  shim_barrier->arrive_and_wait();
}

// run(block, thread) for all of them, the threads of a block together.
inline void shim_together(unsigned blocks, unsigned threads, const std::function<void(unsigned, unsigned)>& run) {
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
#else
// The threads of one block, taking turns.
struct shim_turns {
  static constexpr std::size_t STACK = 256 * 1024;
  ucontext_t between;
  std::vector<ucontext_t> each;
  std::function<void(unsigned)> run;
  unsigned current;
  bool waits;
};
static shim_turns* shim_block = nullptr;

inline void __syncthreads() {
  if (!shim_block) shim_stop("__syncthreads() in a kernel launched without threads");
  shim_block->waits = true;
  swapcontext(&shim_block->each[shim_block->current], &shim_block->between);
}

inline void shim_thread() { shim_block->run(shim_block->current); }

// Not inline: getcontext may return twice, as far as the compiler knows.
__attribute__((noinline)) inline void shim_make(ucontext_t& made, char* stack, ucontext_t* next) {
  getcontext(&made);
  made.uc_stack.ss_sp = stack;
  made.uc_stack.ss_size = shim_turns::STACK;
  made.uc_link = next;
  makecontext(&made, shim_thread, 0);
}

// run(block, thread) for all of them, the threads of a block together.
inline void shim_together(unsigned blocks, unsigned threads, const std::function<void(unsigned, unsigned)>& run) {
  static std::vector<char> stacks;  // kept for the next launch
  if (stacks.size() < threads * shim_turns::STACK) stacks.resize(threads * shim_turns::STACK);
  shim_turns turns;
  turns.each.resize(threads);
  shim_block = &turns;
  for (unsigned block = 0; block < blocks; ++block) {
    turns.run = [=](unsigned thread) { run(block, thread); };
    for (unsigned thread = 0; thread < threads; ++thread)
      shim_make(turns.each[thread], stacks.data() + thread * shim_turns::STACK, &turns.between);
    for (unsigned waiting = threads; waiting;) {
      waiting = 0;
      for (unsigned thread = 0; thread < threads; ++thread) {
        turns.current = thread;
        turns.waits = false;
        threadIdx.x = thread;
        swapcontext(&turns.between, &turns.each[thread]);
        waiting += turns.waits;
      }
      if (waiting && waiting < threads) shim_stop("__syncthreads() that not every thread of a block reaches");
    }
  }
  shim_block = nullptr;
}
#endif

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
  shim_together(blocks, threads, run);
}

// Stands behind the unit: the one function that Python calls.
#define SHIM_ENTRY(kernel)                                                                   \
  extern "C" void shim_entry(unsigned blocks, unsigned threads, int parallel, void** args) { \
    shim_launch(kernel, blocks, threads, parallel != 0, args);                               \
  }
