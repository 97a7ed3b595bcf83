#define LABELSMOOTH_AVX512BF16
#include "test_vec.h"
