#if defined(__x86_64__)
#define LABELSMOOTH_AVX512_BF16
#include "isa.h"
// isa.h first
#include "process_rows.h"
LABELSMOOTH_END_TARGET
#endif
