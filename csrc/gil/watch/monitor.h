// csrc/gil/watch/monitor.h: counts who holds the GIL, look by look.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "clock.h"
#include "watch/holders.h"
#include "watch/looker.h"

namespace torchgil {

/// Looks once in each stretch of `interval`, at a random moment of it, at who
/// holds the GIL, without ever asking for it. Every moment is looked at with
/// the same chance, so the share of looks that find it held is, on average, the
/// share of the time.
class Monitor : private LookClient {
 public:
  /// Looks that found one thread holding the GIL.
  struct Held {
    Holder* holder; // good until forget_ended()
    uint64_t looks;
    uint64_t collecting; // of these, in a garbage collection
  };

  struct Counts {
    uint64_t looks = 0;
    Clock::duration covered{};
    std::vector<Held> held;
  };

  /// Begins. `kept` looks can be asked for again. GIL: must not be held.
  Monitor(Clock::duration interval, size_t kept);
  ~Monitor() override;
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// No look is made any more when it returns, also where another thread called
  /// it first; what was counted stays. GIL: must not be held.
  void stop();

  /// What was counted since this was called before.
  Counts take();

  /// What was counted in the last stretch, as far as it is kept.
  Counts last(Clock::duration window) const;

  void reset();

  // What is known of threads. GIL: held in each.

  /// Of the thread whose PyThreadState this is; false where it is known.
  bool begin_thread(const void* state, uint64_t id, std::string name);
  void end_thread(const void* state, std::string name);
  /// Those that have not ended as far as is known.
  std::vector<Holder*> living();
  void name(Holder& holder, uint64_t id, std::string name);
  void has_ended(Holder& holder);
  void forget_ended();

 private:
  struct Look {
    Clock::time_point when;
    Holder* holder;
    bool collecting;
  };

  NextLook look(Clock::time_point now, Clock::duration stopped) override;
  Clock::time_point next_look(Clock::time_point now);

  const Clock::duration interval_;
  const size_t kept_;
  mutable std::mutex mutex_;
  bool stopping_ = false;
  Clock::time_point since_ = Clock::now(); // what take() begins with
  Clock::time_point kept_since_ = since_;
  Clock::time_point until_{};          // the stop, once it came
  Clock::time_point stretch_ = since_; // the end of the last one planned
  uint64_t count_ = 0;                 // looks since take()
  Holders holders_;
  std::vector<Look> looks_; // a ring once it has kept_
  size_t oldest_ = 0;
  std::minstd_rand random_{std::random_device{}()};
};

} // namespace torchgil
