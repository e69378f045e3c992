// The walk: one launch updates every element of every tensor. A generated struct U gives the roles and the arithmetic:
//
//   U::C                      compute type
//   U::LANES                  elements per thread and iteration (16 bytes of the narrowest floating type)
//   U::ROLES, U::SCALARS      arrays per tensor, scalars per row
//   U::ADDRESSES, U::VALUES   addresses in a record of the table, numbers per tensor that are known by now
//   U::Storage<r>::T          element type of role r;  U::size(r): its bytes;  U::read(r), U::written(r): whether it is loaded and
//                             stored
//   U::update(C* x, const C* s, const unsigned* words)   one element: x[role] in and out (of a code, a float with its bits), s the row
//                                 of scalars and the numbers of the tensor
//   U::store_cells(record, s)     states of one number, once a tensor
//   U::VECTORS, U::vectors(shape, slots, i, out)   numbers of the row, column and matrix of element i, behind those of x
//   U::PICKED                     whether only some rows of each tensor are walked: see rows.cuh
//   U::SHARDED                    whether the arrays are parts of tensors: see shards.cuh
//   U::STREAMS, U::BITS           words of random bits that elements take, and how many of each are one element's; where there are
//                                 any, the last two scalars are the lower and the upper 16 bits of the step count
//
// The table (gpuopt/launch/table.py) lives on the device and is only rebuilt when an array moved. The grid is
// persistent: a unit of `unit` threads (a warp for tiny tensors, a block otherwise) takes every units-th tile.
#pragma once

constexpr int GRADIENT = 1;  // its role in every launch

template <class C, int CAPACITY> struct Rows { C values[CAPACITY]; };

__device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// Elements of role R in one access of at most 16 bytes, when N elements are handled at once.
template <class U, int R, int N> __device__ constexpr int per_access() { return least(N, 16 / int(U::size(R))); }

// Elements updated together: one access of the widest role, but at most 4, and 2 where more than four roles hold eight
// elements each. All at once, eight divisions in flight, would spill.
template <class U, int N, int R = 0> __device__ constexpr int unroll() {
  if constexpr (R + 1 == U::ROLES)
    return least(per_access<U, R, N>(), U::ROLES > 4 && N > 4 ? 2 : 4);
  else
    return least(per_access<U, R, N>(), unroll<U, N, R + 1>());
}

// One access of each role from R on, still encoded. Role by role at compile time, because each has its own element type;
// a turn at element OFFSET loads the roles that begin an access there and stores those that end one.
template <class U, int N, int R> struct Packs {
  typedef typename U::template Storage<R>::T T;
  typedef typename U::C C;
  static constexpr int W = per_access<U, R, N>(), UNROLL = unroll<U, N>();
  T raw[W];
  Packs<U, N, R + 1> rest;

  template <int OFFSET>
  __device__ __forceinline__ void load(const int64* at, const Place& place, C (&x)[UNROLL][U::ROLES + U::VECTORS]) {
    if constexpr (U::read(R)) {
      const int64 i = R == GRADIENT ? place.g : place.i;
      if (OFFSET % W == 0) Pack<T, W>::load(reinterpret_cast<const T*>(at[R]) + i + OFFSET, raw);
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) x[k][R] = decode<C>(raw[OFFSET % W + k]);
    } else {
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) x[k][R] = C(0);
    }
    rest.template load<OFFSET>(at, place, x);
  }
  template <int OFFSET>
  __device__ __forceinline__ void store(const int64* at, int64 i, const C (&x)[UNROLL][U::ROLES + U::VECTORS]) {
    if constexpr (U::written(R)) {
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) raw[OFFSET % W + k] = Encode<T>::from(x[k][R]);
      if ((OFFSET + UNROLL) % W == 0) Pack<T, W>::store(reinterpret_cast<T*>(at[R]) + i + OFFSET + UNROLL - W, raw);
    }
    rest.template store<OFFSET>(at, i, x);
  }
};
template <class U, int N> struct Packs<U, N, U::ROLES> {
  template <int OFFSET, class X> __device__ __forceinline__ void load(const int64*, const Place&, X&) {}
  template <int OFFSET, class X> __device__ __forceinline__ void store(const int64*, int64, const X&) {}
};

