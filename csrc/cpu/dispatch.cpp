// Chooses, once, the instruction set that the CPU kernel runs with.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../kernels.h"

#if defined(__x86_64__) && !defined(LABELSMOOTH_BASELINE_ONLY)
#define LABELSMOOTH_X86_SETS
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace labelsmooth::cpu {

#define LABELSMOOTH_DECLARE(isa)                                             \
  namespace isa {                                                            \
  void process_rows(const LossProblem& problem, int64_t begin, int64_t end); \
  }
#if defined(LABELSMOOTH_X86_SETS)
LABELSMOOTH_DECLARE(avx512_bf16)
LABELSMOOTH_DECLARE(avx512)
LABELSMOOTH_DECLARE(avx2)
#endif
#if defined(__aarch64__)
LABELSMOOTH_DECLARE(neon_bf16)
LABELSMOOTH_DECLARE(neon)
#else
LABELSMOOTH_DECLARE(baseline)
#endif

namespace {

struct InstructionSet {
  const char* name;
  bool usable;
  void (*process_rows)(const LossProblem&, int64_t, int64_t);
};

#if defined(__aarch64__) && defined(__linux__) && !defined(HWCAP2_BF16)
#define HWCAP2_BF16 (1 << 14)  // older headers have no name for it
#endif

InstructionSet choose() {
#if defined(LABELSMOOTH_X86_SETS)
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);  // clang 14 knows no name for f16c
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (ecx & bit_F16C) != 0;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__) && defined(__linux__)
  const bool neon_bf16 = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#elif defined(__aarch64__)
  const bool neon_bf16 = false;
#endif
  const InstructionSet sets[] = {// best first
#if defined(LABELSMOOTH_X86_SETS)
                                 {"avx512_bf16", avx512_bf16, avx512_bf16::process_rows},
                                 {"avx512", avx512, avx512::process_rows},
                                 {"avx2", avx2, avx2::process_rows},
#endif
#if defined(__aarch64__)
                                 {"neon_bf16", neon_bf16, neon_bf16::process_rows},
                                 {"neon", true, neon::process_rows}};
#else
                                 {"baseline", true, baseline::process_rows}};
#endif

  const char* forced = std::getenv("LABELSMOOTH_CPU");
  const std::string wanted = forced ? forced : "";
  std::string usable;
  for (const InstructionSet& set : sets) {
    if (!set.usable) continue;
    if (wanted.empty() || wanted == set.name) return set;
    usable += usable.empty() ? set.name : std::string(", ") + set.name;
  }
  throw std::runtime_error("LABELSMOOTH_CPU=" + wanted + ": expected one of " + usable +
                           " on this machine");
}

const InstructionSet& chosen() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace

void process_rows(const LossProblem& problem, int64_t begin, int64_t end) {
  chosen().process_rows(problem, begin, end);
}

const char* instruction_set() { return chosen().name; }

}  // namespace labelsmooth::cpu
