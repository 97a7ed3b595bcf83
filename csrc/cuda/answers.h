// What a device is asked, or told, once: it answers alike ever after.
#pragma once

#include <map>
#include <mutex>

namespace labelsmooth::cuda {

// Made with `new` and never destroyed: a call may come while the process ends.
template <class Question, class Answer>
class Answers {
 public:
  // ask(answer) asks, and says whether the answer holds for good.
  template <class Ask>
  Answer to(const Question& question, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = answers_.find(question);
    if (known != answers_.end()) return known->second;
    Answer answer = {};
    if (ask(answer)) answers_.emplace(question, answer);
    return answer;
  }

 private:
  std::mutex mutex_;
  std::map<Question, Answer> answers_;
};

}  // namespace labelsmooth::cuda
