// csrc/gil/priority/balance.h: what threads with priority leave to the others.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

namespace torchgil::priority {

/// For how long the threads with priority left the GIL to the others, less for
/// how long they kept it from those that wanted it. It decides who may ask the
/// holder to give way before the interpreter's own interval is over: threads
/// with priority owe what they kept in excess, and none of them asks before it
/// is paid; once they owe a turn, the others ask. So the two sides take turns
/// however short the windows are, and all threads with priority together take
/// no more from the others than they leave them.
///
/// A turn is a millisecond where the windows are too short to be handed over:
/// each switch costs some tens of microseconds. It is a tenth of that where the
/// windows are long: ops run meanwhile on the other cores, and in a millisecond
/// all of them would be done, their threads waiting, and the cores idle. No
/// more than a turn is owed, so what the system takes to give a woken thread a
/// core, where there are more threads than cores, is not paid for by anybody.
///
/// The GIL is kept from the moment that its holder gives way to one that asked
/// (nobody runs until that one has woken), or that one of the others finds it
/// taken, until one of the others has it: a window too short for them to come
/// back in is kept as well.
///
/// It belongs to one GIL, that of the main interpreter. Everything is called
/// with that GIL's mutex held.
class Balance {
 public:
  /// Whether a thread in a block has the GIL. One that got it with priority and
  /// is in none, as nogil's may be, would wait like any other once it is forced
  /// to give way: it is asked like any other.
  bool in_block() const {
    return blocks_ && blocks_->load(std::memory_order_relaxed) > 0;
  }

  /// A thread with priority finds the GIL with one of the others. Returns what
  /// is owed, in nanoseconds; 0 where it may ask at once.
  int64_t owed(int64_t now) {
    look(now);
    const int64_t owed = -at(now);
    return owed < kLeastWait ? 0 : owed;
  }

  /// One of the others finds the GIL with a thread in a block. Returns for
  /// how long it may be kept from them yet; 0 where it may ask at once.
  int64_t until_owed(int64_t now) {
    look(now);
    keep(now);
    const int64_t left = at(now) + turn(now);
    return left < kLeastWait ? 0 : left;
  }

  /// The GIL is taken by a thread that is in so many blocks; null: it never was
  /// in one.
  void taken(bool by_priority, const std::atomic<int64_t>* blocks) {
    by_priority_ = by_priority;
    blocks_ = blocks;
    if (!by_priority && kept_) {
      settle(std::max(left_, changed_)); // all since then was left to them
    }
  }

  /// A thread with priority lets the GIL go for a window that will be too short
  /// to be handed over, or not.
  void begins_window(bool is_short, int64_t now) {
    if (is_short) {
      ++short_in_a_row_;
    } else {
      short_in_a_row_ = 0;
      long_window_ = now;
    }
  }

  /// Whether it is counted at all.
  bool counts() const {
    return counts_;
  }

  /// The GIL is let go: to a thread with priority that asked, or to anybody.
  /// `now` is not looked at where nothing is counted.
  void released(bool to_one_that_asked, int64_t now) {
    blocks_ = nullptr;
    const bool by_priority = std::exchange(by_priority_, false);
    if (!counts_) {
      return;
    }
    if (by_priority) {
      left_ = now;
      counts_ = left_ - looked_ < kForgotten;
    } else if (to_one_that_asked) {
      keep(now);
    }
  }

 private:
  // No more than one is saved up or owed, or one long call would be paid for
  // long after it.
  static constexpr int64_t kTurn = 1'000'000;
  static constexpr int64_t kTurnOfLongWindows = 100'000;
  // Windows are long while the last long one is no older than that, and so many
  // short ones have not come since: ops that only make a view are among those
  // of any forward.
  static constexpr int64_t kRecent = 1'000'000;
  static constexpr uint64_t kInARow = 16;
  // Less is not waited for: the system's timers are 50 us late.
  static constexpr int64_t kLeastWait = 50'000;
  // Two switch intervals in which nobody found the GIL taken by the other side:
  // then no more looks at the clock until somebody does.
  static constexpr int64_t kForgotten = 10'000'000;

  int64_t turn(int64_t now) const {
    const bool are_long =
        short_in_a_row_ < kInARow && now - long_window_ < kRecent;
    return are_long ? kTurnOfLongWindows : kTurn;
  }

  int64_t at(int64_t now) const {
    const int64_t since = now - changed_;
    return std::clamp(balance_ + (kept_ ? -since : since), -turn(now), kTurn);
  }

  void look(int64_t now) {
    looked_ = now;
    if (!counts_) {
      counts_ = true;
      kept_ = false;
      balance_ = 0;
      changed_ = now;
    }
  }

  void keep(int64_t now) {
    if (!kept_) {
      settle(now);
      kept_ = true;
    }
  }

  void settle(int64_t now) {
    balance_ = at(now);
    changed_ = now;
    kept_ = false;
  }

  bool by_priority_ = false;                     // who has the GIL
  const std::atomic<int64_t>* blocks_ = nullptr; // the same thread's
  bool counts_ = false;
  bool kept_ = false;   // since changed_; else it is left since then
  int64_t balance_ = 0; // until changed_
  int64_t changed_ = 0;
  int64_t looked_ = 0;      // when one side last found the GIL with the other
  int64_t left_ = 0;        // when a thread with priority last let it go
  int64_t long_window_ = 0; // when the last one began
  uint64_t short_in_a_row_ = 0;
};

} // namespace torchgil::priority
