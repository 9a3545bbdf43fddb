// csrc/gil/watch/prober.cpp: two native threads that find who holds the GIL
// long.
#include <Python.h>

#include "watch/prober.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include <torchgil/gil.h>
#include "cpython/gil_holder.h"
#include "native_thread.h"

namespace torchgil {
namespace {

/// This thread's state for as long as it lives. PyGILState_Ensure would make
/// one for each knock, behind a lock of the interpreter's: in the child of a
/// fork at that moment 3.10.14, 3.11.7 and older wait for that lock for ever
/// (python/cpython#112275), and that a fork takes long is what makes us knock.
class ThreadState {
 public:
  ThreadState() : state_(PyThreadState_New(PyInterpreterState_Main())) {}

  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;

  void acquire() {
    take_gil(state_);
  }

  void release() {
    PyEval_SaveThread();
  }

  // GIL: held, and given up for good.
  void end() {
    PyThreadState_Clear(state_);
    PyThreadState_DeleteCurrent();
  }

 private:
  PyThreadState* state_;
};

} // namespace

Prober::Prober(Settings settings, Report report)
    : settings_(settings),
      report_(std::move(report)),
      log_(settings.threshold, settings.look_period),
      main_look_(std::make_unique<MainLook>([this] { report_holds(); })) {
  SignalsBlocked blocked;
  looker_ = std::thread(&Prober::look, this);
  try {
    knocker_ = std::thread(&Prober::knock, this);
  } catch (...) { // the system has no more threads
    stop();
    throw;
  }
}

Prober::~Prober() {
  stop();
  if (looker_.joinable()) { // the knocker is parked: see stop()
    looker_.join();
    knocker_.detach();
  }
}

void Prober::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_looker_.notify_one();
    wake_knocker_.notify_one();
    if (asking_ && interpreter_is_finalizing()) {
      // A thread that asked for the GIL before the interpreter began to shut
      // down, and has not got it, never gets it. The knocker is parked and uses
      // nothing of this any more; whoever waits for its end waits for ever.
      return;
    }
  }
  std::lock_guard joining(joining_);
  if (looker_.joinable()) {
    looker_.join();
  }
  if (knocker_.joinable()) {
    knocker_.join();
  }
  main_look_.reset();
}

int64_t Prober::knocks() const {
  std::lock_guard lock(mutex_);
  return knocks_;
}

// GIL: never held, never asked for.
void Prober::look() {
  name_this_thread("torchgil-look");
  std::minstd_rand random(std::random_device{}());
  // Random gaps cannot fall into step with the program. They are cut off at
  // twice their mean, so that a longer hold is met for certain. Where somebody
  // holds the GIL, the second look comes soon.
  std::exponential_distribution<double> gap(1.0);
  const void* before = nullptr;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Clock::duration pause = before != nullptr
        ? settings_.look_period
        : std::chrono::duration_cast<Clock::duration>(
              std::min(gap(random), 2.0) * settings_.mean_gap);
    wake_looker_.wait_for(lock, pause, [this] { return stopping_; });
    if (interpreter_is_finalizing()) {
      return; // it takes apart what is looked at
    }
    const void* holder = gil_holder();
    if (holder == nullptr || holder != before || stopping_) {
      before = holder;
      continue;
    }
    log_.begin(holder, gil_switches(), Clock::now());
    ++knocks_;
    waiting_ = true;
    wake_knocker_.notify_one();
    look_while_waiting(lock);
    before = nullptr;
  }
}

// GIL: never held, never asked for.
void Prober::look_while_waiting(std::unique_lock<std::mutex>& lock) {
  while (true) {
    wake_looker_.wait_for(
        lock, settings_.look_period, [this] { return stopping_ || !waiting_; });
    if (stopping_ || !waiting_ || interpreter_is_finalizing()) {
      return;
    }
    const uint64_t switches = gil_switches();
    const void* holder = gil_holder();
    if (switches != gil_switches()) {
      continue; // it goes from hand to hand: the next look is soon
    }
    log_.see(holder, switches, Clock::now());
    if (log_.getting_long()) {
      main_look_->ask();
    }
    if (log_.wants_queued_times()) {
      // 10 us a thread, without the lock: the knocker must not wait for it
      // when it gets the GIL meanwhile.
      lock.unlock();
      QueuedTimes times = queued_times();
      lock.lock();
      if (waiting_) {
        log_.set_queued_times(std::move(times));
      }
    }
  }
}

// GIL: asked for once per knock, held for microseconds, or while reporting; and
// once at the end, for the thread state.
void Prober::knock() {
  name_this_thread("torchgil-knock");
  ThreadState state;
  std::unique_lock lock(mutex_);
  bool last = false;
  while (!last) {
    wake_knocker_.wait(lock, [this] { return stopping_ || waiting_; });
    if (interpreter_is_finalizing()) {
      return; // it deletes the thread state itself
    }
    last = stopping_;
    asking_ = true;
    lock.unlock();
    state.acquire();
    lock.lock();
    asking_ = false; // before the GIL is given up: see stop()
    lock.unlock();
    if (last) {
      state.end();
    } else {
      report_holds();
      state.release();
      lock.lock();
    }
  }
}

// GIL: held throughout, since a moment ago.
void Prober::report_holds() {
  const Clock::time_point now = Clock::now();
  std::vector<Hold> holds;
  {
    std::lock_guard lock(mutex_);
    if (!waiting_) {
      return; // the other was first
    }
    waiting_ = false;
    holds = log_.finish(gil_holder(), gil_switches(), now);
  }
  wake_looker_.notify_one();
  for (const Hold& hold : holds) {
    report_(hold);
  }
}

} // namespace torchgil
