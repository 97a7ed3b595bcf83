// A block of CUDA threads: fibers of one thread of the system, whose thread_local memory is the
// block's shared memory.
//
// Fibers take turns at random. A block that can no longer go on, and what a GPU would leave
// undefined, ends the program.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"

namespace simt {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::_Exit(1);
}

constexpr int warp_size = 32;

// Opens when `count` fibers wait.
class Barrier {
 public:
  // Whether it opened at once. `orders`: what fibers did before it is seen by all after it.
  bool wait(int count, bool orders) {
    const unsigned opened = opened_.load(relaxed);
    char* point = &points_[opened % 2];  // of its own: the first to go on may already wait again
    if (orders) happens_before(point);
    const bool last = waiting_.fetch_add(1, relaxed) + 1 == count;
    if (last) {
      waiting_.store(0, relaxed);
      opened_.store(opened + 1, relaxed);
    }
    while (opened_.load(relaxed) == opened) Fiber::yield();
    if (orders) happens_after(point);
    return last;
  }

 private:
  static constexpr auto relaxed = std::memory_order_relaxed;
  std::atomic<int> waiting_{0};
  std::atomic<unsigned> opened_{0};
  char points_[2];
};

// Lanes exchange words here. On a GPU that orders no memory accesses, so the words are relaxed.
struct Warp {
  Barrier barrier;
  std::atomic<uint64_t> words[2][warp_size];  // two turns: no lane is further ahead
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// What a CUDA thread has to itself.
struct Thread {
  int index = 0;
  int turn = 0;  // of the exchanges
  std::vector<Copy> issued, committed;
};

class Block {
 public:
  Block(unsigned index, int threads, unsigned blocks)
      : index(index), blocks(blocks), threads_(static_cast<size_t>(threads)) {
    if (threads % warp_size != 0) fail("blocks are whole warps here");
    warps_.reset(new Warp[threads_.size() / warp_size]);
    for (int i = 0; i < threads; ++i) threads_[static_cast<size_t>(i)].index = i;
  }

  static Block& current() { return *current_; }
  Thread& thread() { return threads_[running_.load(relaxed)]; }
  int threads() const { return static_cast<int>(threads_.size()); }

  // All threads to their end, on fibers of a pool that is this block's meanwhile.
  template <class Body>
  void run(const Body& body, std::vector<std::unique_ptr<Fiber>>& fibers) {
    current_ = this;
    while (fibers.size() < threads_.size()) fibers.push_back(std::make_unique<Fiber>());
    for (size_t i = 0; i < threads_.size(); ++i) fibers[i]->start([&] { run_thread(body); });
    std::vector<size_t> order(threads_.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::minstd_rand random(index + 1);
    while (!order.empty()) {
      std::shuffle(order.begin(), order.end(), random);
      const long before = steps_.load(relaxed);
      for (size_t i : order) {
        running_.store(i, relaxed);
        fibers[i]->resume();
      }
      if (steps_.load(relaxed) == before) fail("deadlock: a thread does not come to a barrier");
      const auto done = [&](size_t i) { return fibers[i]->done(); };
      order.erase(std::remove_if(order.begin(), order.end(), done), order.end());
    }
    happens_after(this);
  }

  void sync() {
    if (barrier_.wait(threads(), true)) step();
  }

  // Of how many threads the vote is true.
  int sync_count(bool vote) {
    votes_.fetch_add(vote, relaxed);
    sync();
    const int count = votes_.load(relaxed);
    sync();  // all have read
    votes_.fetch_sub(vote, relaxed);
    return count;
  }

  void sync_warp() {
    if (warps_[thread().index / warp_size].barrier.wait(warp_size, true)) step();
  }

  uint64_t from_lane(unsigned mask, uint64_t word, int lane) {
    if (mask != 0xffffffffu) fail("only whole warps exchange words here");
    Thread& me = thread();
    Warp& warp = warps_[me.index / warp_size];
    auto& words = warp.words[me.turn];
    me.turn ^= 1;
    words[me.index % warp_size].store(word, relaxed);
    if (warp.barrier.wait(warp_size, false)) step();
    return words[lane].load(relaxed);
  }

  const unsigned index, blocks;

 private:
  static constexpr auto relaxed = std::memory_order_relaxed;
  static inline thread_local Block* current_ = nullptr;

  template <class Body>
  void run_thread(const Body& body) {
    body();
    const Thread& me = thread();
    if (!me.issued.empty() || !me.committed.empty()) fail("a thread ended with copies under way");
    step();
    happens_before(this);
  }
  void step() { steps_.fetch_add(1, relaxed); }

  std::vector<Thread> threads_;
  std::unique_ptr<Warp[]> warps_;
  Barrier barrier_;
  std::atomic<int> votes_{0};
  std::atomic<size_t> running_{0};
  std::atomic<long> steps_{0};  // barriers that opened, threads that ended
};

// ---- asynchronous copies: done when they are waited for, garbage until then ---------------------

inline void copy_async(void* to, const void* from, size_t bytes) {
  const auto misaligned = [=](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % bytes != 0;
  };
  if (misaligned(to) || misaligned(from)) fail("a misaligned asynchronous copy");
  std::memset(to, 0xfb, bytes);
  Block::current().thread().issued.push_back({to, from, bytes});
}
inline void commit_copies() {
  Thread& me = Block::current().thread();
  me.committed.insert(me.committed.end(), me.issued.begin(), me.issued.end());
  me.issued.clear();
}
inline void wait_for_copies() {
  Thread& me = Block::current().thread();
  for (const Copy& copy : me.committed) std::memcpy(copy.to, copy.from, copy.bytes);
  me.committed.clear();
}

}  // namespace simt
