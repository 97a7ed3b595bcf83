// A thin SIMD type: one source, compiled once per instruction set.
//
// The namespace LABELSMOOTH_ISA keeps the copies apart (isa.h). Arithmetic is the compiler's own
// vector extension (so the baseline compiles to SSE2 or NEON); intrinsics stand only where that has
// no word for an instruction.
#pragma once

#include "isa.h"
// isa.h first
#include "../row_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Element>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <class Element, int count>
struct NativeOf {
  typedef Element type __attribute__((vector_size(count * sizeof(Element))));
};
template <class Element, int count>
using Native = typename NativeOf<Element, count>::type;

template <class To, class From>
LABELSMOOTH_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
struct Vec {
  static constexpr int size = LABELSMOOTH_VECTOR_BYTES / sizeof(T);
  using Lanes = Native<T, size>;
  using Mask = decltype(Lanes{} < Lanes{});

  Lanes lanes;

  Vec() = default;
  LABELSMOOTH_HD Vec(T value) : lanes(value - Lanes{}) {}  // keeps the sign of -0
  LABELSMOOTH_HD explicit Vec(Lanes native) : lanes(native) {}

  friend LABELSMOOTH_HD Vec operator+(Vec a, Vec b) { return Vec(a.lanes + b.lanes); }
  friend LABELSMOOTH_HD Vec operator-(Vec a, Vec b) { return Vec(a.lanes - b.lanes); }
  friend LABELSMOOTH_HD Vec operator*(Vec a, Vec b) { return Vec(a.lanes * b.lanes); }
  friend LABELSMOOTH_HD Vec operator/(Vec a, Vec b) { return Vec(a.lanes / b.lanes); }
  friend LABELSMOOTH_HD Vec operator-(Vec a) { return Vec(-a.lanes); }
  friend LABELSMOOTH_HD Mask operator==(Vec a, Vec b) { return a.lanes == b.lanes; }
  friend LABELSMOOTH_HD Mask operator>(Vec a, Vec b) { return a.lanes > b.lanes; }
  friend LABELSMOOTH_HD Vec select(Mask mask, Vec a, Vec b) {
    return Vec(mask ? a.lanes : b.lanes);
  }

  // The first `count` lanes of a, the others of b.
  static LABELSMOOTH_HD Vec first(int64_t count, Vec a, Vec b) {
    using Index = Native<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, size>;
    Index index{};
    for (int i = 0; i < size; ++i) index[i] = i;
    using Scalar = std::remove_reference_t<decltype(index[0])>;
    return Vec(index < static_cast<Scalar>(count) ? a.lanes : b.lanes);
  }
};

using VecF = Vec<float>;
using VecD = Vec<double>;
using Int32s = Native<int32_t, VecF::size>;
using Uint32s = Native<uint32_t, VecF::size>;
using Uint16s = Native<uint16_t, VecF::size>;

// ---- maximum, rounding, powers of two -----------------------------------------------------------

// b where either is NaN, as the instruction has it.
template <class T>
LABELSMOOTH_HD Vec<T> max(Vec<T> a, Vec<T> b) {
  return select(a > b, a, b);
}

template <class T>
LABELSMOOTH_HD Vec<T> min(Vec<T> a, Vec<T> b) {
  return select(b > a, a, b);
}

