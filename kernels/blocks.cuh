// The walk over blocks, where states are kept with numbers that several elements of a row share: one launch for every tensor. A warp
// takes GROUP consecutive elements of a row, EACH of them a lane, so that a block is all lanes of a warp or some that lie together. It
// updates its elements, joins the extremes of every block by shuffles, and then writes codes. A struct U as in multi_tensor.cuh, but
//
//   U::BLOCKED, U::Blocked<b>              arrays of one number for several elements, their type T and PER, how many; PACKED: of which
//                                          it is their codes one after another; READ, WRITTEN
//   U::update(x, s, words, kept, terms)    one element: x[role], behind it numbers of its row, column and matrix, and of its blocks;
//                                          what is kept of it until the extremes are known, and what it gives to each
//   U::EXTREMES, U::largest(e), U::lanes(e)  which of them are the largest, and how many lanes a block has
//   U::encode(x, kept, extremes, words)    codes of one element and of its blocks, in x
#pragma once

// No lane writes what a block has together before all others have read it.
__device__ __forceinline__ void meet() {
#ifdef __CUDA_ARCH__
  __syncwarp();
#endif
}

__device__ __forceinline__ float exchanged(float x, int mask) {
#ifdef __CUDA_ARCH__
  return __shfl_xor_sync(0xffffffffu, x, mask);
#else
  return shim_exchanged(x, mask);
#endif
}

// The larger (or smaller) of two numbers; NaN if either is NaN. Which zero of both is left open.
template <bool LARGEST> __device__ __forceinline__ float extreme(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float c;
  if constexpr (LARGEST)
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  else
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  return LARGEST ? maximum<float>(a, b) : minimum<float>(a, b);
#endif
}

// The EACH elements that a lane has of each role from R on, still encoded.
template <class U, int R> struct Lane {
  typedef typename U::template Storage<R>::T T;
  typedef typename U::C C;
  T raw[EACH];
  T* from = nullptr;
  Lane<U, R + 1> rest;

  __device__ __forceinline__ void load(const int64* at, const Place& place, int count, bool whole) {
    from = reinterpret_cast<T*>(at[R]) + (R == GRADIENT ? place.g : place.i);
    if constexpr (U::read(R)) {
      if (whole) {
        Pack<T, EACH>::load(from, raw);
      } else {
#pragma unroll
        for (int k = 0; k < EACH; ++k) raw[k] = k < count ? from[k] : T{};
      }
    }
    rest.load(at, place, count, whole);
  }
  __device__ __forceinline__ void element(int k, C* x) const {
    if constexpr (U::read(R))
      x[R] = decode<C>(raw[k]);
    else
      x[R] = C(0);
    rest.element(k, x);
  }
  // CODED: of the roles whose codes follow from extremes, or of the others
  template <bool CODED> __device__ __forceinline__ void take(int k, const C* x) {
    if constexpr (U::written(R) && U::coded(R) == CODED) raw[k] = Encode<T>::from(x[R]);
    rest.template take<CODED>(k, x);
  }
  template <bool CODED> __device__ __forceinline__ void store(int count, bool whole) const {
    if constexpr (U::written(R) && U::coded(R) == CODED) {
      if (whole) {
        Pack<T, EACH>::store(from, raw);
      } else {
#pragma unroll
        for (int k = 0; k < EACH; ++k)
          if (k < count) from[k] = raw[k];
      }
    }
    rest.template store<CODED>(count, whole);
  }
};
template <class U> struct Lane<U, U::ROLES> {
  __device__ __forceinline__ void load(const int64*, const Place&, int, bool) {}
  __device__ __forceinline__ void element(int, typename U::C*) const {}
  template <bool CODED> __device__ __forceinline__ void take(int, const typename U::C*) {}
  template <bool CODED> __device__ __forceinline__ void store(int, bool) const {}
};

