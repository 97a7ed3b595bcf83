#include "isa.h"
// isa.h first
#include "row_kernel.h"
