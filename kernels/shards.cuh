// Which element of a whole tensor an element is where the arrays are a part of one (U::SHARDED), for what depends on that: random
// numbers. A record of the table then ends with SHARD numbers:
//
//   OF_FIRST   the whole tensor's element that is the first one here
//   OF_RUN     elements that are consecutive in both; 0 for all
//   OF_SKIP    elements of others between two runs
#pragma once

template <bool SHARDED> __device__ __forceinline__ int64 element_of(const int64* end, int64 i) {
  if constexpr (SHARDED) {
    const int64 run = end[OF_RUN];
    return end[OF_FIRST] + i + (run ? quotient(i, run) * end[OF_SKIP] : 0);
  }
  return i;
}
