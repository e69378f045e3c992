// Once a matrix: a block joins the sums of the blocks of a matrix, one by one in float64, adds up numbers of its rows and columns, and
// computes those that the next pass uses, in the compute type.
//
//   P::C, P::SCALARS, P::VALUES                  compute type, scalars per row of scalars, numbers per tensor
//   P::ROW_SUMS, P::COLUMN_SUMS                  sums that are joined;  P::row_sum(k), P::column_sum(k): which they are
//   P::MATRIX_SUMS                               sums of numbers of rows and columns
//   P::sum_row(here, i, s, sums), sum_column     what row or column i adds to these
//   P::finish(here, s, sums, m)                  numbers of the matrix
//   P::finish_row(here, i, s, m), finish_column  those of row or column i, and its states
#pragma once

struct Here {
  const int64* record;
  const int64* slots;
  int64 matrix, height, width, first_row, first_column, first_matrix;
};

template <class P>
__device__ __forceinline__ void per_matrix(const int64* table, int64 columns, const int64* matrices, int64 matrix_count,
                                           const typename P::C* rows, const typename P::C* values, const int64* slots,
                                           const int64* skip) {
  typedef typename P::C C;
  constexpr int SUMS = P::MATRIX_SUMS > 0 ? P::MATRIX_SUMS : 1;
  __shared__ double lanes[SUMS][THREADS];
  if (skip && *skip) return;
  const int lane = threadIdx.x;
  for (int64 m = blockIdx.x; m < matrix_count; m += gridDim.x) {
    const int64 word = matrices[m];
    const int64* record = table + (word >> 32) * columns;
    const int64* shape = record + columns;  // the end of the record
    const int64 height = shape[OF_ROWS], width = shape[OF_COLUMNS], matrix = word & 0xffffffff;
    const int64 wide = (width + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;  // blocks of a row
    const int64 high = (height + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const Here here = {record, slots, matrix, height, width, shape[OF_FIRST_ROW] + matrix * height,
                       shape[OF_FIRST_COLUMN] + matrix * width, shape[OF_FIRST_MATRIX] + matrix};
    C s[P::SCALARS + P::VALUES > 0 ? P::SCALARS + P::VALUES : 1];
#pragma unroll
    for (int k = 0; k < P::SCALARS; ++k) s[k] = rows[record[COL_ROW] * P::SCALARS + k];
#pragma unroll
    for (int k = 0; k < P::VALUES; ++k) s[P::SCALARS + k] = values[(word >> 32) * P::VALUES + k];
#pragma unroll
    for (int q = 0; q < P::ROW_SUMS; ++q) {
      const double* in = reinterpret_cast<const double*>(slots[2 * P::row_sum(q)]);
      C* out = reinterpret_cast<C*>(slots[2 * P::row_sum(q) + 1]);
      for (int64 i = lane; i < height; i += THREADS) {
        double total = 0;
        for (int64 b = 0; b < wide; ++b) total = total + in[shape[OF_ROW_BLOCKS] + (matrix * height + i) * wide + b];
        out[here.first_row + i] = C(total);
      }
    }
#pragma unroll
    for (int q = 0; q < P::COLUMN_SUMS; ++q) {
      const double* in = reinterpret_cast<const double*>(slots[2 * P::column_sum(q)]);
      C* out = reinterpret_cast<C*>(slots[2 * P::column_sum(q) + 1]);
      for (int64 i = lane; i < width; i += THREADS) {
        double total = 0;
        for (int64 b = 0; b < high; ++b) total = total + in[shape[OF_COLUMN_BLOCKS] + matrix * high * width + i + b * width];
        out[here.first_column + i] = C(total);
      }
    }
    C known[SUMS] = {};
    if constexpr (P::MATRIX_SUMS > 0) {  // each lane sums what it has joined itself
      double sums[SUMS] = {};
      for (int64 i = lane; i < height; i += THREADS) P::sum_row(here, i, s, sums);
      for (int64 i = lane; i < width; i += THREADS) P::sum_column(here, i, s, sums);
      __syncthreads();  // what was read before is no longer needed
#pragma unroll
      for (int k = 0; k < P::MATRIX_SUMS; ++k) lanes[k][lane] = sums[k];
      for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
#pragma unroll
          for (int k = 0; k < P::MATRIX_SUMS; ++k) lanes[k][lane] = lanes[k][lane] + lanes[k][lane + half];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < P::MATRIX_SUMS; ++k) known[k] = C(lanes[k][0]);
    }
    if (lane == 0) P::finish(here, s, known);
    for (int64 i = lane; i < height; i += THREADS) P::finish_row(here, i, s, known);
    for (int64 i = lane; i < width; i += THREADS) P::finish_column(here, i, s, known);
  }
}
