// Sums over every element of every tensor, in an order that no launch shape changes: a chunk is CHUNK consecutive elements of one
// tensor; element i of it goes to accumulator i mod (THREADS * N), N of them to each lane; a fixed tree joins the lanes. The partial of
// each chunk is stored; per_tensor.cuh (or the host, by the same order) joins the partials. No float atomics anywhere.
//
//   M::C, M::N, M::SUMS              compute type, elements of a pack, number of sums
//   M::ROLES, M::Storage<r>::T       arrays that are read, and their element types;  M::place(r): their places in the table
//   M::SCALARS, M::VALUES            scalars per row, numbers per tensor: together the second argument of
//   M::measure(x, s, sums)           what one element, x[role], adds to each sum;  M::written(r): whether x[r] is stored behind it
//   M::STORES                        whether any is: then not where *skip says that this step is not taken
//   M::begin(k), M::join(k, a, b)    sum k of nothing, and of two parts
//   M::VECTORS, M::vectors(shape, slots, i, out)   numbers of the row, column and matrix of element i, behind those of x
//   M::AHEAD                         packs on their way before the first is measured
#pragma once

// One pack of each role from R on, still encoded: role by role at compile time, because each has its own element type.
template <class M, int N, int R> struct Loaded {
  typedef typename M::template Storage<R>::T T;
  T raw[N];
  Loaded<M, N, R + 1> rest;

  __device__ __forceinline__ void load(const int64* at, int64 i) {
    Pack<T, N>::load(reinterpret_cast<const T*>(at[M::place(R)]) + i, raw);
    rest.load(at, i);
  }
  __device__ __forceinline__ void element(int k, typename M::C* x) const {
    x[R] = decode<typename M::C>(raw[k]);
    rest.element(k, x);
  }
  __device__ __forceinline__ void keep(int k, const typename M::C* x) {
    if constexpr (M::written(R)) raw[k] = Encode<T>::from(x[R]);
    rest.keep(k, x);
  }
  __device__ __forceinline__ void store(const int64* at, int64 i) const {
    if constexpr (M::written(R)) Pack<T, N>::store(reinterpret_cast<T*>(at[M::place(R)]) + i, raw);
    rest.store(at, i);
  }
};
template <class M, int N> struct Loaded<M, N, M::ROLES> {
  __device__ __forceinline__ void load(const int64*, int64) {}
  __device__ __forceinline__ void element(int, typename M::C*) const {}
  __device__ __forceinline__ void keep(int, const typename M::C*) {}
  __device__ __forceinline__ void store(const int64*, int64) const {}
};

template <class M, int N>
__device__ __forceinline__ void measure(Loaded<M, N, 0>& loaded, const int64* at, const int64* shape, const int64* slots, int64 i,
                                        const typename M::C* s, typename M::C (*sums)[M::SUMS]) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    typename M::C x[M::ROLES + M::VECTORS];
    loaded.element(k, x);
    M::vectors(shape, slots, i + k, x + M::ROLES);
    M::measure(x, s, sums[k]);
    loaded.keep(k, x);
  }
  loaded.store(at, i);
}

// All packs of one lane of a whole chunk: up to AHEAD loads are on their way before the first is measured, since one at a time would
// not keep the memory of a large GPU busy.
template <class M>
__device__ __forceinline__ void measure_whole(const int64* at, const int64* shape, const int64* slots, int64 first,
                                              const typename M::C* s, typename M::C (&sums)[M::N][M::SUMS]) {
  constexpr int N = M::N, STEPS = CHUNK / (THREADS * N), AHEAD = STEPS < M::AHEAD ? STEPS : M::AHEAD;
  for (int j = 0; j < STEPS; j += AHEAD) {
    Loaded<M, N, 0> loaded[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) loaded[a].load(at, first + int64(j + a) * THREADS * N);
#pragma unroll
    for (int a = 0; a < AHEAD; ++a)
      measure<M, N>(loaded[a], at, shape, slots, first + int64(j + a) * THREADS * N, s, sums);
  }
}

template <class M>
__device__ __forceinline__ void reduce(const int64* table, int64 columns, const int64* chunks, int64 chunk_count,
                                       const typename M::C* rows, const typename M::C* values, const int64* slots,
                                       double* partials, const int64* skip) {
  if (M::STORES && skip && *skip) return;
  constexpr int N = M::N;
  __shared__ typename M::C shared[M::SUMS][THREADS];
  const int lane = threadIdx.x;
  for (int64 chunk = blockIdx.x; chunk < chunk_count; chunk += gridDim.x) {
    const int64 word = chunks[chunk];
    const int64* record = table + (word >> 32) * columns;
    const int64 first = (word & 0xffffffff) * CHUNK;
    const int64 left = record[COL_NUMEL] - first;
    const int count = left < CHUNK ? int(left) : CHUNK;
    const bool aligned = (record[COL_ALIGNED] & M::ALIGNED) == M::ALIGNED;
    const int64* at = record + COL_ADDRESS;
    const int64* shape = record + columns;  // the end of the record
    typename M::C s[M::SCALARS + M::VALUES > 0 ? M::SCALARS + M::VALUES : 1];
#pragma unroll
    for (int k = 0; k < M::SCALARS; ++k) s[k] = rows[record[COL_ROW] * M::SCALARS + k];
#pragma unroll
    for (int k = 0; k < M::VALUES; ++k) s[M::SCALARS + k] = values[(word >> 32) * M::VALUES + k];
    typename M::C sums[N][M::SUMS];
#pragma unroll
    for (int k = 0; k < N; ++k)
#pragma unroll
      for (int j = 0; j < M::SUMS; ++j) sums[k][j] = M::begin(j);
    if (aligned && count == CHUNK)
      measure_whole<M>(at, shape, slots, first + lane * N, s, sums);
    else
      for (int i = lane * N; i < count; i += THREADS * N)
        if (aligned && i + N <= count) {
          Loaded<M, N, 0> loaded;
          loaded.load(at, first + i);
          measure<M, N>(loaded, at, shape, slots, first + i, s, sums);
        } else {
#pragma unroll
          for (int k = 0; k < N; ++k)
            if (i + k < count) {
              Loaded<M, 1, 0> loaded;
              loaded.load(at, first + i + k);
              measure<M, 1>(loaded, at, shape, slots, first + i + k, s, sums + k);
            }
        }
#pragma unroll
    for (int j = 0; j < M::SUMS; ++j) {
#pragma unroll
      for (int k = 1; k < N; ++k) sums[0][j] = M::join(j, sums[0][j], sums[k][j]);
      shared[j][lane] = sums[0][j];
    }
    for (int half = THREADS / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half)
#pragma unroll
        for (int j = 0; j < M::SUMS; ++j) shared[j][lane] = M::join(j, shared[j][lane], shared[j][lane + half]);
    }
    if (lane == 0)
#pragma unroll
      for (int j = 0; j < M::SUMS; ++j) partials[chunk * M::SUMS + j] = double(shared[j][0]);
    __syncthreads();  // lane 1 may not start the next chunk while lane 0 still reads shared[j][1]
  }
}
