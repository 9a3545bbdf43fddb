// csrc/gil/wakeup.cpp: how long a sleeping thread takes to wake.
#include "wakeup.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "clock.h"
#include "native_thread.h"

namespace torchgil {

namespace {

void compute_until(Clock::time_point end) {
  while (Clock::now() < end) {
  }
}

} // namespace

std::vector<std::chrono::nanoseconds> measure_wakeups(int samples) {
  std::vector<std::chrono::nanoseconds> latencies(samples);
  std::mutex mutex;
  std::condition_variable called;
  int calls = 0;
  Clock::time_point call_time;
  std::atomic<int> answers{0};

  std::optional<SignalsBlocked> blocked(std::in_place);
  std::thread sleeper([&] {
    for (int i = 0; i < samples; ++i) {
      std::unique_lock lock(mutex);
      called.wait(lock, [&] { return calls > i; });
      latencies[i] = Clock::now() - call_time;
      answers.store(i + 1, std::memory_order_release);
    }
  });
  blocked.reset();
  for (int i = 0; i < samples; ++i) {
    // Long enough for the other thread to be asleep, and its core idle.
    compute_until(Clock::now() + std::chrono::microseconds(200));
    {
      std::lock_guard lock(mutex);
      call_time = Clock::now();
      ++calls;
    }
    called.notify_one();
    // On one core the sleeper needs this one: computing on is what delays it.
    while (answers.load(std::memory_order_acquire) <= i) {
    }
  }
  sleeper.join();
  return latencies;
}

} // namespace torchgil
