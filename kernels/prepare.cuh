// One block, launched only where a step may be skipped or captured: it decides clip and skip,
// advances the step counts that live on the device, and computes every row of scalars in float64. The host never waits.
//
//   P::C                                                        compute type of the rows
//   P::SCALARS, P::INPUTS                                       scalars per row, hyperparameters per row
//   P::WIDES                                                    scalars per row that stay float64
//   P::row(int64 step, const Hyper& hyper, double multiplier, C* out, double* wide)
#pragma once

struct Decision {
  const double* sums;       // of all gradients: squares, and how many are not finite; null: neither is asked for
  double max_norm;          // infinity: no clipping by norm
  double grad_scale_value;  // gradients are divided by this,
  const float* grad_scale;  // or by what this points at
  const float* found_inf;   // non-zero: skip; null: ignored
  int check_finite;         // skip where a gradient is not finite
  int row_count;
};

// Where a row finds its step count, and which of the records in `hyper` are its hyperparameters.
struct StepCounter {
  int64* step;
  int64 record;
};

// The hyperparameters of one record: numbers, or where on the device one is read that may change between replays of a graph.
struct Hyper {
  const double* numbers;
  const int64* sources;  // 0: the number; else an address, of a float or, with the lowest bit set, of a double

  __device__ __forceinline__ double operator[](int k) const {
    const int64 source = sources[k];
    if (source == 0) return numbers[k];
    return source & 1 ? *reinterpret_cast<const double*>(source - 1) : double(*reinterpret_cast<const float*>(source));
  }
};

// hyper: of each record INPUTS numbers, then as many sources. counters: one for each row; no two share a step count.
template <class P>
__device__ __forceinline__ void prepare(const Decision& d, const double* hyper, const StepCounter* counters,
                                        typename P::C* rows, double* wide, int64* skip, int64* skipped) {
  const int lane = threadIdx.x;
  const double squares = d.sums ? d.sums[0] : 0, broken = d.sums ? d.sums[1] : 0;
  const double inverse = 1.0 / (d.grad_scale ? double(*d.grad_scale) : d.grad_scale_value);
  const double norm = square_root(squares) * inverse;
  const bool bounded = d.max_norm - d.max_norm == 0;  // without a bound, squares that overflow do not matter
  const double multiplier = bounded ? minimum(d.max_norm / (norm + 1e-6), 1.0) * inverse : inverse;
  const bool skipping = (d.found_inf && *d.found_inf != 0) || (d.check_finite && !(broken == 0));
  if (lane == 0) {
    *skip = skipping;
    if (skipped) *skipped += skipping;
  }
  for (int r = lane; r < d.row_count; r += THREADS) {
    const StepCounter counter = counters[r];
    const int64 step = *counter.step + (skipping ? 0 : 1);
    *counter.step = step;
    const double* numbers = hyper + counter.record * (2 * P::INPUTS);
    const Hyper given = {numbers, reinterpret_cast<const int64*>(numbers + P::INPUTS)};
    if (!skipping) P::row(step, given, multiplier, rows + int64(r) * P::SCALARS, wide + int64(r) * P::WIDES);
  }
}
