// N consecutive elements in as few accesses as possible, 16 bytes at a time, at an aligned address. Used by the walks; knows element types (types.cuh) and nothing of rules.
#pragma once

template <int BYTES> struct Word { unsigned parts[BYTES / 4]; };
template <> struct Word<2> { unsigned short parts[1]; };

// One access of 2 to 16 bytes. On the device in PTX, because the compiler takes a struct apart and stores it in pieces;
// volatile, because a load must not be moved in front of the test that its address is aligned.
__device__ __forceinline__ void load_word(const void* at, Word<16>& w) {
#ifdef __CUDA_ARCH__
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.parts[0]), "=r"(w.parts[1]), "=r"(w.parts[2]), "=r"(w.parts[3]) : "l"(at));
#else
  w = *static_cast<const shim_aligned<Word<16>, 16>*>(at);
#endif
}
__device__ __forceinline__ void store_word(void* at, const Word<16>& w) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :: "l"(at), "r"(w.parts[0]), "r"(w.parts[1]), "r"(w.parts[2]), "r"(w.parts[3]) : "memory");
#else
  *static_cast<shim_aligned<Word<16>, 16>*>(at) = {w};
#endif
}
__device__ __forceinline__ void load_word(const void* at, Word<8>& w) {
#ifdef __CUDA_ARCH__
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(w.parts[0]), "=r"(w.parts[1]) : "l"(at));
#else
  w = *static_cast<const shim_aligned<Word<8>, 8>*>(at);
#endif
}
__device__ __forceinline__ void store_word(void* at, const Word<8>& w) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" :: "l"(at), "r"(w.parts[0]), "r"(w.parts[1]) : "memory");
#else
  *static_cast<shim_aligned<Word<8>, 8>*>(at) = {w};
#endif
}
template <int B> __device__ __forceinline__ void load_word(const void* at, Word<B>& w) { w = *static_cast<const Word<B>*>(at); }
template <int B> __device__ __forceinline__ void store_word(void* at, const Word<B>& w) { *static_cast<Word<B>*>(at) = w; }

template <class T, int N> struct Pack {
  static constexpr int BYTES = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
  static constexpr int COUNT = N * sizeof(T) / BYTES;

  static __device__ __forceinline__ void load(const T* at, T (&out)[N]) {
    Word<BYTES> words[COUNT];
#pragma unroll
    for (int c = 0; c < COUNT; ++c) load_word(reinterpret_cast<const char*>(at) + c * BYTES, words[c]);
    memcpy(out, words, sizeof(out));
  }
  static __device__ __forceinline__ void store(T* at, const T (&in)[N]) {
    Word<BYTES> words[COUNT];
    memcpy(words, in, sizeof(in));
#pragma unroll
    for (int c = 0; c < COUNT; ++c) store_word(reinterpret_cast<char*>(at) + c * BYTES, words[c]);
  }
};

template <class T> struct Pack<T, 1> {  // no alignment but the element's own
  static __device__ __forceinline__ void load(const T* at, T (&out)[1]) { out[0] = *at; }
  static __device__ __forceinline__ void store(T* at, const T (&in)[1]) { *at = in[0]; }
};
