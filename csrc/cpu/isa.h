// The instruction sets that the CPU kernel is compiled for. A file that defines
// LABELSMOOTH_AVX512BF16, LABELSMOOTH_AVX512, LABELSMOOTH_AVX2 or none of them includes this before
// vec.h; all that follows is then compiled for that set, without a flag on the command line.
// Headers of the standard library come first: a function of theirs that was compiled here for
// AVX-512 could be the copy that the linker keeps for everybody.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

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
#endif

#define LABELSMOOTH_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define LABELSMOOTH_TARGET(set) \
  LABELSMOOTH_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define LABELSMOOTH_END_TARGET LABELSMOOTH_PRAGMA(clang attribute pop)
#else
#define LABELSMOOTH_TARGET(set) \
  LABELSMOOTH_PRAGMA(GCC push_options) LABELSMOOTH_PRAGMA(GCC target(set))
#define LABELSMOOTH_END_TARGET LABELSMOOTH_PRAGMA(GCC pop_options)
#endif

#if defined(LABELSMOOTH_AVX512BF16)
#define LABELSMOOTH_AVX512
#define LABELSMOOTH_ISA avx512_bf16
#define LABELSMOOTH_VECTOR_BYTES 64
LABELSMOOTH_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#elif defined(LABELSMOOTH_AVX512)
#define LABELSMOOTH_ISA avx512
#define LABELSMOOTH_VECTOR_BYTES 64
LABELSMOOTH_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#elif defined(LABELSMOOTH_AVX2)
#define LABELSMOOTH_ISA avx2
#define LABELSMOOTH_VECTOR_BYTES 32
LABELSMOOTH_TARGET("avx2,fma,f16c")
#else
#define LABELSMOOTH_ISA baseline
#define LABELSMOOTH_VECTOR_BYTES 16
#endif
