// Once a tensor: a block joins the sums of its chunks, in a fixed order, and its first thread computes in float64 the numbers that the
// next pass needs of the tensor, rounded to the compute type.
//
//   P::C, P::SUMS, P::FIRST, P::TOTALS     compute type; sums that are joined, the place of the first among the totals of a tensor
//   P::WIDES                               scalars per row that stay float64
//   P::begin(k), P::join(k, a, b)          sum k of nothing, and of two parts
//   P::derive(record, shape, wide, totals, out)   the numbers of one tensor; shape: the end of the record
#pragma once

template <class P>
__device__ __forceinline__ void per_tensor(const int64* table, int64 columns, int64 tensor_count, const int64* begins,
                                           const double* wide, const double* partials, double* totals, typename P::C* values) {
  __shared__ double shared[P::SUMS > 0 ? P::SUMS : 1][THREADS];
  const int lane = threadIdx.x;
  for (int64 tensor = blockIdx.x; tensor < tensor_count; tensor += gridDim.x) {
    const int64* record = table + tensor * columns;
    if constexpr (P::SUMS > 0) {
      const int64 end = begins[tensor + 1];
#pragma unroll
      for (int k = 0; k < P::SUMS; ++k) {
        double sum = P::begin(k);
        for (int64 c = begins[tensor] + lane; c < end; c += THREADS) sum = P::join(k, sum, partials[c * P::SUMS + k]);
        shared[k][lane] = sum;
      }
      for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
#pragma unroll
          for (int k = 0; k < P::SUMS; ++k) shared[k][lane] = P::join(k, shared[k][lane], shared[k][lane + half]);
      }
    }
    if (lane == 0) {
#pragma unroll
      for (int k = 0; k < P::SUMS; ++k) totals[tensor * P::TOTALS + P::FIRST + k] = shared[k][0];
      P::derive(record, record + columns, wide + record[COL_ROW] * P::WIDES, totals + tensor * P::TOTALS, values + tensor * P::VALUES);
    }
    __syncthreads();
  }
}
