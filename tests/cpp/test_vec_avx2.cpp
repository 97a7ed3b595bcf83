#define LABELSMOOTH_AVX2
#include "test_vec.h"
