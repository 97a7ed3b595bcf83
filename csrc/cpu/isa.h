// The instruction sets that the CPU kernel is compiled for. A file defines LABELSMOOTH_AVX512_BF16,
// LABELSMOOTH_AVX512, LABELSMOOTH_AVX2, LABELSMOOTH_NEON_BF16 or, for what every CPU of the
// architecture has, none, and includes this before vec.h: what follows, up to
// LABELSMOOTH_END_TARGET, is compiled for that set, without a flag. Headers of the standard library
// come first: compiled here for AVX-512, a function of theirs could be the copy that the linker
// keeps for all.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic push  // gcc 12 warns of its own deliberately undefined vectors
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(LABELSMOOTH_AVX512_BF16)
#define LABELSMOOTH_AVX512
#define LABELSMOOTH_ISA avx512_bf16
#define LABELSMOOTH_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"
#define LABELSMOOTH_VECTOR_BYTES 64
#elif defined(LABELSMOOTH_AVX512)
#define LABELSMOOTH_ISA avx512
#define LABELSMOOTH_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define LABELSMOOTH_VECTOR_BYTES 64
#elif defined(LABELSMOOTH_AVX2)
#define LABELSMOOTH_ISA avx2
#define LABELSMOOTH_TARGET "avx2,fma,f16c"
#define LABELSMOOTH_VECTOR_BYTES 32
#else
#if defined(LABELSMOOTH_NEON_BF16)
#define LABELSMOOTH_ISA neon_bf16
#if defined(__clang__)
#define LABELSMOOTH_TARGET "bf16"
#else
#define LABELSMOOTH_TARGET "+bf16"
#endif
#elif defined(__aarch64__)
#define LABELSMOOTH_ISA neon
#else
#define LABELSMOOTH_ISA baseline
#endif
#define LABELSMOOTH_VECTOR_BYTES 16
#endif

#if defined(LABELSMOOTH_AVX512) || defined(LABELSMOOTH_AVX2) || defined(__aarch64__)
#define LABELSMOOTH_FUSED  // a product and a sum are rounded once
#endif

#define LABELSMOOTH_TEXT(text) #text
#define LABELSMOOTH_PRAGMA(text) _Pragma(LABELSMOOTH_TEXT(text))
#if defined(__clang__)
#pragma clang fp contract(fast)  // over calls of the operators too, as gcc does
#endif
#if !defined(LABELSMOOTH_TARGET)
#define LABELSMOOTH_END_TARGET
#elif defined(__clang__)
LABELSMOOTH_PRAGMA(clang attribute push(__attribute__((target(LABELSMOOTH_TARGET))),
                                        apply_to = function))
#define LABELSMOOTH_END_TARGET LABELSMOOTH_PRAGMA(clang attribute pop)
#else
#pragma GCC push_options
LABELSMOOTH_PRAGMA(GCC target(LABELSMOOTH_TARGET))
#define LABELSMOOTH_END_TARGET LABELSMOOTH_PRAGMA(GCC pop_options)
#endif
