// exp(x - shift) in one multiply-add and one ex2, and tanh from it.
#pragma once

#include "../row_math.h"

namespace labelsmooth::cuda {

// 2^x with an error of some 2^-22; in float64 e^x.
__device__ inline float power(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}
__device__ inline double power(double x) { return exp(x); }

// Of rounded products: ptxas may fuse a product into a plain difference.
__device__ inline float difference(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}
__device__ inline double difference(double a, double b) { return a - b; }

constexpr float log2_e = 1.44269504f;

__device__ inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// tanh(x factor), for logits of that dtype. As 1 - 2 / (1 + exp 2z) with an error of some 2^-22,
// which 16 bits do not show; of float32 near 0, where that is many last places, by the polynomial
// in z^2 of least relative error (2^-27) up to 0.625.
template <class Element, class T>
__device__ T tanh_of(T x, T factor) {
  if constexpr (sizeof(Element) == 8) return tanh(x * factor);
  if constexpr (sizeof(Element) == 2)
    return fmaf(-2, reciprocal(1 + power(x * (2 * log2_e * factor))), 1);
  const float z = x * factor, square = z * z;
  const float far = fmaf(-2, reciprocal(1 + power(2 * log2_e * fabsf(z))), 1);
  float near = fmaf(square, -0.0056919856f, 0.020626292f);
  near = fmaf(square, near, -0.05373532f);
  near = fmaf(square, near, 0.13331382f);
  near = fmaf(square, near, -0.3333328f);
  near = fmaf(square * near, z, z);
  return fabsf(z) < 0.625f ? near : copysignf(far, z);
}

// By what a logit is multiplied to be the exponent of power().
__device__ inline double exponent_factor(double) { return 1; }
__device__ inline float exponent_factor(float shift) {
  // Logits this large differ by 0 or by so much that the smaller one's exponential is 0, whatever
  // the factor; this one keeps their products finite.
  return fabsf(shift) > 0x1p126f ? 0x1p-10f : log2_e;
}

// exp(x - shift), but for a factor near 1 that all x share, from rounding the exponent of the
// shift. It cancels in the ratio of such powers to their sum.
template <class T>
class Powers {
 public:
  __device__ explicit Powers(T shift)
      : factor_(exponent_factor(shift)), offset_(shift * factor_), shift_(shift) {}

  __device__ T operator()(T x) const { return power(fma(x, factor_, -offset_)); }
  // By what a sum of powers from another shift becomes one from this.
  __device__ T from(const Powers& other) const { return power(difference(other.offset_, offset_)); }
  // What makes it good where a sum is kept, or taken from elsewhere.
  __device__ T correction() const { return power(fma(-shift_, factor_, offset_)); }

 private:
  T factor_, offset_, shift_;
};

}  // namespace labelsmooth::cuda
