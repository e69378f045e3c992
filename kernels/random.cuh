// Random numbers that depend on seed, tensor, step and element only: Philox4x32-10 (Salmon et al. 2011). The reference and
// what its counter is made of are in gpuopt/formats/philox.py. Knows no storage format.
#pragma once

constexpr int PER_BLOCK = 4;  // words of one call

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

// Of a word that has the bits of one or two elements, those of the k-th.
template <int BITS> __device__ __forceinline__ unsigned part(unsigned word, int k) {
  return BITS < 32 ? word >> k * BITS % 32 & ((1u << BITS % 32) - 1u) : word;
}

// The bits of N elements, BITS from every stream: of those that one or more calls give some, or of a part of them.
template <int STREAMS, int BITS, int N, bool PART = (STREAMS > 0 && N * BITS < 32 * PER_BLOCK)> struct Random {
  static constexpr int CALL = 32 * PER_BLOCK / BITS;  // elements
  Block blocks[STREAMS];

  // i: the first of N elements, a multiple of CALL or N, the smaller; offset: from there to the next ones that are rounded
  __device__ __forceinline__ void draw(const Source& from, int64 i, int offset) {
    if (offset % CALL == 0)
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) blocks[s] = philox(from, uint64(i + offset) / CALL, s);
  }
  __device__ __forceinline__ unsigned operator()(int s, int k) const { return part<BITS>(blocks[s].words[k % CALL * BITS / 32], k); }
};
template <int STREAMS, int BITS, int N> struct Random<STREAMS, BITS, N, true> {
  static constexpr int CALL = 32 * PER_BLOCK / BITS, WORDS = (N * BITS + 31) / 32;
  unsigned words[STREAMS][WORDS];

  __device__ __forceinline__ void draw(const Source& from, int64 i, int offset) {
    if (offset) return;
    const unsigned place = unsigned(i) % CALL * BITS;
#pragma unroll
    for (int s = 0; s < STREAMS; ++s) {
      const Block block = philox(from, uint64(i) / CALL, s);
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {  // an index that is not known would send the block to local memory
        const unsigned low = place & 32 ? block.words[1] : block.words[w], high = place & 32 ? block.words[3] : block.words[2 + w];
        words[s][w] = (place & 64 ? high : low) >> place % 32;
      }
    }
  }
  __device__ __forceinline__ unsigned operator()(int s, int k) const { return part<BITS>(words[s][k * BITS / 32], k); }
};
template <int BITS, int N> struct Random<0, BITS, N, false> {
  __device__ __forceinline__ void draw(const Source&, int64, int) {}
  __device__ __forceinline__ unsigned operator()(int, int) const { return 0; }
};