// What a lane has of the arrays of one number for several elements from B on: that number, or EACH codes of four bits.
template <class U, int B> struct Shared {
  typedef typename U::template Blocked<B> Of;
  typedef typename Of::T T;
  unsigned word;
  T* from = nullptr;
  Shared<U, B + 1> rest;

  static __device__ __forceinline__ T* place(const int64* at, int64 row, int64 width, int64 column) {
    const int64 wide = uint64(width + Of::PER - 1) / Of::PER;  // without a sign it is a shift
    return reinterpret_cast<T*>(at[U::FIRST_BLOCKED + B]) + row * wide + int64(uint64(column) / Of::PER);
  }
  __device__ __forceinline__ void load(const int64* at, int64 row, int64 width, int64 column, int count, bool whole) {
    word = 0;
    from = place(at, row, width, column);
    if (Of::READ && count > 0) {
      if constexpr (!Of::PACKED) {
        word = float_bits(decode<float>(*from));
      } else if (whole) {
        word = *reinterpret_cast<const unsigned*>(from);
      } else {
#pragma unroll
        for (int k = 0; k < EACH / 2; ++k)
          if (2 * k < count) word |= unsigned(from[k].bits) << 8 * k;
      }
    }
    rest.load(at, row, width, column, count, whole);
  }
  __device__ __forceinline__ void element(int k, float* x) const {
    x[B] = bits_float(Of::PACKED ? word >> 4 * k & 15u : word);
    rest.element(k, x);
  }
  __device__ __forceinline__ void take(int k, const float* x) {
    if (Of::WRITTEN) {
      if (Of::PACKED)
        word = (k ? word : 0u) | (float_bits(x[B]) & 15u) << 4 * k;
      else
        word = float_bits(x[B]);
    }
    rest.take(k, x);
  }
  __device__ __forceinline__ void store(int64 column, int count, bool whole) const {
    if (Of::WRITTEN && count > 0 && (Of::PACKED || unsigned(column) % Of::PER == 0)) {
      if constexpr (!Of::PACKED) {
        *from = Encode<T>::from(bits_float(word));
      } else if (whole) {
        *reinterpret_cast<unsigned*>(from) = word;
      } else {
        const unsigned own = count < EACH ? word & ((1u << 4 * count) - 1u) : word;
#pragma unroll
        for (int k = 0; k < EACH / 2; ++k)
          if (2 * k < count) from[k].bits = (unsigned char)(own >> 8 * k);
      }
    }
    rest.store(column, count, whole);
  }
};
template <class U> struct Shared<U, U::BLOCKED> {
  __device__ __forceinline__ void load(const int64*, int64, int64, int64, int, bool) {}
  __device__ __forceinline__ void element(int, float*) const {}
  __device__ __forceinline__ void take(int, const float*) {}
  __device__ __forceinline__ void store(int64, int, bool) const {}
};

template <class U, int E> __device__ __forceinline__ void join_lanes(float (&extremes)[U::EXTREMES + 1]) {
  if constexpr (E < U::EXTREMES) {
#pragma unroll
    for (int mask = 1; mask < U::lanes(E); mask *= 2)
      extremes[E] = extreme<U::largest(E)>(extremes[E], exchanged(extremes[E], mask));
    extremes[E] = extremes[E] == extremes[E] ? extremes[E] + 0.0f : bits_float(0x7fc00000u);  // +0 for both zeros, one NaN for all
    join_lanes<U, E + 1>(extremes);
  }
}

template <class U, int E> __device__ __forceinline__ void join_term(float (&extremes)[U::EXTREMES + 1], const float* terms) {
  if constexpr (E < U::EXTREMES) {
    extremes[E] = extreme<U::largest(E)>(extremes[E], terms[E]);
    join_term<U, E + 1>(extremes, terms);
  }
}

// The random bits of EACH elements from i on.
template <class U>
__device__ __forceinline__ void draw(const int64* at, const float* s, int64 i, bool whole, unsigned (&words)[EACH][U::STREAMS + 1]) {
  if constexpr (U::STREAMS > 0) {
    const Source from = source<U>(at, s);
    const int64* end = at + U::ADDRESSES;
    if (whole) {
      const int64 first = element_of<U::SHARDED>(end, i);
      Random<U::STREAMS, U::BITS, EACH> all;
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        all.draw(from, first, k);
#pragma unroll
        for (int w = 0; w < U::STREAMS; ++w) words[k][w] = all(w, k);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < EACH; ++k) {
        Random<U::STREAMS, U::BITS, 1> one;
        one.draw(from, element_of<U::SHARDED>(end, i + k), 0);
#pragma unroll
        for (int j = 0; j < EACH; ++j)  // an index that is not known would send the words to local memory
#pragma unroll
          for (int w = 0; w < U::STREAMS; ++w) words[j][w] = j == k ? one(w, 0) : words[j][w];
      }
    }
  }
}

