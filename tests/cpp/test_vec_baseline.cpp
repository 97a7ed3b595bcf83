#include "test_vec.h"
