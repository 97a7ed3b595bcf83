// The instruction set that LABELSMOOTH_CPU chooses.
#pragma once

#include <cstdio>
#include <stdexcept>

#include "kernels.h"

// Whether this machine has it.
inline bool has_instruction_set() {
  try {
    labelsmooth::cpu::instruction_set();
    return true;
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return false;
  }
}
