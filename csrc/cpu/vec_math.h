// exp, log and tanh of vectors.
#pragma once

#include "vec_memory.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// To where an exponential is 0 or infinity. (AVX-512 takes anything for 0.)
LABELSMOOTH_HD VecF limit(VecF x) {
#if !defined(LABELSMOOTH_AVX512)
  x = max(VecF(-104.0f), x);
#endif
  return min(VecF(89.0f), x);
}

// Within 2 ulp, subnormal results included, and |x| 2^-28 on top, a sixteenth of what rounding the
// difference x can make: exp(x) = 2^n exp(r), |r| <= ln(2)/2, with a minimax polynomial of degree 6
// (relative error 3e-9).
LABELSMOOTH_HD VecF exp(VecF x) {
  x = limit(x);
  const VecF n = round_to_integer(x * VecF(0x1.715476p0f));
#if defined(LABELSMOOTH_FUSED)
  const VecF r = x - n * VecF(0x1.62e43p-1f);
#else  // the first product is exact
  const VecF r = x - n * VecF(0x1.62e4p-1f) - n * VecF(0x1.7f7d1cp-20f);
#endif
  VecF p = VecF(0.0013814605890087649f) * r + VecF(0.008368709784841112f);
  p = p * r + VecF(0.041668387518800976f);
  p = p * r + VecF(0.16666520689145525f);
  p = p * r + VecF(0.4999999345081127f);
  p = p * r + VecF(1.0f);
  p = p * r + VecF(1.0f);
  return scale_by_power(p, n, VecF(-149.0f));
}

