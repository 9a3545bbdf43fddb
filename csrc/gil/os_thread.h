// csrc/gil/os_thread.h: what the system says that a thread is doing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torchgil {

/// A thread that sleeps in the kernel: the system call that it is in. From
/// /proc/self/task/*/syscall, which says "running" of any other.
struct SystemCall {
  bool known = false;  // false: it has ended, or there is no such file
  int64_t number = -1; // -1: it runs, or is not known
  uint64_t first = 0;  // the call's first argument; of a futex its address
  uint64_t stack = 0;  // the top of the thread's stack

  bool operator==(const SystemCall&) const = default;

  bool is_futex_in(uintptr_t begin, uintptr_t end) const;

  /// "futex", "read"; "system call 123" for those that rarely wait.
  std::string name() const;
};

/// `folder`: the thread's in /proc. Some 10 us.
SystemCall system_call_of(const std::string& folder);

/// A thread's folder in /proc.
std::string folder_of(uint64_t native_id);

/// The calling thread's number; 0 where there is no such folder.
uint64_t this_native_id();

/// The system's name for a thread; empty where it has ended.
std::string system_name_of(const std::string& folder);

/// The threads of this process, by the system's numbers, that sleep on a futex
/// at an address in [begin, end).
std::vector<int64_t> sleepers_on(uintptr_t begin, uintptr_t end);

} // namespace torchgil
