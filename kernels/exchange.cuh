// One block: sums of parts of tensors, of all launches, go into one buffer, which processes then add up, and come back from there.
//
// parts: for each launch and sum, the address of the first tensor's total, the count of tensors, and the bytes from one to the next.
// buffer: as many numbers as there are totals, in this order. largest: of maxima; then as many follow that say which of them are NaN,
// since libraries differ in what the larger of a number and NaN is.
#pragma once

__device__ __forceinline__ void exchange(const int64* parts, int64 count, int64 numbers, double* buffer, int64 back, int64 largest) {
  const double infinity = power_of_two(1024);
  int64 first = 0;
  for (int64 k = 0; k < count; ++k) {
    const int64* part = parts + 3 * k;
    for (int64 t = threadIdx.x; t < part[1]; t += THREADS) {
      double* total = reinterpret_cast<double*>(part[0] + t * part[2]);
      double* there = buffer + first + t;
      if (back) {
        *total = largest && there[numbers] > 0 ? infinity - infinity : *there;
      } else if (largest) {
        const double value = *total;
        const bool number = value == value;
        *there = number ? value : -infinity;
        there[numbers] = number ? 0.0 : 1.0;
      } else {
        *there = *total;
      }
    }
    first += part[1];
  }
}
