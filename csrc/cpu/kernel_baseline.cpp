#include "isa.h"
// isa.h first
#include "process_rows.h"
LABELSMOOTH_END_TARGET
