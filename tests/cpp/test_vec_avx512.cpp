#define LABELSMOOTH_AVX512
#include "test_vec.h"
