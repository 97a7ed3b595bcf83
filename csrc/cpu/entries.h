// The classes that a row's target names, each once: those of this part of the row.
#pragma once

#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

template <class T>
struct Entry {
  int64_t target;
  T prob;   // t_c
  T logit;  // as it was before the gradient takes its place
  TargetTerms<T> terms;
};

template <class Element>
class Entries {
  using T = typename TypedProblem<Element>::T;

 public:
  explicit Entries(const TypedProblem<Element>& problem) : problem_(problem) {
    const LossProblem& untyped = problem.untyped;
    if (!untyped.target) return;
    entries_ = entries_buffer_.get(untyped.target_classes);
    if (untyped.sparse_probs) {
      places_ = places_buffer_.get(untyped.classes);
      std::memset(places_, 0, static_cast<size_t>(untyped.classes) * sizeof *places_);
    }
  }

  // Classes that come twice make one entry. places_[c] is where that of class c is, or what another
  // row left there, so the entry is asked for its class.
  void open(int64_t row) {
    const LossProblem& untyped = problem_.untyped;
    count_ = 0;
    ignored_ = true;
    invalid_ = false;
    for (int64_t k = 0; k < untyped.target_classes; ++k) {
      const int64_t y = problem_.target_of(row, k);
      if (y == untyped.ignore_index) continue;
      const int64_t c = problem_.class_of(y);
      invalid_ = invalid_ || y < 0 || y >= untyped.all_classes;
      if (ignored_) named_ = c;
      ignored_ = false;
      if (!problem_.is_here(c)) continue;
      const T prob = problem_.target_prob_of(row, k);
      if (places_) {
        const int32_t place = places_[c];
        if (place < count_ && entries_[place].target == c) {
          entries_[place].prob += prob;
          continue;
        }
        places_[c] = static_cast<int32_t>(count_);
      }
      entries_[count_].target = c;
      entries_[count_++].prob = prob;
    }
  }

  bool ignored() const { return ignored_; }       // no class counts
  bool invalid() const { return invalid_; }       // one is no class
  int64_t first_named() const { return named_; }  // else the first one that does, of any part
  bool empty() const { return count_ == 0; }
  Entry<T>& first() const { return entries_[0]; }
  Entry<T>* begin() const { return entries_; }
  Entry<T>* end() const { return entries_ + count_; }

 private:
  const TypedProblem<Element>& problem_;
  Buffer<Entry<T>> entries_buffer_;
  Buffer<int32_t> places_buffer_;
  Entry<T>* entries_ = nullptr;
  int32_t* places_ = nullptr;
  int64_t count_ = 0;
  int64_t named_ = 0;
  bool ignored_ = true;
  bool invalid_ = false;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
