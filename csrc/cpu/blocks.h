// The classes of a row in blocks, one after another or shared out among workers. Sums are made by
// block, then of the blocks in order: the same bits whoever made them.
#pragma once

#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

class Blocks {
 public:
  explicit Blocks(const LossProblem& problem)
      : classes(problem.classes),
        count((classes + block_classes - 1) / block_classes),
        workers_(problem.workers ? problem.workers : alone) {}

  // of_block(block, begin, end) for each block, of classes [begin, end).
  template <class Block>
  void for_each(const Block& of_block) const {
    const auto several = [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block)
        of_block(block, begin_of(block), end_of(block));
    };
    workers_(
        count,
        [](const void* context, int64_t first, int64_t last) {
          (*static_cast<decltype(&several)>(context))(first, last);
        },
        &several);
  }

  static int64_t begin_of(int64_t block) { return block * block_classes; }
  int64_t end_of(int64_t block) const { return block + 1 < count ? begin_of(block + 1) : classes; }

  const int64_t classes;
  const int64_t count;

 private:
  // Called through a pointer as others are: an inlined copy of the work may fuse a product and a
  // sum that the other copy rounds both.
  static void alone(int64_t count, Work work, const void* context) { work(context, 0, count); }

  const Workers workers_;
};

// ---- copies of a row whose classes lie apart ---------------------------------------------------

template <class X>
void gather(const Blocks& blocks, const X* source, int64_t stride, X* adjacent) {
  blocks.for_each([=](int64_t, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) adjacent[c] = source[c * stride];
  });
}

template <class X>
void scatter(const Blocks& blocks, const X* adjacent, X* destination, int64_t stride) {
  blocks.for_each([=](int64_t, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) destination[c * stride] = adjacent[c];
  });
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
