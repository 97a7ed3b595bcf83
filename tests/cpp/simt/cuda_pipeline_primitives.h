// In the place of CUDA's header of this name, which is for nvcc alone.
#pragma once

#include "block.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  simt::copy_async(to, from, bytes);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups) {
  if (groups != 0) simt::fail("only all groups of copies are waited for here");
  simt::wait_for_copies();
}
