// One block: sums over all tensors of all launches, the same in whatever order the tensors come (Demmel & Nguyen 2013): on a grid that
// is coarse enough, additions are exact; what that leaves out is summed on a second grid, 2^-52 times as fine, and what that leaves out
// is left. gpuopt/launch/sums.py does the same on the host.
//
// parts: for each launch and sum, the address of the first tensor's total, the count of tensors, and the bytes from one to the next.
// Each total becomes the sum over all; result holds them once more.
#pragma once

__device__ __forceinline__ double power_of_two(int64 exponent) {
  const int64 bits = exponent < -1022 ? 0 : (exponent + 1023) << 52;
  double x;
  memcpy(&x, &bits, 8);
  return x;
}

__device__ __forceinline__ int64 exponent_above(double x) {  // x >= 0 is below 2 to it
  int64 bits;
  memcpy(&bits, &x, 8);
  return (bits >> 52) - 1022;
}

// Two numbers of each lane, joined over all: the first as a sum or as the largest, the second as a sum.
__device__ __forceinline__ void join_lanes(double (&shared)[2][THREADS], double a, double b, bool largest) {
  const int lane = threadIdx.x;
  __syncthreads();  // what was read before is no longer needed
  shared[0][lane] = a;
  shared[1][lane] = b;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) {
      const double other = shared[0][lane + half];
      shared[0][lane] = largest ? maximum<double>(shared[0][lane], other) : shared[0][lane] + other;
      shared[1][lane] = shared[1][lane] + shared[1][lane + half];
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void all_tensors(const int64* parts, int64 launches, int64 sums, double* result) {
  __shared__ double shared[2][THREADS];
  for (int64 k = 0; k < sums; ++k) {
    double largest = 0, plain = 0;
    int64 tensors = 0;
    for (int64 launch = 0; launch < launches; ++launch) {
      const int64* part = parts + (launch * sums + k) * 3;
      tensors += part[1];
      for (int64 t = threadIdx.x; t < part[1]; t += THREADS) {
        const double value = *reinterpret_cast<const double*>(part[0] + t * part[2]);
        largest = maximum<double>(absolute(value), largest);
        plain = plain + value;
      }
    }
    join_lanes(shared, largest, plain, true);
    largest = shared[0][0];
    double found = shared[1][0];
    if (largest - largest == 0) {
      int64 count = 0;
      while (int64(1) << count < tensors) ++count;
      int64 exponent = exponent_above(largest);
      const double scaling = exponent + 2 * count > 1000 ? power_of_two(-128) : 1.0;
      exponent = scaling == 1.0 ? exponent : exponent - 128;
      const double coarse = 1.5 * power_of_two(exponent + count), fine = 1.5 * power_of_two(exponent + 2 * count - 52);
      double first = 0, second = 0;
      for (int64 launch = 0; launch < launches; ++launch) {
        const int64* part = parts + (launch * sums + k) * 3;
        for (int64 t = threadIdx.x; t < part[1]; t += THREADS) {
          const double value = *reinterpret_cast<const double*>(part[0] + t * part[2]) * scaling;
          const double high = (value + coarse) - coarse, rest = value - high;
          first = first + high;
          second = second + ((rest + fine) - fine);
        }
      }
      join_lanes(shared, first, second, false);
      found = (shared[0][0] + shared[1][0]) / scaling;
    }
    if (threadIdx.x == 0) result[k] = found;
    for (int64 launch = 0; launch < launches; ++launch) {
      const int64* part = parts + (launch * sums + k) * 3;
      for (int64 t = threadIdx.x; t < part[1]; t += THREADS) *reinterpret_cast<double*>(part[0] + t * part[2]) = found;
    }
  }
}
