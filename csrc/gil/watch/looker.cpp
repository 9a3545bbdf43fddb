// csrc/gil/watch/looker.cpp: see looker.h.
#include "watch/looker.h"

#include "native_thread.h"
#include "watch/stops.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

namespace torchgil::looker {
namespace {

struct Entry {
  LookClient* client;
  NextLook next;
  Clock::duration stopped{}; // of the time since its last look

  /// It takes no other moment than its own.
  bool is_strict() const {
    return next.early == Clock::duration::zero() &&
        next.late == Clock::duration::zero();
  }
};

/// The thread, and who wants its looks.
class Looker {
 public:
  void add(LookClient& client, Clock::time_point first) {
    std::lock_guard changing(changing_);
    std::lock_guard lock(mutex_);
    entries_.push_back({&client, {first}});
    if (thread_.joinable()) {
      wake_.notify_one();
      return;
    }
    try {
      SignalsBlocked blocked;
      thread_ = std::thread(&Looker::run, this);
    } catch (...) { // the system has no more threads
      entries_.clear();
      throw;
    }
  }

  void remove(LookClient& client) {
    std::lock_guard changing(changing_);
    {
      std::lock_guard lock(mutex_);
      std::erase_if(entries_, [&](const Entry& entry) {
        return entry.client == &client;
      });
      if (!entries_.empty() || !thread_.joinable()) {
        return;
      }
      wake_.notify_one();
    }
    thread_.join();
  }

 private:
  // GIL: never held, never asked for.
  void run() {
    name_this_thread("torchgil-look");
    std::unique_lock lock(mutex_);
    while (!entries_.empty()) {
      Clock::time_point next = kNever;
      for (const Entry& entry : entries_) {
        next = std::min(next, waking_moment(entry));
      }
      const auto now = Clock::now();
      if (next > now) {
        // Not until kNever, which the system's clock cannot say.
        sleep(lock, now, std::min(next, now + kLongest));
        continue;
      }
      for (Entry& entry : entries_) {
        if (entry.next.due - entry.next.early <= now) {
          call(entry, now);
        }
      }
    }
  }

  /// Or until somebody is added or removed.
  void sleep(
      std::unique_lock<std::mutex>& lock,
      Clock::time_point now,
      Clock::time_point until) {
    try {
      stops_.falls_asleep(now);
      wake_.wait_until(lock, until);
      const auto stopped = stops_.woke_up(until);
      for (Entry& entry : entries_) {
        entry.stopped += stopped;
      }
    } catch (const std::bad_alloc&) { // a stop is missed, if there was one
    }
  }

  /// Its own moment, or a later one that will do, at which the thread wakes in
  /// any case.
  Clock::time_point waking_moment(const Entry& entry) const {
    Clock::time_point moment = entry.next.due + entry.next.late;
    bool shared = false;
    for (const Entry& other : entries_) {
      if (other.is_strict() && other.next.due >= entry.next.due &&
          other.next.due <= moment) {
        moment = other.next.due;
        shared = true;
      }
    }
    return shared ? moment : entry.next.due;
  }

  static void call(Entry& entry, Clock::time_point now) {
    const auto stopped = std::exchange(entry.stopped, {});
    try {
      entry.next = entry.client->look(now, stopped);
    } catch (const std::bad_alloc&) {
      entry.next = {now + kWithoutMemory};
    }
  }

  // A process that has no memory left is not to end for a look.
  static constexpr Clock::duration kWithoutMemory =
      std::chrono::milliseconds(100);
  static constexpr Clock::duration kLongest = std::chrono::hours(1);

  std::mutex changing_; // by who adds or removes, until the thread has ended
  std::mutex mutex_;    // of what follows
  std::condition_variable wake_;
  std::list<Entry> entries_;
  Stops stops_;
  std::thread thread_; // only who has `changing_` starts or joins it
};

// Never destroyed, for a thread of it may run when the process ends; and made
// anew in the child of a fork, where the parent's thread is not, and its locks
// may be held for good.
Looker* the_looker = new Looker;
const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { the_looker = new Looker; });

} // namespace

void add(LookClient& client, Clock::time_point first) {
  the_looker->add(client, first);
}

void remove(LookClient& client) {
  the_looker->remove(client);
}

} // namespace torchgil::looker
