// Drives the fuzz target with random bytes, the same each run, where there is no libFuzzer.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "check.h"
#include "instruction_set.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// The argument is how many inputs to try.
int main(int count, char** arguments) {
  if (!has_instruction_set()) return not_on_this_machine;
  const int inputs = count == 2 ? std::atoi(arguments[1]) : 0;
  CHECK(inputs > 0, "expected the number of inputs as the only argument");
  Random random;
  for (int i = 0; i < inputs; ++i) {
    std::vector<uint8_t> bytes(20 + random.next() % 400);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next() >> 8);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}