// The elements of a lane, `count` of them from `column` on of the row-th row that is walked, in step with the other lanes of its warp.
template <class U>
__device__ __forceinline__ void update_lane(const int64* at, const int64* slots, int64 row, int64 width, int64 column, int count,
                                            bool whole, const float* s) {
  constexpr int TURN = 2;  // elements updated together
  constexpr int NUMBERS = U::ROLES + U::VECTORS + U::BLOCKED;
  Place place = {};
  if (!U::PICKED || count > 0) place = place_in_row<U::PICKED>(at + U::ADDRESSES, row, width, column);
  if (U::PICKED && !place.there) count = 0, whole = false;
  const int64 i = place.i;
  Lane<U, 0> lane;
  Shared<U, 0> shared;
  float kept[EACH][U::KEPT + 1], extremes[U::EXTREMES + 1];
  unsigned words[EACH][U::STREAMS + 1] = {};
#pragma unroll
  for (int e = 0; e < U::EXTREMES; ++e) extremes[e] = bits_float(U::largest(e) ? 0xff800000u : 0x7f800000u);
  shared.load(at, place.row, width, column, count, whole);
  if (count > 0) {
    draw<U>(at, s, i, whole, words);
    lane.load(at, place, count, whole);
#pragma unroll
    for (int begin = 0; begin < EACH; begin += TURN)
#pragma unroll
      for (int k = begin; k < begin + TURN; ++k) {
        float x[NUMBERS], terms[U::EXTREMES + 1];
        lane.element(k, x);
        U::vectors(at + U::ADDRESSES, slots, i + k, x + U::ROLES);
        shared.element(k, x + U::ROLES + U::VECTORS);
        U::update(x, s, words[k], kept[k], terms);
        lane.template take<false>(k, x);
        if (whole || k < count) join_term<U, 0>(extremes, terms);
      }
    lane.template store<false>(count, whole);
  }
  join_lanes<U, 0>(extremes);
  meet();
  if (count > 0) {
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      float x[NUMBERS];
      U::encode(x, kept[k], extremes, words[k]);
      lane.template take<true>(k, x);
      shared.take(k, x + U::ROLES + U::VECTORS);
    }
    lane.template store<true>(count, whole);
    shared.store(column, count, whole);
  }
}

// All warps of a block make as many turns, for they exchange numbers together.
template <class U, int CAPACITY>
__device__ __forceinline__ void walk_blocks(const int64* table, const int64* tiles, int64 tile_count, int64 tile_size,
                                            const float* device_rows, const int64* skip, const float* values, const int64* slots,
                                            const Rows<float, CAPACITY>& rows) {
  if (skip && *skip) return;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int64 begin = int64(blockIdx.x) * WARPS; begin < tile_count; begin += int64(gridDim.x) * WARPS) {
    const bool inside = begin + warp < tile_count;
    const int64 word = tiles[inside ? begin + warp : begin];
    const int64* record = table + (word >> 32) * (COL_ADDRESS + U::ADDRESSES);
    const int64* at = record + COL_ADDRESS;
    const int64 width = record[COL_WIDTH], wide = (width + GROUP - 1) / GROUP;
    const int64 first = (word & 0xffffffff) * tile_size, groups = quotient(record[COL_NUMEL], width) * wide;
    const bool aligned = record[COL_ALIGNED] & 1;
    float s[U::SCALARS + U::VALUES > 0 ? U::SCALARS + U::VALUES : 1];
#pragma unroll
    for (int k = 0; k < U::SCALARS; ++k) {
      const int64 entry = U::SCALARS * record[COL_ROW] + k;
      s[k] = device_rows ? device_rows[entry] : rows.values[entry];
    }
#pragma unroll
    for (int k = 0; k < U::VALUES; ++k) s[U::SCALARS + k] = values[(word >> 32) * U::VALUES + k];
    if (inside && first == 0 && lane == 0) U::store_cells(record, s);
    int64 row = quotient(first, wide), from = (first - row * wide) * GROUP;
    for (int64 group = first; group < first + tile_size; ++group) {
      const int64 column = from + lane * EACH, left = inside && group < groups ? width - column : 0;
      const int count = left < 0 ? 0 : left < EACH ? int(left) : EACH;
      update_lane<U>(at, slots, row, width, column, count, aligned && count == EACH, s);
      from += GROUP;
      if (from >= width) from = 0, ++row;
    }
  }
}