// For 16-bit logits: 2^(x log2(e)) by a minimax polynomial of degree 4 in the fraction of the
// exponent, exact at 0. Relative error 2^-18.4, a hundredth of what rounding to float16 makes, and
// |x| 2^-23 on top; 0 for what is not a normal number.
LABELSMOOTH_HD VecF exp_short(VecF x) {
#if defined(LABELSMOOTH_AVX512)  // instructions take the fraction and the floor, infinities
                                 // included
  const VecF n = x * VecF(0x1.715476p0f);
  const VecF f(_mm512_reduce_ps(n.lanes, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  constexpr float coefficients[] = {1.0f, 0.6930448412895203f, 0.2412802129983902f,
                                    0.052242472767829895f, 0.013426685705780983f};
#else
  const VecF t = limit(x) * VecF(0x1.715476p0f);
  const VecF n = round_to_integer(t);
  const VecF f = t - n;
  constexpr float coefficients[] = {1.0f, 0.6931240558624268f, 0.24024099111557007f,
                                    0.055906426161527634f, 0.009582852944731712f};
#endif
  VecF p(coefficients[4]);
  for (int i = 3; i >= 0; --i) p = p * f + VecF(coefficients[i]);
  return scale_by_power(p, n, VecF(-126.0f));
}

// Within 6 ulp (8 where products are rounded), 0.7 on average: x P(x^2) / Q(x^2), a minimax fit of
// the relative error up to 9; from there on 1 exactly.
LABELSMOOTH_HD VecF tanh(VecF x) {
  constexpr float numerator[] = {1.0f, 0.13383977115154266f, 0.0034989931154996157f,
                                 2.0661213056882843e-05f, 1.341996735959583e-08f};
  constexpr float denominator[] = {1.0f, 0.4671729803085327f, 0.02589019574224949f,
                                   0.00032910334994085133f, 7.804700885571947e-07f};
  x = min(VecF(9.0f), max(VecF(-9.0f), x));
  const VecF s = x * x;
  VecF p(numerator[4]), q(denominator[4]);
  for (int i = 3; i >= 0; --i) {
    p = p * s + VecF(numerator[i]);
    q = q * s + VecF(denominator[i]);
  }
  return min(VecF(1.0f), max(VecF(-1.0f), x * p / q));
}

// For 16-bit logits: within 2^-19, absolutely.
LABELSMOOTH_HD VecF tanh_short(VecF x) {
  return VecF(1.0f) - VecF(2.0f) / (exp_short(x + x) + VecF(1.0f));
}

// Within 2 ulp: log(m 2^e) with m in [sqrt(1/2), sqrt(2)), a polynomial in m - 1 (Cephes' logf),
// and ln(2) in two parts.
LABELSMOOTH_HD VecF log(VecF x) {
  const VecF scaled = select(VecF(0x1p-126f) > x, x * VecF(0x1p23f), x);  // no subnormal number
  const Uint32s bits = bit_cast<Uint32s>(scaled.lanes) - 0x3f3504f3u;     // of sqrt(1/2)
  const VecF m(bit_cast<VecF::Lanes>((bits & 0x007fffffu) + 0x3f3504f3u));
  const VecF e = VecF(__builtin_convertvector(bit_cast<Int32s>(bits) >> 23, VecF::Lanes)) -
                 select(VecF(0x1p-126f) > x, VecF(23.0f), VecF(0.0f));
  const VecF z = m - VecF(1.0f);
  VecF p = VecF(7.0376836292e-2f) * z + VecF(-1.1514610310e-1f);
  p = p * z + VecF(1.1676998740e-1f);
  p = p * z + VecF(-1.2420140846e-1f);
  p = p * z + VecF(1.4249322787e-1f);
  p = p * z + VecF(-1.6668057665e-1f);
  p = p * z + VecF(2.0000714765e-1f);
  p = p * z + VecF(-2.4999993993e-1f);
  p = p * z + VecF(3.3333331174e-1f);
  const VecF zz = z * z;
  const VecF finite =
      z + (zz * z * p - e * VecF(2.12194440e-4f) - VecF(0.5f) * zz) + e * VecF(0.693359375f);
  const VecF infinity(std::numeric_limits<float>::infinity());
  const VecF positive = select(infinity > x, finite, x);  // infinity and NaN are their own
  const VecF nan(std::numeric_limits<float>::quiet_NaN());
  return select(x > VecF(0.0f), positive, select(x == VecF(0.0f), -infinity, nan));
}

LABELSMOOTH_HD VecD exp(VecD x) {
  for (int i = 0; i < VecD::size; ++i) x.lanes[i] = ::exp(x.lanes[i]);
  return x;
}

LABELSMOOTH_HD VecD tanh(VecD x) {
  for (int i = 0; i < VecD::size; ++i) x.lanes[i] = ::tanh(x.lanes[i]);
  return x;
}

LABELSMOOTH_HD VecD log(VecD x) {
  for (int i = 0; i < VecD::size; ++i) x.lanes[i] = ::log(x.lanes[i]);
  return x;
}

// ---- logits of a dtype --------------------------------------------------------------------------

// Of the sums, and of gradients, which are quotients by them. 16-bit logits would not show the last
// bits.
template <class Element>
LABELSMOOTH_HD VecOf<Element> exp_of(VecOf<Element> x) {
  if constexpr (sizeof(Element) == 2)
    return exp_short(x);
  else
    return exp(x);
}

// The gradient at a class of the target, by its logit and its whole coefficient: mass p_c and
// coef_c nearly cancel, so their difference is rounded once. p_c takes the very exponential that is
// in the sum, so that its error cancels too.
template <class Element, class S>
LABELSMOOTH_HD VecOf<Element> target_grad(VecOf<Element> x, VecOf<Element> coef,
                                          const GradTerms<S>& terms) {
  return logit_grad(exp_of<Element>(x - VecOf<Element>(terms.shift)),
                    VecOf<Element>(terms.scale) * coef, terms);
}

// Scale and softcap, and the quotients by it, which no compiler takes out of a loop.
template <class Element>
class Transform {
  using V = VecOf<Element>;
  using T = typename Accumulate<Element>::type;

 public:
  explicit Transform(const LossOptions<T>& options)
      : options_(options),
        quotient_(options.logit_scale / options.softcap),
        slope_factor_(slope_factor(options)) {}

  LABELSMOOTH_HD V operator()(V x0) const {
    return transform_logit(x0, options_, [this](V a, V) {
      const V x = a * V(quotient_);
      if constexpr (sizeof(Element) == 2)
        return options_.softcap > 64 ? tanh(x) : tanh_short(x);  // whose error the cap multiplies
      else
        return tanh(x);
    });
  }

  // From the transformed x.
  LABELSMOOTH_HD V slope(V x) const {
    return options_.softcap > 0 ? capped_slope(x, V(options_.softcap), V(slope_factor_))
                                : V(options_.logit_scale);
  }

 private:
  LossOptions<T> options_;
  T quotient_, slope_factor_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