#if defined(LABELSMOOTH_AVX512)
LABELSMOOTH_HD VecF max(VecF a, VecF b) { return VecF(_mm512_max_ps(a.lanes, b.lanes)); }
LABELSMOOTH_HD VecF min(VecF a, VecF b) { return VecF(_mm512_min_ps(a.lanes, b.lanes)); }
LABELSMOOTH_HD VecF round_to_integer(VecF x) {
  return VecF(_mm512_roundscale_ps(x.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LABELSMOOTH_HD VecF scale_by_power(VecF x, VecF n) {
  return VecF(_mm512_scalef_ps(x.lanes, n.lanes));
}
#else
#if defined(LABELSMOOTH_AVX2)
LABELSMOOTH_HD VecF max(VecF a, VecF b) { return VecF(_mm256_max_ps(a.lanes, b.lanes)); }
LABELSMOOTH_HD VecF min(VecF a, VecF b) { return VecF(_mm256_min_ps(a.lanes, b.lanes)); }
#endif
// For |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
LABELSMOOTH_HD VecF round_to_integer(VecF x) {
  const VecF magic(0x1.8p23f);
  VecF sum = x + magic;
  asm("" : "+x"(sum.lanes));  // or the compiler may cancel the two additions
  return sum - magic;
}
// x 2^n for -252 <= n <= 254, in two steps so that subnormal results and overflow come out right.
LABELSMOOTH_HD VecF scale_by_power(VecF x, VecF n) {
  const Int32s whole = __builtin_convertvector(n.lanes, Int32s);
  const Int32s half = whole >> 1;
  const auto power = [](Int32s e) { return VecF(bit_cast<VecF::Lanes>((e + 127) << 23)); };
  return x * power(half) * power(whole - half);
}
#endif

// ---- exp, tanh ----------------------------------------------------------------------------------

// Within 2 ulp everywhere, subnormal results included: exp(x) = 2^n exp(r), |r| <= ln(2)/2, with
// ln(2) in two parts and a minimax polynomial of degree 6 (relative error 3e-9).
LABELSMOOTH_HD VecF exp(VecF x) {
  const VecF lowest(-104.0f), highest(89.0f);  // beyond these the result is 0 and infinity
  x = min(highest, max(lowest, x));
  const VecF n = round_to_integer(x * VecF(0x1.715476p0f));
  const VecF r = x - n * VecF(0x1.62e4p-1f) - n * VecF(0x1.7f7d1cp-20f);
  VecF p = VecF(0.0013814605890087649f) * r + VecF(0.008368709784841112f);
  p = p * r + VecF(0.041668387518800976f);
  p = p * r + VecF(0.16666520689145525f);
  p = p * r + VecF(0.4999999345081127f);
  p = p * r + VecF(1.0f);
  p = p * r + VecF(1.0f);
  return scale_by_power(p, n);
}

// For sums and for results that are rounded to 16 bits: 2^(x log2(e)) by a minimax polynomial in
// the fraction of the exponent. Relative error 2^-13.7, 2^-18.5 or 2^-23.4 for degree 3, 4 or 5,
// and |x| 2^-24 on top.
template <int degree>
LABELSMOOTH_HD VecF exp_to(VecF x) {
#if defined(LABELSMOOTH_AVX512)  // instructions take the fraction and the floor, infinities
                                 // included
  const VecF n = x * VecF(0x1.715476p0f);
  const VecF f(_mm512_reduce_ps(n.lanes, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  constexpr float coefficients[3][6] = {
      {0.9999252179696222f, 0.6958335526616711f, 0.22606712273490637f, 0.07802454390044632f},
      {1.0000025934715828f, 0.6930038318010271f, 0.24144277114490495f, 0.05201143607888232f,
       0.013534180731129086f},
      {1.0f, 0.6931513118524164f, 0.24016444974796272f, 0.055799913904627546f,
       0.009017029813141494f, 0.0018671301209429252f}};
#else
  const VecF lowest(-104.0f), highest(89.0f);
  const VecF t = min(highest, max(lowest, x)) * VecF(0x1.715476p0f);
  const VecF n = round_to_integer(t);
  const VecF f = t - n;
  constexpr float coefficients[3][6] = {
      {0.9999280735215257f, 0.6932609822216245f, 0.24261112162567738f, 0.055171684091008685f},
      {0.9999992614911615f, 0.6931218144491647f, 0.2402474459301494f, 0.05591786109621542f,
       0.009570110972820959f},
      {1.0f, 0.6931469776109872f, 0.24022242085919782f, 0.05550733692003463f, 0.009671512527609113f,
       0.0013264745847858326f}};
#endif
  VecF p(coefficients[degree - 3][degree]);
  for (int i = degree - 1; i >= 0; --i) p = p * f + VecF(coefficients[degree - 3][i]);
  return scale_by_power(p, n);
}

// Near 0 an odd polynomial, which keeps the relative accuracy; elsewhere 1 - 2 / (exp(2|x|) + 1).
LABELSMOOTH_HD VecF tanh(VecF x) {
  const VecF magnitude = select(x > VecF(0.0f), x, -x);
  const VecF s = x * x;
  VecF p = VecF(-5.70498872745e-3f) * s + VecF(2.06390887954e-2f);
  p = p * s + VecF(-5.37397155531e-2f);
  p = p * s + VecF(1.33314422036e-1f);
  p = p * s + VecF(-3.33332819422e-1f);
  const VecF near = x + x * s * p;
  const VecF far = VecF(1.0f) - VecF(2.0f) / (exp(magnitude + magnitude) + VecF(1.0f));
  return select(magnitude > VecF(0.625f), select(x > VecF(0.0f), far, -far), near);
}

LABELSMOOTH_HD VecD exp(VecD x) {
  for (int i = 0; i < VecD::size; ++i) x.lanes[i] = ::exp(x.lanes[i]);
  return x;
}

LABELSMOOTH_HD VecD tanh(VecD x) {
  for (int i = 0; i < VecD::size; ++i) x.lanes[i] = ::tanh(x.lanes[i]);
  return x;
}

// ---- 16-bit floats ------------------------------------------------------------------------------

LABELSMOOTH_HD Uint32s zero_extend(Uint16s bits) {
#if defined(LABELSMOOTH_AVX512)
  return bit_cast<Uint32s>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)));
#elif defined(LABELSMOOTH_AVX2)
  return bit_cast<Uint32s>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Uint32s);
#endif
}

LABELSMOOTH_HD VecF widen(Uint16s bits, BFloat16) {
  return VecF(bit_cast<VecF::Lanes>(zero_extend(bits) << 16));
}

LABELSMOOTH_HD Uint16s narrow(VecF x, BFloat16) {
#if defined(LABELSMOOTH_AVX512BF16)
  // Rounds to nearest even; takes values below 2^-126 for 0.
  return bit_cast<Uint16s>(_mm512_cvtneps_pbh(x.lanes));
#else
  const Uint32s bits = bit_cast<Uint32s>(x.lanes);
  const Uint32s rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector((x == x) ? rounded : (bits >> 16) | 0x40, Uint16s);
#endif
}

#if defined(LABELSMOOTH_AVX512)
LABELSMOOTH_HD VecF widen(Uint16s bits, Float16) {
  return VecF(_mm512_cvtph_ps(bit_cast<__m256i>(bits)));
}
LABELSMOOTH_HD Uint16s narrow(VecF x, Float16) {
  return bit_cast<Uint16s>(_mm512_cvtps_ph(x.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(LABELSMOOTH_AVX2)
LABELSMOOTH_HD VecF widen(Uint16s bits, Float16) {
  return VecF(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
}
LABELSMOOTH_HD Uint16s narrow(VecF x, Float16) {
  return bit_cast<Uint16s>(_mm256_cvtps_ph(x.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
// The exponent moves by 127 - 15 through a multiplication, which is right for subnormal values too.
LABELSMOOTH_HD VecF widen(Uint16s half, Float16) {
  const Uint32s bits = zero_extend(half);
  const Uint32s sign = (bits & 0x8000) << 16;
  const Uint32s rest = (bits & 0x7fff) << 13;
  const Uint32s finite =
      bit_cast<Uint32s>((VecF(bit_cast<VecF::Lanes>(rest)) * VecF(0x1p112f)).lanes);
  const Uint32s magnitude = (rest >= 0x0f800000) ? (rest | 0x7f800000) : finite;
  return VecF(bit_cast<VecF::Lanes>(magnitude | sign));
}
// Rounds to nearest even. Below 2^-14 an addition of 0.5 rounds at the bit where float16 ends.
LABELSMOOTH_HD Uint16s narrow(VecF x, Float16) {
  const Uint32s bits = bit_cast<Uint32s>(x.lanes);
  const Uint32s magnitude = bits & 0x7fffffff;
  const Uint32s normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const VecF shifted = VecF(bit_cast<VecF::Lanes>(magnitude)) + VecF(0.5f);
  const Uint32s subnormal = bit_cast<Uint32s>(shifted.lanes) - 0x3f000000;
  Uint32s half = (magnitude < 0x38800000) ? subnormal : normal;
  half = (magnitude >= 0x477ff000) ? Uint32s{} + 0x7c00 : half;
  half = (magnitude > 0x7f800000) ? Uint32s{} + 0x7e00 : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), Uint16s);
}
#endif

// ---- memory -------------------------------------------------------------------------------------

template <class Element>
using VecOf = Vec<typename Accumulate<Element>::type>;

template <class Element>
LABELSMOOTH_HD VecOf<Element> load(const Element* source) {
  if constexpr (std::is_floating_point_v<Element>) {
    VecOf<Element> x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  } else {
    Uint16s bits;
    std::memcpy(&bits, source, sizeof(bits));
    return widen(bits, Element{});
  }
}

template <class Element>
LABELSMOOTH_HD void store(Element* destination, VecOf<Element> x) {
  if constexpr (std::is_floating_point_v<Element>) {
    std::memcpy(destination, &x, sizeof(x));
  } else {
    const Uint16s bits = narrow(x, Element{});
    std::memcpy(destination, &bits, sizeof(bits));
  }
}

// `count` elements, at most a vector of them, the other lanes 0.
template <class Element>
LABELSMOOTH_HD VecOf<Element> load_first(const Element* source, int64_t count) {
#if defined(LABELSMOOTH_AVX512)
  const auto mask = static_cast<uint32_t>((1u << count) - 1);
  if constexpr (std::is_same_v<Element, float>)
    return VecF(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), source));
  if constexpr (sizeof(Element) == 2)
    return widen(bit_cast<Uint16s>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), source)),
                 Element{});
#endif
  Element buffer[VecOf<Element>::size] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = source[i];
  return load(buffer);
}

template <class Element>
LABELSMOOTH_HD void store_first(Element* destination, VecOf<Element> x, int64_t count) {
#if defined(LABELSMOOTH_AVX512)
  const auto mask = static_cast<uint32_t>((1u << count) - 1);
  if constexpr (std::is_same_v<Element, float>)
    return _mm512_mask_storeu_ps(destination, static_cast<__mmask16>(mask), x.lanes);
  if constexpr (sizeof(Element) == 2)
    return _mm256_mask_storeu_epi16(destination, static_cast<__mmask16>(mask),
                                    bit_cast<__m256i>(narrow(x, Element{})));
#endif
  Element buffer[VecOf<Element>::size];
  store(buffer, x);
  for (int64_t i = 0; i < count; ++i) destination[i] = buffer[i];
}

template <class Element>
LABELSMOOTH_HD typename Accumulate<Element>::type load_one(const Element* source) {
  return load_first(source, 1).lanes[0];
}

template <class Element>
LABELSMOOTH_HD void store_one(Element* destination, typename Accumulate<Element>::type x) {
  store_first(destination, VecOf<Element>(x), 1);
}

// ---- across lanes -------------------------------------------------------------------------------

// Halves until one lane is left, so the order is the same on every run.
template <class T, int count, class Operation>
LABELSMOOTH_HD T reduce_lanes(Native<T, count> lanes, Operation operation) {
  if constexpr (count == 1) {
    return lanes[0];
  } else {
    struct Halves {
      Native<T, count / 2> low, high;
    };
    const Halves halves = bit_cast<Halves>(lanes);
    return reduce_lanes<T, count / 2>(operation(halves.low, halves.high), operation);
  }
}

template <class T>
LABELSMOOTH_HD T sum_lanes(Vec<T> x) {
  return reduce_lanes<T, Vec<T>::size>(x.lanes, [](auto a, auto b) { return a + b; });
}

template <class T>
LABELSMOOTH_HD RowStats<T> sum_lanes(const RowStats<Vec<T>>& stats, T shift) {
  return {shift, sum_lanes(stats.sum_exp), sum_lanes(stats.coef_dot), sum_lanes(stats.coef_sum)};
}

template <class T>
LABELSMOOTH_HD T max_lanes(Vec<T> x) {
  return reduce_lanes<T, Vec<T>::size>(x.lanes, [](auto a, auto b) { return a > b ? a : b; });
}

template <class T>
LABELSMOOTH_HD bool any_lane(typename Vec<T>::Mask mask) {
  return reduce_lanes<std::remove_reference_t<decltype(mask[0])>, Vec<T>::size>(
             mask, [](auto a, auto b) { return a | b; }) != 0;
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
