// Random numbers that depend on seed, tensor, step and element only: Philox4x32-10 (Salmon et al. 2011). The reference and
// what its counter is made of are in gpuopt/formats/philox.py. Knows no storage format.
#pragma once

constexpr int PER_BLOCK = 4;  // elements that share one call: 4 k to 4 k + 3

struct Source { unsigned tensor, step; uint64 seed; };
struct Block { unsigned words[PER_BLOCK]; };

__device__ __forceinline__ Block philox(const Source& from, int64 block, int stream) {
  unsigned a = unsigned(block), b = unsigned(block >> 32) | unsigned(stream) << 24, c = from.step, d = from.tensor;
  unsigned k0 = unsigned(from.seed), k1 = unsigned(from.seed >> 32);
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(k0), "+r"(k1));  // else the keys of all rounds are kept in 20 registers throughout the walk
#endif
#pragma unroll
  for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
    const uint64 first = uint64(a) * 0xd2511f53u, second = uint64(c) * 0xcd9e8d57u;
    a = unsigned(second >> 32) ^ b ^ k0;
    c = unsigned(first >> 32) ^ d ^ k1;
    b = unsigned(second);
    d = unsigned(first);
  }
  return {{a, b, c, d}};
}

// The bits of N elements, one word each from every stream: of a whole block and its parts, or of one element alone.
template <int STREAMS, int N> struct Random {
  Block blocks[STREAMS];

  // i: the first of N elements, a multiple of PER_BLOCK; offset: from there to the next ones that are rounded
  __device__ __forceinline__ void draw(const Source& from, int64 i, int offset) {
    if (offset % PER_BLOCK == 0)
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) blocks[s] = philox(from, (i + offset) / PER_BLOCK, s);
  }
  __device__ __forceinline__ unsigned operator()(int s, int k) const { return blocks[s].words[k % PER_BLOCK]; }
};
template <int STREAMS> struct Random<STREAMS, 1> {
  unsigned word[STREAMS];

  __device__ __forceinline__ void draw(const Source& from, int64 i, int) {
#pragma unroll
    for (int s = 0; s < STREAMS; ++s) {
      const Block block = philox(from, i / PER_BLOCK, s);
      const unsigned low = i & 1 ? block.words[1] : block.words[0], high = i & 1 ? block.words[3] : block.words[2];
      word[s] = i & 2 ? high : low;  // an index that is not known would send the block to local memory
    }
  }
  __device__ __forceinline__ unsigned operator()(int s, int) const { return word[s]; }
};
template <int N> struct Random<0, N> {
  __device__ __forceinline__ void draw(const Source&, int64, int) {}
  __device__ __forceinline__ unsigned operator()(int, int) const { return 0; }
};
template <> struct Random<0, 1> {
  __device__ __forceinline__ void draw(const Source&, int64, int) {}
  __device__ __forceinline__ unsigned operator()(int, int) const { return 0; }
};
