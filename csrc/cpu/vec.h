// A thin SIMD type: one source, compiled once per instruction set.
//
// The namespace LABELSMOOTH_ISA keeps the copies apart (isa.h). Arithmetic is the compiler's vector
// extension; intrinsics stand where that has no word for an instruction.
#pragma once

#include "isa.h"
// isa.h first
#include "../row_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

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

// NaN where b is. Where only a is: b; on NEON, NaN.
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
// x 2^n, or 0 where n < lowest: a result below the smallest number would take the CPU a hundred
// times as long.
LABELSMOOTH_HD VecF scale_by_power(VecF x, VecF n, VecF lowest) {
  const auto large_or_nan = _mm512_cmp_ps_mask(n.lanes, lowest.lanes, _CMP_NLT_UQ);
  return VecF(_mm512_maskz_scalef_ps(large_or_nan, x.lanes, n.lanes));
}
#else
#if defined(LABELSMOOTH_AVX2)
LABELSMOOTH_HD VecF max(VecF a, VecF b) { return VecF(_mm256_max_ps(a.lanes, b.lanes)); }
LABELSMOOTH_HD VecF min(VecF a, VecF b) { return VecF(_mm256_min_ps(a.lanes, b.lanes)); }
#elif defined(__aarch64__)
LABELSMOOTH_HD VecF max(VecF a, VecF b) { return VecF(vmaxq_f32(a.lanes, b.lanes)); }
LABELSMOOTH_HD VecF min(VecF a, VecF b) { return VecF(vminq_f32(a.lanes, b.lanes)); }
#endif
#if defined(__aarch64__)
LABELSMOOTH_HD VecF round_to_integer(VecF x) { return VecF(vrndnq_f32(x.lanes)); }
#else
// For |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
LABELSMOOTH_HD VecF round_to_integer(VecF x) {
  const VecF magic(0x1.8p23f);
  VecF sum = x + magic;
  asm("" : "+x"(sum.lanes));  // or the compiler may cancel the two additions
  return sum - magic;
}
#endif
// The same, for a finite x and -252 <= lowest, n <= 254. In two steps so that subnormal results and
// overflow come out right; -254 makes a power 0.
LABELSMOOTH_HD VecF scale_by_power(VecF x, VecF n, VecF lowest) {
  const Int32s whole = __builtin_convertvector(select(lowest > n, VecF(-254.0f), n).lanes, Int32s);
  const Int32s half = whole >> 1;
  const auto power = [](Int32s e) { return VecF(bit_cast<VecF::Lanes>((e + 127) << 23)); };
  return x * power(half) * power(whole - half);
}
#endif

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

// Sums of so many vectors are added up in double, so that rounding errors do not grow with the
// classes.
constexpr int64_t few_vectors = 32;
template <class V>
struct LaneSums {
  Native<double, V::size> lanes = {};
  void add(V part) { lanes += __builtin_convertvector(part.lanes, Native<double, V::size>); }
  V value() const { return V(__builtin_convertvector(lanes, typename V::Lanes)); }
  double total() const {
    struct Parts {
      VecD at[V::size / VecD::size];
    };
    const Parts parts = bit_cast<Parts>(lanes);
    VecD sum(0.0);
    for (const VecD& part : parts.at) sum = sum + part;
    return sum_lanes(sum);
  }
};

// Of term(c), a vector, for each step-th class c of [begin, end).
template <class V, class Term>
LABELSMOOTH_HD LaneSums<V> sum_of_terms(int64_t begin, int64_t end, int64_t step,
                                        const Term& term) {
  LaneSums<V> sums;
  for (int64_t c = begin; c < end;) {
    V part{typename V::Lanes{}};
    for (int64_t k = 0; k < few_vectors && c < end; ++k, c += step) part = part + term(c);
    sums.add(part);
  }
  return sums;
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
