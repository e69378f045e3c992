// What lets g++ compile the CUDA C of this repository as it is, with `-include shim.h`, and run it on a CPU.
// Used by tests/shim/build.py only. Knows CUDA's words, not the kernels.
//
// A launch runs its blocks one after another. The threads of a block run one after another too, each up to its end or, where the
// kernel calls __syncthreads(), up to the next of these calls: a context of its own, all in one thread of the CPU. For
// ThreadSanitizer each is a fiber, which it takes for a thread. It is told that a barrier and the end of a block order all of
// them, and that their turns order nothing, so it reports what a missing barrier leaves unordered, whichever came first.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct shim_index { unsigned x, y, z; };
static shim_index threadIdx, blockIdx, blockDim, gridDim;

inline void shim_stop(const char* why) {
  std::fprintf(stderr, "shim: %s\n", why);
  std::abort();
}

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

// A function that works with what the turns share. ThreadSanitizer must not look into it: it would see races, as no turn orders
// anything for it. Nor must such a function call a template of the standard library, which would not be exempt.
#define SHIM_UNSEEN __attribute__((noinline, no_sanitize("thread"))) inline

// What takes a turn: a thread of a block, or the launch itself, which goes through the threads. at: where it begins, or with a
// sanitizer where it goes on; else it goes on from `jump`, once it is under way.
struct shim_turn {
  ucontext_t at;
  void* fiber;
  void* jump[5];
  bool under_way;
};

// The threads of one block, taking turns.
struct shim_turns {
  static constexpr std::size_t STACK = 256 * 1024;
  static constexpr unsigned MOST = 1024;  // CUDA allows no more threads in a block
  shim_turn launch, each[MOST];
  const std::function<void(unsigned, unsigned)>* run;
  unsigned current;
  bool waits;
  char arrived, go_on;  // for ThreadSanitizer, what came before a barrier, as given to the launch, and by it to all threads
};
static shim_turns* shim_block = nullptr;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
SHIM_UNSEEN void shim_switch(shim_turn& from, shim_turn& to) {
  __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);
  swapcontext(&from.at, &to.at);
}
#else
// Without a sanitizer that has to know: swapcontext asks the kernel for the mask of signals, nearly all the time of a launch.
SHIM_UNSEEN void shim_switch(shim_turn& from, shim_turn& to) {
  from.under_way = true;
  if (__builtin_setjmp(from.jump)) return;
  if (to.under_way) __builtin_longjmp(to.jump, 1);
  setcontext(&to.at);
}
#endif

// Ends the turn of the current thread. All others end theirs before it has the next.
SHIM_UNSEEN void shim_end_turn(bool waits) {
  shim_turns& turns = *shim_block;
  turns.waits = waits;
  __tsan_release(&turns.arrived);
  shim_switch(turns.each[turns.current], turns.launch);
  __tsan_acquire(&turns.go_on);
}

SHIM_UNSEEN void __syncthreads() {
  if (!shim_block) shim_stop("__syncthreads() in a kernel launched without threads");
  shim_end_turn(true);
}

// What the lane of that number, but for the bits of `mask`, has. All threads of a block exchange together here.
SHIM_UNSEEN float shim_exchanged(float x, int mask) {
  static float there[1024];
  const unsigned lane = threadIdx.x;
  there[lane] = x;
  __syncthreads();
  const float found = there[lane ^ unsigned(mask)];
  __syncthreads();
  return found;
}

// One thread of every block, one block after another: they all have the same shared memory. Left behind where the last one ends.
SHIM_UNSEEN void shim_thread() {
  __tsan_acquire(&shim_block->go_on);
  const unsigned thread = shim_block->current;
  for (unsigned block = 0;; ++block) {
    (*shim_block->run)(block, thread);
    shim_end_turn(false);
  }
}

SHIM_UNSEEN void shim_make(shim_turn& made, char* stack, void*& fiber) {
  getcontext(&made.at);
  made.at.uc_stack.ss_sp = stack;
  made.at.uc_stack.ss_size = shim_turns::STACK;
  makecontext(&made.at, shim_thread, 0);
  if (!fiber) fiber = __tsan_create_fiber(0);
  made.fiber = fiber;
  made.under_way = false;
}

SHIM_UNSEEN char* shim_stacks() {
  static char* stacks = nullptr;  // kept for the next launch
  if (stacks) return stacks;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* mapped = mmap(nullptr, shim_turns::MOST * shim_turns::STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) shim_stop("no memory for the stacks of a block's threads");
  return stacks = static_cast<char*>(mapped);
}

// run(block, thread) for all of them, the threads of a block together.
SHIM_UNSEEN void shim_together(unsigned blocks, unsigned threads, void** fibers,
                               const std::function<void(unsigned, unsigned)>& run) {
  static shim_turns turns;
  if (threads > shim_turns::MOST) shim_stop("a block of too many threads");
  turns.run = &run;
  turns.launch.fiber = __tsan_get_current_fiber();
  shim_block = &turns;
  for (unsigned thread = 0; thread < threads; ++thread)
    shim_make(turns.each[thread], shim_stacks() + thread * shim_turns::STACK, fibers[thread]);
  for (unsigned block = 0; block < blocks; ++block) {
    for (unsigned waiting = threads; waiting;) {
      waiting = 0;
      __tsan_release(&turns.go_on);
      for (unsigned thread = 0; thread < threads; ++thread) {
        turns.current = thread;
        threadIdx.x = thread;
        shim_switch(turns.launch, turns.each[thread]);
        waiting += turns.waits;
      }
      __tsan_acquire(&turns.arrived);
      if (waiting && waiting < threads) shim_stop("__syncthreads() that not every thread of a block reaches");
    }
  }
  shim_block = nullptr;
}

// A T that may only lie at multiples of N, as a vector access of N bytes demands: UBSan reports any other address.
template <class T, int N> struct alignas(N) shim_aligned : T {};

template <class... A, std::size_t... I>
void shim_call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}

SHIM_UNSEEN void shim_place(unsigned block, unsigned thread, unsigned blocks, unsigned threads) {
  threadIdx = {thread, 0, 0};
  blockIdx = {block, 0, 0};
  blockDim = {threads, 1, 1};
  gridDim = {blocks, 1, 1};
}

// args: the addresses of the kernel's arguments, as for cuLaunchKernel. fibers: kept by the caller, at first null, one a thread.
template <class... A>
void shim_launch(void (*kernel)(A...), unsigned blocks, unsigned threads, bool parallel, void** args, void** fibers) {
  const auto run = [=](unsigned block, unsigned thread) {
    shim_place(block, thread, blocks, threads);
    shim_call(kernel, args, std::index_sequence_for<A...>());
  };
  if (!parallel) {
    for (unsigned block = 0; block < blocks; ++block)
      for (unsigned thread = 0; thread < threads; ++thread) run(block, thread);
    return;
  }
  shim_together(blocks, threads, fibers, run);
}

// Stands behind the unit: the one function that Python calls.
#define SHIM_ENTRY(kernel)                                                                                 \
  extern "C" void shim_entry(unsigned blocks, unsigned threads, int parallel, void** args, void** fibers) { \
    shim_launch(kernel, blocks, threads, parallel != 0, args, fibers);                                      \
  }
