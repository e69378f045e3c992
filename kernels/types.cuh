// Element types, and the primitives of the rule language. Included first by every generated unit, which goes on with conversions of
// half16 and bfloat16, exactly rounded (gpuopt/compiler/to_cuda_conversions.py); knows nothing of tensors or threads.
#pragma once

typedef long long int64;
typedef unsigned long long uint64;

struct half16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
struct byte8 { unsigned char bits; };
struct code8 { unsigned char bits; };  // codes of a format, which travel as the bits of a float
struct code16 { unsigned short bits; };

__device__ __forceinline__ unsigned float_bits(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
__device__ __forceinline__ float bits_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }

// ---- loading: storage -> compute type (always exact) ------------------------------------------------------------
template <class C> __device__ __forceinline__ C decode(C x) { return x; }
template <class C> __device__ __forceinline__ C decode(byte8 x) { return C(x.bits); }
template <class C> __device__ __forceinline__ C decode(code8 x) { return bits_float(x.bits); }
template <class C> __device__ __forceinline__ C decode(code16 x) { return bits_float(x.bits); }

// ---- storing: compute type -> storage, to nearest even; of codes, their low bits ------------------------------------------
template <class T> struct Encode {
  template <class C> static __device__ __forceinline__ T from(C x) { return T(x); }
};
template <> struct Encode<code8> {
  static __device__ __forceinline__ code8 from(float x) { return {(unsigned char)float_bits(x)}; }
};
template <> struct Encode<code16> {
  static __device__ __forceinline__ code16 from(float x) { return {(unsigned short)float_bits(x)}; }
};

// ---- primitives of the rule language; gpuopt/rules/language.py defines what they mean ------------------------------
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }
template <class C> __device__ __forceinline__ C select(bool condition, C a, C b) { return condition ? a : b; }
template <class C> __device__ __forceinline__ C minimum(C a, C b) { return (a < b) | (a != a) ? a : b; }
template <class C> __device__ __forceinline__ C maximum(C a, C b) { return (a > b) | (a != a) ? a : b; }
template <class C> __device__ __forceinline__ C sign_of(C x) { return x > C(0) ? C(1) : x < C(0) ? C(-1) : x - x; }

// x ** n by repeated squaring: the same roundings as ipow in gpuopt/compiler/host.py.
__device__ __forceinline__ double integer_power(double base, int64 exponent) {
  uint64 n = exponent < 0 ? uint64(0) - uint64(exponent) : uint64(exponent);
  double result = 1.0;
  for (; n; n >>= 1, base *= base)
    if (n & 1) result *= base;
  return exponent < 0 ? 1.0 / result : result;
}

// Of numbers from 0 on, in 32 bits where both have no more, which is several times as fast.
__device__ __forceinline__ int64 quotient(int64 a, int64 b) { return (a | b) >> 32 ? a / b : int64(unsigned(a) / unsigned(b)); }
