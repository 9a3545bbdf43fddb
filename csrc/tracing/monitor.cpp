// csrc/tracing/monitor.cpp: a native thread that counts who holds the GIL.
#include "tracing/monitor.h"

#include "tracing/gil_holder.h"
#include "tracing/native_thread.h"

#include <algorithm>
#include <utility>

namespace torchgil {

Monitor::Monitor(Clock::duration interval, size_t kept)
    : interval_(interval), kept_(kept) {
  SignalsBlocked blocked;
  thread_ = std::thread(&Monitor::run, this);
}

Monitor::~Monitor() {
  stop();
}

void Monitor::stop() {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) {
      return;
    }
    stopping_ = true;
    until_ = Clock::now();
  }
  wake_.notify_one();
  thread_.join();
}

// A random moment of the stretch after the last one, or of the first that is
// not over where this thread got no core in time.
Monitor::Clock::time_point Monitor::next_look(Clock::time_point now) {
  if (now > stretch_ + interval_) {
    stretch_ += (now - stretch_) / interval_ * interval_;
  }
  std::uniform_int_distribution<Clock::rep> moment(0, interval_.count() - 1);
  const auto at = stretch_ + Clock::duration(moment(random_));
  stretch_ += interval_;
  return at;
}

// GIL: never held, never asked for.
void Monitor::run() {
  name_this_thread("torchgil-count");
  std::unique_lock lock(mutex_);
  auto now = Clock::now();
  while (true) {
    wake_.wait_until(lock, next_look(now), [this] { return stopping_; });
    if (stopping_) {
      return;
    }
    now = Clock::now();
    const void* holder = gil_holder();
    ++counts_.looks;
    if (holder) {
      ++counts_.held[holder];
    }
    if (looks_.size() < kept_) {
      looks_.push_back({now, holder});
    } else {
      kept_since_ = looks_[oldest_].when;
      looks_[oldest_] = {now, holder};
      oldest_ = (oldest_ + 1) % kept_;
    }
  }
}

Monitor::Counts Monitor::take() {
  std::lock_guard lock(mutex_);
  const auto now = stopping_ ? until_ : Clock::now();
  counts_.covered = now - std::exchange(since_, now);
  return std::exchange(counts_, {});
}

Monitor::Counts Monitor::last(Clock::duration window) const {
  std::lock_guard lock(mutex_);
  const auto now = stopping_ ? until_ : Clock::now();
  const auto from = std::max(now - window, kept_since_);
  Counts counts;
  counts.covered = now - from;
  for (const Look& look : looks_) {
    if (look.when >= from) {
      ++counts.looks;
      if (look.holder) {
        ++counts.held[look.holder];
      }
    }
  }
  return counts;
}

void Monitor::reset() {
  std::lock_guard lock(mutex_);
  since_ = kept_since_ = stopping_ ? until_ : Clock::now();
  counts_ = {};
  looks_.clear();
  oldest_ = 0;
}

} // namespace torchgil