// What the random numbers of a tensor depend on, if its kernel takes any: read anew, as addresses are.
template <class U> __device__ __forceinline__ Source source(const int64* at, const typename U::C* s) {
  if constexpr (U::STREAMS > 0) {
    const int64* record = at - COL_ADDRESS;
    const unsigned step = unsigned(s[U::SCALARS - 2]) | unsigned(s[U::SCALARS - 1]) << 16;
    return {unsigned(record[COL_TENSOR]), step, uint64(record[COL_SEED])};
  } else {
    return {};
  }
}

// N elements from `place` on; `at` holds the addresses of the roles.
template <class U, int N, int OFFSET = 0>
__device__ __forceinline__ void update_at(const int64* at, const int64* slots, const Place& place, const typename U::C* s,
                                          Packs<U, N, 0>& packs, Random<U::STREAMS, U::BITS, N>& random) {
  constexpr int UNROLL = unroll<U, N>();
  const int64 i = place.i;
  typename U::C x[UNROLL][U::ROLES + U::VECTORS];
  random.draw(source<U>(at, s), element_of<U::SHARDED>(at + U::ADDRESSES, i), OFFSET);  // before the arrays take their registers
  packs.template load<OFFSET>(at, place, x);
#pragma unroll
  for (int k = 0; k < UNROLL; ++k) {
    U::vectors(at + U::ADDRESSES, slots, i + OFFSET + k, x[k] + U::ROLES);
    unsigned words[U::STREAMS + 1] = {};
#pragma unroll
    for (int w = 0; w < U::STREAMS; ++w) words[w] = random(w, OFFSET + k);
    U::update(x[k], s, words);
  }
  packs.template store<OFFSET>(at, i, x);
  if constexpr (OFFSET + UNROLL < N) update_at<U, N, OFFSET + UNROLL>(at, slots, place, s, packs, random);
}

// N elements from the `counted`-th of the walk on.
template <class U, int N>
__device__ __forceinline__ void update_at(const int64* at, const int64* slots, int64 counted, const typename U::C* s) {
  const Place place = place_of<U::PICKED>(at + U::ADDRESSES, at[COL_WIDTH - COL_ADDRESS], counted);
  if (U::PICKED && !place.there) return;
  Packs<U, N, 0> packs;
  Random<U::STREAMS, U::BITS, N> random;
  update_at<U, N>(at, slots, place, s, packs, random);
}

template <class U, int CAPACITY>
__device__ __forceinline__ void walk(const int64* table, const int64* tiles, int64 tile_count, int64 tile_size, int unit,
                                     const typename U::C* device_rows, const int64* skip, const typename U::C* values, const int64* slots,
                                     const Rows<typename U::C, CAPACITY>& rows) {
  constexpr int N = U::LANES;
  if (skip && *skip) return;
  const int lane = threadIdx.x % unit;
  const int64 units = int64(gridDim.x) * (blockDim.x / unit);
  for (int64 tile = int64(blockIdx.x) * (blockDim.x / unit) + threadIdx.x / unit; tile < tile_count; tile += units) {
    const int64 word = tiles[tile];
    const int64 index = word & 0xffffffff;
    const int64* record = table + (word >> 32) * (COL_ADDRESS + U::ADDRESSES);
    const int64 numel = record[COL_NUMEL];
    const int head = int(record[COL_HEAD]);
    const int64 first = head + index * tile_size;
    const int count = int(first + tile_size < numel ? tile_size : numel - first);  // negative where numel < head
    const int64* at = record + COL_ADDRESS;  // read anew for every access: from L1, where registers are scarcer
    typename U::C s[U::SCALARS + U::VALUES > 0 ? U::SCALARS + U::VALUES : 1];
#pragma unroll
    for (int k = 0; k < U::SCALARS; ++k) {
      const int64 entry = record[COL_ROW] * U::SCALARS + k;
      s[k] = device_rows ? device_rows[entry] : rows.values[entry];
    }
#pragma unroll
    for (int k = 0; k < U::VALUES; ++k) s[U::SCALARS + k] = values[(word >> 32) * U::VALUES + k];
    if (index == 0 && lane == 0) U::store_cells(record, s);
    // Packs where every role is 16-byte aligned behind the head; one by one the head, the tail, and what is not aligned.
    const int body = record[COL_ALIGNED] & 1 ? count / N * N : 0;
    for (int i = lane * N; i < body; i += unit * N) update_at<U, N>(at, slots, first + i, s);
    if (index == 0 && lane < head && lane < numel) update_at<U, 1>(at, slots, lane, s);
    for (int i = body + lane; i < count; i += unit) update_at<U, 1>(at, slots, first + i, s);
  }
}
