// Cooperative threads that the sanitizers know of.
//
// To the thread sanitizer each fiber is a thread. Switching between two does not order them: only
// what calls happens_before() and happens_after() does.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {

// What a fiber did before happens_before(point) is seen by whoever calls happens_after(point)
// later.
inline void happens_before([[maybe_unused]] void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(point);
#endif
}
inline void happens_after([[maybe_unused]] void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(point);
#endif
}

// Costly to make, and so used for one body after the other.
class Fiber {
 public:
  Fiber() : stack_(new char[stack_bytes]) {
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = stack_bytes;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::enter, 0);
  }
  ~Fiber() {
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(own_tsan_);
#endif
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From now on the calling thread's.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    done_.store(false, relaxed);
#if defined(__SANITIZE_THREAD__)
    owner_tsan_.store(__tsan_get_current_fiber(), relaxed);
#endif
    happens_before(this);
  }
  bool done() const { return done_.load(relaxed); }

  // Runs the body until it yields or ends.
  void resume() {
    running_.store(this, relaxed);
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(own_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_.get(), stack_bytes);
#endif
    swapcontext(&owner_, &own_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // By the body.
  static void yield() { running_.load(relaxed)->leave(); }

 private:
  static constexpr size_t stack_bytes = 64 << 10;
  // Shared with the fibers' owner, which the thread sanitizer is not to see: relaxed atomics.
  static constexpr auto relaxed = std::memory_order_relaxed;
  static inline thread_local std::atomic<Fiber*> running_{nullptr};

  static void enter() {
    Fiber* self = running_.load(relaxed);
    self->arrived(nullptr);
    for (;;) {
      happens_after(self);
      self->body_();
      self->done_.store(true, relaxed);
      self->leave();
    }
  }

  void leave() {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(owner_tsan_.load(relaxed), __tsan_switch_to_fiber_no_sync);
#endif
    void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(done() ? nullptr : &fake_stack, owner_stack_,
                                   owner_stack_bytes_);
#endif
    swapcontext(&own_, &owner_);
    arrived(fake_stack);
  }

  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &owner_stack_, &owner_stack_bytes_);
#endif
  }

  std::function<void()> body_;
  const std::unique_ptr<char[]> stack_;
  ucontext_t own_, owner_;
  std::atomic<bool> done_{true};
#if defined(__SANITIZE_THREAD__)
  std::atomic<void*> owner_tsan_{nullptr};
  void* const own_tsan_ = __tsan_create_fiber(0);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* owner_stack_ = nullptr;
  size_t owner_stack_bytes_ = 0;
#endif
};

}  // namespace simt
