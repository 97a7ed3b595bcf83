#if defined(__aarch64__)
#define LABELSMOOTH_NEON_BF16
#include "isa.h"
// isa.h first
#include "process_rows.h"
LABELSMOOTH_END_TARGET
#endif
