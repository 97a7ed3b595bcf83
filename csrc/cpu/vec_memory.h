// Vectors in memory: elements of the logits' dtype there, of the accumulate dtype in registers.
#pragma once

#include "vec.h"
// vec.h first
#include "../kernels.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

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
#if defined(LABELSMOOTH_AVX512)
  // One instruction: element i goes to the upper half of lane i.
  constexpr Native<uint16_t, 32> source = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                           0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i elements = _mm512_castsi256_si512(bit_cast<__m256i>(bits));
  return VecF(bit_cast<VecF::Lanes>(
      _mm512_maskz_permutexvar_epi16(0xaaaaaaaau, bit_cast<__m512i>(source), elements)));
#elif defined(__aarch64__)  // gcc 12 would take the bits apart in general registers
  return VecF(bit_cast<VecF::Lanes>(vshll_n_u16(bits, 16)));
#else
  return VecF(bit_cast<VecF::Lanes>(zero_extend(bits) << 16));
#endif
}

LABELSMOOTH_HD Uint16s narrow(VecF x, BFloat16) {
#if defined(LABELSMOOTH_AVX512_BF16)
  // Rounds to nearest even; takes values below 2^-126 for 0.
  return bit_cast<Uint16s>(_mm512_cvtneps_pbh(x.lanes));
#elif defined(LABELSMOOTH_NEON_BF16)
  Uint16s bits;  // clang 14 has the intrinsic only with a flag
  asm("bfcvtn %0.4h, %1.4s" : "=w"(bits) : "w"(x.lanes));
  return bits;
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
#elif defined(__aarch64__)
LABELSMOOTH_HD VecF widen(Uint16s bits, Float16) {
  return VecF(vcvt_f32_f16(bit_cast<float16x4_t>(bits)));
}
LABELSMOOTH_HD Uint16s narrow(VecF x, Float16) { return bit_cast<Uint16s>(vcvt_f16_f32(x.lanes)); }
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

// `count` elements, fewer than `size`, a power of 2. (A loop would become a call of memcpy.)
template <int size, class Element>
LABELSMOOTH_HD void copy_first(Element* to, const Element* from, int64_t count) {
  constexpr int half = size / 2;
  if constexpr (half > 0) {
    if (count & half) {
      std::memcpy(to, from, half * sizeof(Element));
      to += half;
      from += half;
    }
    copy_first<half>(to, from, count);
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
  if (count == VecOf<Element>::size) return load(source);
  Element buffer[VecOf<Element>::size] = {};
  copy_first<VecOf<Element>::size>(buffer, source, count);
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
  if (count == VecOf<Element>::size) return store(destination, x);
  Element buffer[VecOf<Element>::size];
  store(buffer, x);
  copy_first<VecOf<Element>::size>(destination, buffer, count);
}

template <class Element>
LABELSMOOTH_HD void store_apart(Element* destination, VecOf<Element> x, int64_t count,
                                int64_t stride) {
  if (stride == 1) return store_first(destination, x, count);
  Element buffer[VecOf<Element>::size];
  store(buffer, x);
  for (int64_t i = 0; i < count; ++i) destination[i * stride] = buffer[i];
}

// `count` elements of any dtype as a vector of T, the other lanes 0.
template <class T, class Element>
LABELSMOOTH_HD Vec<T> load_as(const Element* source, int64_t count) {
  using Own = typename Accumulate<Element>::type;
  if constexpr (std::is_same_v<Own, T>) {
    return count == Vec<T>::size ? load(source) : load_first(source, count);
  } else {
    Vec<T> x(T(0));
    for (int64_t i = 0; i < count; ++i)
      x.lanes[i] = static_cast<T>(load_first(source + i, 1).lanes[0]);
    return x;
  }
}

// The same, of elements that lie `stride` apart.
template <class T, class Element>
LABELSMOOTH_HD Vec<T> load_apart_as(const Element* source, int64_t count, int64_t stride) {
  if (stride == 1) return load_as<T>(source, count);
  Element buffer[Vec<T>::size] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = source[i * stride];
  return load_as<T>(buffer, count);
}

// use(data, as a pointer to elements of the dtype).
template <class Use>
LABELSMOOTH_HD auto with_elements(const void* data, DType dtype, const Use& use) {
  switch (dtype) {
    case DType::float64: return use(static_cast<const double*>(data));
    case DType::bfloat16: return use(static_cast<const BFloat16*>(data));
    case DType::float16: return use(static_cast<const Float16*>(data));
    case DType::float32: break;
  }
  return use(static_cast<const float*>(data));
}

template <class Element>
LABELSMOOTH_HD typename Accumulate<Element>::type load_one(const Element* source) {
  return load_first(source, 1).lanes[0];
}

template <class Element>
LABELSMOOTH_HD void store_one(Element* destination, typename Accumulate<Element>::type x) {
  store_first(destination, VecOf<Element>(x), 1);
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
