// What the mathematics of a row is made of, for float and double. Vectors of them have the same.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define LABELSMOOTH_HD __host__ __device__ __forceinline__
#else
// always_inline keeps a copy compiled for one instruction set out of code that runs on another.
#define LABELSMOOTH_HD inline __attribute__((always_inline))
#endif

namespace labelsmooth {

// The accumulate dtype: what logits are computed and summed up in.
template <class Element>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

LABELSMOOTH_HD float select(bool condition, float a, float b) { return condition ? a : b; }
LABELSMOOTH_HD double select(bool condition, double a, double b) { return condition ? a : b; }
LABELSMOOTH_HD float max(float a, float b) { return ::fmaxf(a, b); }
LABELSMOOTH_HD double max(double a, double b) { return ::fmax(a, b); }
LABELSMOOTH_HD float exp(float x) { return ::expf(x); }
LABELSMOOTH_HD double exp(double x) { return ::exp(x); }
LABELSMOOTH_HD float log(float x) { return ::logf(x); }
LABELSMOOTH_HD double log(double x) { return ::log(x); }
LABELSMOOTH_HD float tanh(float x) { return ::tanhf(x); }
LABELSMOOTH_HD double tanh(double x) { return ::tanh(x); }

template <class T>
LABELSMOOTH_HD T infinity() {
  return T(HUGE_VALF);
}

}  // namespace labelsmooth
