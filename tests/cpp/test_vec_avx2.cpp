#define LABELSMOOTH_AVX2
#include "test_vec.h"
LABELSMOOTH_END_TARGET
