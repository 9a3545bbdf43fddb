// csrc/gil/watch/prober.cpp: finds who holds the GIL long.
#include <Python.h>

#include "watch/prober.h"

#include <algorithm>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include <torchgil/gil.h>
#include "cpython/gil_holder.h"
#include "native_thread.h"

namespace torchgil {
namespace {

constexpr int kLongestGap = 2; // of the mean

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

Prober::Prober(
    const Settings& settings,
    const KnownThreads& known,
    Report report,
    Knocked knocked)
    : settings_(settings),
      report_(std::move(report)),
      knocked_(std::move(knocked)),
      log_(settings.threshold, settings.look_period),
      main_look_(std::make_unique<MainLook>([this] { report_holds(); })),
      hangs_(settings.hangs, known) {
  {
    SignalsBlocked blocked;
    knocker_ = std::thread(&Prober::knock, this);
  }
  try {
    looker::add(*this, Clock::now());
  } catch (...) { // the system has no more threads
    stop();
    throw;
  }
}

Prober::~Prober() {
  stop();
  if (knocker_.joinable()) { // it is parked: see stop()
    knocker_.detach();
  }
}

void Prober::stop() {
  looker::remove(*this);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_knocker_.notify_one();
    if (asking_ && interpreter_is_finalizing()) {
      // A thread that asked for the GIL before the interpreter began to shut
      // down, and has not got it, never gets it. The knocker is parked and uses
      // nothing of this any more; whoever waits for its end waits for ever.
      return;
    }
  }
  std::lock_guard joining(joining_);
  if (knocker_.joinable()) {
    knocker_.join();
  }
  main_look_.reset();
}

int64_t Prober::knocks() const {
  std::lock_guard lock(mutex_);
  return knocks_;
}

Clock::duration Prober::holding() const {
  std::lock_guard lock(mutex_);
  return waiting_ ? log_.current().length() : Clock::duration::zero();
}

// GIL: never held, never asked for.
NextLook Prober::look(Clock::time_point now, Clock::duration stopped) {
  std::unique_lock lock(mutex_);
  if (interpreter_is_finalizing()) {
    return {looker::kNever}; // it takes apart what is looked at
  }
  if (waiting_) {
    stopped_ += stopped;
    look_while_waiting(lock);
    return while_waiting();
  }
  if (waited_) { // until a moment ago
    waited_ = false;
    if (told_) {
      tell_end_of_hang(lock);
    }
    return after_random_gap(now);
  }
  return look_at_rest(now);
}

// Random gaps cannot fall into step with the program. They are cut off, so that
// a hold that is longer than the longest is met for certain. A monitor's looks
// come at random, too. Of those every 5 ms, one lies in the room left here in
// 99 of 100 cases, and the gap stays as long on average: a busy thread is not
// asked for the GIL more often.
NextLook Prober::after_random_gap(Clock::time_point now) {
  std::exponential_distribution<double> distribution(1.0);
  const Clock::duration longest = kLongestGap * settings_.mean_gap;
  const auto gap = std::min(
      std::chrono::duration_cast<Clock::duration>(
          distribution(random_) * settings_.mean_gap),
      longest);
  return {now + gap, gap / 3, longest - gap};
}

NextLook Prober::while_waiting() const {
  const Clock::duration period = settings_.look_period;
  return {Clock::now() + period, period, period};
}

// Where somebody holds the GIL, the second look comes soon; not at once, for
// then many a short hold would be met twice.
NextLook Prober::look_at_rest(Clock::time_point now) {
  const void* holder = gil_holder();
  const void* before = std::exchange(before_, holder);
  if (holder == nullptr) {
    return after_random_gap(now);
  }
  if (holder == before) {
    log_.begin(holder, gil_switches(), Clock::now());
    stopped_ = {};
    ++knocks_;
    waiting_ = waited_ = true;
    before_ = nullptr;
    wake_knocker_.notify_one();
    return while_waiting();
  }
  const Clock::duration period = settings_.look_period;
  return {Clock::now() + period, period / 2, period};
}

void Prober::look_while_waiting(std::unique_lock<std::mutex>& lock) {
  const uint64_t switches = gil_switches();
  const void* holder = gil_holder();
  if (switches != gil_switches()) {
    return; // it goes from hand to hand: the next look is soon
  }
  log_.see(holder, switches, Clock::now(), std::exchange(stopped_, {}));
  if (told_ && log_.current().hang == told_) {
    told_length_ = log_.current().length();
  } else if (told_) {
    tell_end_of_hang(lock);
  }
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
  if (waiting_ && hangs_.due(log_.current())) {
    look_at_hang(lock, switches);
  }
}

// Without the lock for as long as it takes: the knocker must not wait for it.
void Prober::look_at_hang(
    std::unique_lock<std::mutex>& lock, uint64_t switches) {
  const Hold hold = log_.current();
  lock.unlock();
  auto hang = hangs_.look(hold, switches);
  lock.lock();
  if (hang == nullptr || !waiting_ || !log_.goes_on(hold)) {
    return;
  }
  log_.set_hang(hang);
  told_ = std::move(hang);
  told_length_ = hold.length();
  lock.unlock();
  hangs_.tell(hold, *told_);
  lock.lock();
}

void Prober::tell_end_of_hang(std::unique_lock<std::mutex>& lock) {
  const auto ended = std::exchange(told_, nullptr);
  lock.unlock();
  hangs_.tell_end(*ended, told_length_);
  lock.lock();
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
    if (stopping_ && told_) { // it has ended: whoever stops this had the GIL
      // Here, and not in the thread that stops this, which SIGPIPE could end.
      tell_end_of_hang(lock);
    }
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
      knocked_();
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
    try {
      holds = log_.finish(gil_holder(), gil_switches(), now);
    } catch (const std::bad_alloc&) { // they are lost, and the process goes on
      return;
    }
  }
  for (const Hold& hold : holds) {
    report_(hold);
  }
}

} // namespace torchgil
