// csrc/gil/watch/prober.h: finds who holds the GIL long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "watch/hang_watch.h"
#include "watch/hold_log.h"
#include "watch/known_threads.h"
#include "watch/looker.h"
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
/// Where the same hold goes on for long, the looker itself says so: nobody else
/// can (hang_watch.h).
///
/// So nobody's GIL is asked for while all is well, and a released op of any
/// length, or a queue of threads that take turns, is never taken for a hold.
class Prober : private LookClient {
 public:
  /// Called by the knocker or the main thread, which holds the GIL. Must not
  /// throw.
  using Report = std::function<void(const Hold&)>;

  /// Called by the knocker with the GIL, each time that it has got it. Must not
  /// throw.
  using Knocked = std::function<void()>;

  struct Settings {
    Clock::duration threshold;   // a hold is long above it
    Clock::duration mean_gap;    // between looks while all is well
    Clock::duration look_period; // between looks while the knocker waits
    HangWatch::Settings hangs;
  };

  /// Begins, with the looker and a knocker of its own. `known` has to outlive
  /// them. GIL: must not be held: where the system has no more threads, the
  /// knocker asks for it once, to end.
  Prober(
      const Settings& settings,
      const KnownThreads& known,
      Report report,
      Knocked knocked);

  ~Prober() override;

  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  /// No look is made any more, and the knocker has ended, when it returns, also
  /// where another thread called it first. Only in the thread that shuts the
  /// interpreter down it leaves a knocker behind that asked for the GIL before:
  /// that one is parked, for it never gets the GIL. GIL: must not be held: the
  /// knocker may be waiting for it.
  void stop();

  /// How often the knocker asked for the GIL.
  int64_t knocks() const;

  /// For how long the hold has gone on that is looked at now.
  Clock::duration holding() const;

 private:
  NextLook look(Clock::time_point now, Clock::duration stopped) override;
  NextLook after_random_gap(Clock::time_point now);
  NextLook while_waiting() const;
  NextLook look_at_rest(Clock::time_point now);
  void look_while_waiting(std::unique_lock<std::mutex>& lock);
  void look_at_hang(std::unique_lock<std::mutex>& lock, uint64_t switches);
  void tell_end_of_hang(std::unique_lock<std::mutex>& lock);
  void knock();
  void report_holds();

  const Settings settings_;
  const Report report_;
  const Knocked knocked_;

  std::mutex joining_; // by whoever waits for the knocker to end

  // Taken by both threads for moments, never while either asks for the GIL.
  mutable std::mutex mutex_;
  std::condition_variable wake_knocker_;
  bool stopping_ = false;
  bool waiting_ = false; // the knocker waits for the GIL, and nobody looked yet
  bool asking_ = false;  // the knocker asks for the GIL, and has not got it yet
  int64_t knocks_ = 0;
  HoldLog log_;
  std::unique_ptr<MainLook> main_look_;

  // The looker's.
  HangWatch hangs_;
  std::minstd_rand random_{std::random_device{}()};
  const void* before_ = nullptr; // who held the GIL at the last look
  bool waited_ =
      false; // the knocker waits for the GIL, or did at the last look
  Clock::duration stopped_{}; // since the last look that the log has seen
  std::shared_ptr<const Hang> told_; // and has not been told to have ended
  Clock::duration told_length_{};

  std::thread knocker_;
};

} // namespace torchgil
