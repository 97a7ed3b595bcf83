// Questions of several threads: each is asked once, unless its answer does not hold for good.
#include <atomic>
#include <thread>
#include <vector>

#include "../../csrc/cuda/answers.h"
#include "check.h"

int main() {
  constexpr int threads = 8, questions = 100;
  labelsmooth::cuda::Answers<int, int> answers;
  std::atomic<int> asked{0}, asked_in_vain{0};
  const auto ask_all = [&] {
    for (int question = 0; question < questions; ++question) {
      const int answer = answers.to(question, [&](int& answer) {
        answer = 3 * question;
        ++asked;
        return true;
      });
      CHECK(answer == 3 * question, "%d is answered by %d", question, answer);
      const int refused = answers.to(-1, [&](int& answer) {
        answer = 7;
        ++asked_in_vain;
        return false;
      });
      CHECK(refused == 7, "%d", refused);
    }
  };
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i) all.emplace_back(ask_all);
  for (std::thread& thread : all) thread.join();
  CHECK(asked == questions, "%d", asked.load());
  CHECK(asked_in_vain == threads * questions, "%d", asked_in_vain.load());
}
