// csrc/gil/watch/monitor.cpp: counts who holds the GIL, look by look.
#include "watch/monitor.h"

#include "collections/collections.h"
#include "cpython/gil_holder.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace torchgil {

Monitor::Monitor(Clock::duration interval, size_t kept)
    : interval_(interval), kept_(kept) {
  looker::add(*this, next_look(Clock::now()));
}

Monitor::~Monitor() {
  stop();
}

void Monitor::stop() {
  {
    std::lock_guard lock(mutex_);
    if (!stopping_) {
      stopping_ = true;
      until_ = Clock::now();
    }
  }
  looker::remove(*this);
}

// A random moment of the stretch after the last one, or of the first that is
// not over where this thread got no core in time.
Clock::time_point Monitor::next_look(Clock::time_point now) {
  if (now > stretch_ + interval_) {
    stretch_ += (now - stretch_) / interval_ * interval_;
  }
  std::uniform_int_distribution<Clock::rep> moment(0, interval_.count() - 1);
  const auto at = stretch_ + Clock::duration(moment(random_));
  stretch_ += interval_;
  return at;
}

// GIL: never held, never asked for.
NextLook Monitor::look(Clock::time_point now, Clock::duration stopped) {
  std::lock_guard lock(mutex_);
  if (stopping_) {
    return {looker::kNever};
  }
  ++count_;
  Look look{now, nullptr, false};
  if (const void* state = gil_holder()) {
    look.collecting = collections::collecting() == state;
    look.holder = &holders_.at(state);
    ++look.holder->looks;
    look.holder->collecting += look.collecting;
    ++look.holder->kept;
  }
  if (looks_.size() < kept_) {
    looks_.push_back(look);
  } else {
    kept_since_ = looks_[oldest_].when;
    if (Holder* before = std::exchange(looks_[oldest_], look).holder) {
      --before->kept;
    }
    oldest_ = (oldest_ + 1) % kept_;
  }
  return {next_look(now)};
}

Monitor::Counts Monitor::take() {
  std::lock_guard lock(mutex_);
  const auto now = stopping_ ? until_ : Clock::now();
  Counts counts;
  counts.looks = std::exchange(count_, 0);
  counts.covered = now - std::exchange(since_, now);
  for (Holder& holder : holders_.all()) {
    if (holder.looks > 0) {
      counts.held.push_back(
          {&holder,
           std::exchange(holder.looks, 0),
           std::exchange(holder.collecting, 0)});
    }
  }
  return counts;
}

Monitor::Counts Monitor::last(Clock::duration window) const {
  std::lock_guard lock(mutex_);
  const auto now = stopping_ ? until_ : Clock::now();
  const auto from = std::max(now - window, kept_since_);
  Counts counts;
  counts.covered = now - from;
  std::unordered_map<Holder*, Held> held;
  for (const Look& look : looks_) {
    if (look.when < from) {
      continue;
    }
    ++counts.looks;
    if (look.holder) {
      Held& of =
          held.try_emplace(look.holder, Held{look.holder, 0, 0}).first->second;
      ++of.looks;
      of.collecting += look.collecting;
    }
  }
  for (const auto& [_, of] : held) {
    counts.held.push_back(of);
  }
  return counts;
}

void Monitor::reset() {
  std::lock_guard lock(mutex_);
  since_ = kept_since_ = stopping_ ? until_ : Clock::now();
  count_ = 0;
  looks_.clear();
  oldest_ = 0;
  for (Holder& holder : holders_.all()) {
    holder.looks = holder.collecting = holder.kept = 0;
  }
  holders_.prune();
}

bool Monitor::begin_thread(const void* state, uint64_t id, std::string name) {
  std::lock_guard lock(mutex_);
  return holders_.begin(state, id, std::move(name));
}

void Monitor::end_thread(const void* state, std::string name) {
  std::lock_guard lock(mutex_);
  holders_.end(state, std::move(name));
}

std::vector<Holder*> Monitor::living() {
  std::lock_guard lock(mutex_);
  std::vector<Holder*> found;
  for (Holder& holder : holders_.all()) {
    if (!holder.ended) {
      found.push_back(&holder);
    }
  }
  return found;
}

void Monitor::name(Holder& holder, uint64_t id, std::string name) {
  std::lock_guard lock(mutex_);
  holder.id = id;
  holder.name = std::move(name);
}

void Monitor::has_ended(Holder& holder) {
  std::lock_guard lock(mutex_);
  holders_.has_ended(holder);
}

void Monitor::forget_ended() {
  std::lock_guard lock(mutex_);
  holders_.prune();
}

} // namespace torchgil
