// csrc/gil/watch/looker.cpp: see looker.h.
#include "watch/looker.h"

#include "native_thread.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <new>
#include <thread>

namespace torchgil::looker {
namespace {

struct Entry {
  LookClient* client;
  Clock::time_point due;
};

/// The thread, and who wants its looks.
class Looker {
 public:
  void add(LookClient& client, Clock::time_point first) {
    std::lock_guard changing(changing_);
    std::lock_guard lock(mutex_);
    entries_.push_back({&client, first});
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
      const auto next = std::min_element(
          entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
            return a.due < b.due;
          });
      auto now = Clock::now();
      if (next->due > now) {
        // Whoever is added or removed wakes it. Not until kNever, which the
        // system's clock cannot say. A copy: the entry may be gone when the
        // wait ends, and the moment is looked at again then.
        const Clock::time_point until = std::min(next->due, now + kLongest);
        wake_.wait_until(lock, until);
        continue;
      }
      for (Entry& entry : entries_) {
        try {
          entry.due = &entry == &*next
              ? entry.client->look(now)
              : entry.client->look_along(now, entry.due);
        } catch (const std::bad_alloc&) {
          entry.due = now + kWithoutMemory;
        }
      }
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
