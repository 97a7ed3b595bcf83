#include "isa.h"
// isa.h first
#include "process_rows.h"
