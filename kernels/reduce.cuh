// Sums over every element of every tensor, in an order that no launch shape changes: a chunk is CHUNK consecutive
// elements of one tensor, THREADS lanes accumulate its packs in turn, and a fixed tree joins the lanes. The partial of
// each chunk is stored; prepare.cuh (or the host, by the same order) joins the partials. No float atomics anywhere.
//
//   M::C, M::T, M::SUMS              compute type, element type of the gradient, number of sums
//   M::measure(C g, C* out)          what one element adds to each sum
#pragma once

template <class M, int N>
__device__ __forceinline__ void measure_at(const typename M::T* at, typename M::C* sums) {
  typename M::T raw[N];
  Pack<typename M::T, N>::load(at, raw);
#pragma unroll
  for (int k = 0; k < N; ++k) M::measure(decode<typename M::C>(raw[k]), sums);
}

// All packs of one lane of a whole chunk, in the same order: up to AHEAD loads are on their way before the first is measured,
// since one at a time would not keep the memory of a large GPU busy.
template <class M, int N>
__device__ __forceinline__ void measure_whole(const typename M::T* base, typename M::C* sums) {
  constexpr int STEPS = CHUNK / (THREADS * N), AHEAD = STEPS < 8 ? STEPS : 8;
#pragma unroll
  for (int j = 0; j < STEPS; j += AHEAD) {
    typename M::T raw[AHEAD][N];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) Pack<typename M::T, N>::load(base + (j + a) * THREADS * N, raw[a]);
#pragma unroll
    for (int a = 0; a < AHEAD; ++a)
#pragma unroll
      for (int k = 0; k < N; ++k) M::measure(decode<typename M::C>(raw[a][k]), sums);
  }
}

template <class M>
__device__ __forceinline__ void reduce(const int64* table, int64 columns, int role, const int64* chunks,
                                       int64 chunk_count, double* partials) {
  constexpr int N = 16 / sizeof(typename M::T);
  __shared__ typename M::C shared[M::SUMS][THREADS];
  const int lane = threadIdx.x;
  for (int64 chunk = blockIdx.x; chunk < chunk_count; chunk += gridDim.x) {
    const int64 word = chunks[chunk];
    const int64* record = table + (word >> 32) * columns;
    const int64 first = (word & 0xffffffff) * CHUNK;
    const int64 left = record[COL_NUMEL] - first;
    const int count = left < CHUNK ? int(left) : CHUNK;
    const bool aligned = record[COL_ALIGNED] >> (1 + role) & 1;
    const typename M::T* at = reinterpret_cast<const typename M::T*>(record[COL_ADDRESS + role]) + first;
    typename M::C sums[M::SUMS] = {};
    if (aligned && count == CHUNK)
      measure_whole<M, N>(at + lane * N, sums);
    else
      for (int i = lane * N; i < count; i += THREADS * N)
        if (aligned && i + N <= count)
          measure_at<M, N>(at + i, sums);
        else
          for (int k = i; k < count && k < i + N; ++k) measure_at<M, 1>(at + k, sums);
#pragma unroll
    for (int k = 0; k < M::SUMS; ++k) shared[k][lane] = sums[k];
    for (int half = THREADS / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half)
#pragma unroll
        for (int k = 0; k < M::SUMS; ++k) shared[k][lane] = shared[k][lane] + shared[k][lane + half];
    }
    if (lane == 0)
#pragma unroll
      for (int k = 0; k < M::SUMS; ++k) partials[chunk * M::SUMS + k] = double(shared[k][0]);
    __syncthreads();  // lane 1 may not start the next chunk while lane 0 still reads shared[k][1]
  }
}
