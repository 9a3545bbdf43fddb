// csrc/gil/watch/prober.h: two native threads that find who holds the GIL long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "watch/hold_log.h"
#include "watch/main_look.h"

namespace torchgil {

/// The looker reads who holds the GIL, without it, at random moments. Where it
/// meets the same holder twice in a row it wakes the knocker and goes on
/// looking, often now. The knocker asks for the GIL, as any Python thread
/// would: code that gives way by itself gives way to it. When it gets the GIL,
/// it reports each hold over the threshold that the looker saw meanwhile; the
/// culprit has just given way and cannot have gone on. Where the main thread
/// gets it first, that does the same in the knocker's place.
///
/// So nobody's GIL is asked for while all is well, and a released op of any
/// length, or a queue of threads that take turns, is never taken for a hold.
class Prober {
 public:
  /// Called by the knocker or the main thread, which holds the GIL. Must not
  /// throw.
  using Report = std::function<void(const Hold&)>;

  struct Settings {
    Clock::duration threshold;   // a hold is long above it
    Clock::duration mean_gap;    // between looks while all is well
    Clock::duration look_period; // between looks while the knocker waits
  };

  /// Starts both threads. GIL: not needed.
  Prober(Settings settings, Report report);

  ~Prober();

  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  /// Both threads have ended when it returns, also where another thread called
  /// it first. Only in the thread that shuts the interpreter down it leaves a
  /// knocker behind that asked for the GIL before: that one is parked, for it
  /// never gets the GIL. GIL: must not be held: the knocker may be waiting for
  /// it.
  void stop();

  /// How often the knocker asked for the GIL.
  int64_t knocks() const;

 private:
  void look();
  void look_while_waiting(std::unique_lock<std::mutex>& lock);
  void knock();
  void report_holds();

  const Settings settings_;
  const Report report_;

  std::mutex joining_; // by whoever waits for the threads to end

  // Taken by both threads for moments, never while either asks for the GIL.
  mutable std::mutex mutex_;
  std::condition_variable wake_looker_;
  std::condition_variable wake_knocker_;
  bool stopping_ = false;
  bool waiting_ = false; // the knocker waits for the GIL, and nobody looked yet
  bool asking_ = false;  // the knocker asks for the GIL, and has not got it yet
  int64_t knocks_ = 0;
  HoldLog log_;
  std::unique_ptr<MainLook> main_look_;

  std::thread looker_;
  std::thread knocker_;
};

} // namespace torchgil
