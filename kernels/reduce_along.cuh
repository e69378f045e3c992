// Sums along the rows and columns of every matrix, in an order that no launch shape changes: a block of the matrix is BLOCK_ROWS x
// BLOCK_COLUMNS elements. Row r of it belongs to warp r mod WARPS; column c to accumulator c mod (WARP * N) of a row, N of them to each
// lane. Lanes (of a row) and warps (of a column) are joined one by one. per_matrix.cuh joins the blocks.
//
//   M as in reduce.cuh, but
//   M::ROW_SUMS, M::COLUMN_SUMS      how many of each; M::row_sum(k), M::column_sum(k): which of the sums they are
//   M::measure(x, s, terms)          what one element adds to each sum
//   M::AHEAD                         packs of a row on their way before the first is measured
//   M::BATCH                         rows whose sums fit into shared memory together, a multiple of WARPS
//   M::blocks(k)                     the slot of the sums of blocks of sum k
#pragma once

template <class M>
__device__ __forceinline__ void reduce_along(const int64* table, int64 columns, const int64* blocks, int64 block_count,
                                             const typename M::C* rows, const typename M::C* values, const int64* slots) {
  typedef typename M::C C;
  constexpr int N = M::N, PACKS = BLOCK_COLUMNS / (WARP * N), AHEAD = PACKS < M::AHEAD ? PACKS : M::AHEAD;
  constexpr int LEAST = WARPS * BLOCK_COLUMNS;
  constexpr int ACROSS = M::ROW_SUMS * M::BATCH * (WARP + 1);  // one more, or all lanes would read from one bank
  __shared__ C shared[ACROSS > LEAST ? ACROSS : LEAST];
  static_assert(sizeof(shared) <= SHARED_BYTES && M::BATCH % WARPS == 0, "more sums of a row than fit into shared memory");
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int64 block = blockIdx.x; block < block_count; block += gridDim.x) {
    const int64 word = blocks[block];
    const int64* record = table + (word >> 32) * columns;
    const int64* shape = record + columns;  // the end of the record
    const int64 height = shape[OF_ROWS], width = shape[OF_COLUMNS];
    const int64 wide = (width + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;  // blocks of a row
    const int64 high = (height + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int64 index = word & 0xffffffff, matrix = index / (wide * high);
    const int64 first_row = index / wide % high * BLOCK_ROWS, first_column = index % wide * BLOCK_COLUMNS;
    const int row_count = height - first_row < BLOCK_ROWS ? int(height - first_row) : BLOCK_ROWS;
    const int column_count = width - first_column < BLOCK_COLUMNS ? int(width - first_column) : BLOCK_COLUMNS;
    const bool aligned = (record[COL_ALIGNED] & M::ALIGNED) == M::ALIGNED && width % N == 0;
    const int64* at = record + COL_ADDRESS;
    C s[M::SCALARS + M::VALUES > 0 ? M::SCALARS + M::VALUES : 1];
#pragma unroll
    for (int k = 0; k < M::SCALARS; ++k) s[k] = rows[record[COL_ROW] * M::SCALARS + k];
#pragma unroll
    for (int k = 0; k < M::VALUES; ++k) s[M::SCALARS + k] = values[(word >> 32) * M::VALUES + k];
    C down[M::COLUMN_SUMS > 0 ? M::COLUMN_SUMS : 1][PACKS][N] = {};
    for (int begin_row = 0; begin_row < row_count; begin_row += M::BATCH) {
      const int end_row = begin_row + M::BATCH < row_count ? begin_row + M::BATCH : row_count;
      for (int r = begin_row + warp; r < end_row; r += WARPS) {
        const int64 first = (matrix * height + first_row + r) * width + first_column;
        C across[M::ROW_SUMS > 0 ? M::ROW_SUMS : 1][N] = {};
#pragma unroll
        for (int begin = 0; begin < PACKS; begin += AHEAD) {
          Loaded<M, N, 0> loaded[AHEAD];
#pragma unroll
          for (int a = 0; a < AHEAD; ++a) {
            const int c = ((begin + a) * WARP + lane) * N;
            if (aligned && c + N <= column_count) loaded[a].load(at, first + c);
          }
#pragma unroll
          for (int a = 0; a < AHEAD; ++a) {
            const int j = begin + a, c = (j * WARP + lane) * N;
#pragma unroll
            for (int k = 0; k < N; ++k)
              if (c + k < column_count) {
                C x[M::ROLES + M::VECTORS], terms[M::SUMS];
                if (aligned) {
                  loaded[a].element(k, x);
                } else {
                  Loaded<M, 1, 0> single;
                  single.load(at, first + c + k);
                  single.element(0, x);
                }
                M::vectors(shape, slots, first + c + k, x + M::ROLES);
                M::measure(x, s, terms);
#pragma unroll
                for (int q = 0; q < M::ROW_SUMS; ++q) across[q][k] = across[q][k] + terms[M::row_sum(q)];
#pragma unroll
                for (int q = 0; q < M::COLUMN_SUMS; ++q) down[q][j][k] = down[q][j][k] + terms[M::column_sum(q)];
              }
          }
        }
#pragma unroll
        for (int q = 0; q < M::ROW_SUMS; ++q) {
#pragma unroll
          for (int k = 1; k < N; ++k) across[q][0] = across[q][0] + across[q][k];
          shared[(q * M::BATCH + r - begin_row) * (WARP + 1) + lane] = across[q][0];
        }
      }
      __syncthreads();
      for (int r = begin_row + threadIdx.x; r < end_row; r += THREADS)
#pragma unroll
        for (int q = 0; q < M::ROW_SUMS; ++q) {
          const C* lanes = shared + (q * M::BATCH + r - begin_row) * (WARP + 1);
          C total = lanes[0];
          for (int l = 1; l < WARP; ++l) total = total + lanes[l];
          double* out = reinterpret_cast<double*>(slots[M::blocks(M::row_sum(q))]);
          out[shape[OF_ROW_BLOCKS] + (matrix * height + first_row + r) * wide + first_column / BLOCK_COLUMNS] = double(total);
        }
      __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < M::COLUMN_SUMS; ++q) {
#pragma unroll
      for (int j = 0; j < PACKS; ++j)
#pragma unroll
        for (int k = 0; k < N; ++k) shared[warp * BLOCK_COLUMNS + (j * WARP + lane) * N + k] = down[q][j][k];
      __syncthreads();
      for (int c = threadIdx.x; c < column_count; c += THREADS) {
        C total = shared[c];
        for (int w = 1; w < WARPS; ++w) total = total + shared[w * BLOCK_COLUMNS + c];
        double* out = reinterpret_cast<double*>(slots[M::blocks(M::column_sum(q))]);
        out[shape[OF_COLUMN_BLOCKS] + (matrix * high + first_row / BLOCK_ROWS) * width + first_column + c] = double(total);
      }
      __syncthreads();
    }
  }
}
