// csrc/gil/trace/futex_waiters.h: which threads sleep on a lock.
#pragma once

#include <cstdint>
#include <vector>

namespace torchgil {

/// The threads of this process, by the OS's ids, that sleep on a futex at an
/// address in [begin, end), from /proc/self/task/*/syscall. Empty where the
/// kernel has no such files. 10 us a thread.
std::vector<int64_t> futex_waiters(uintptr_t begin, uintptr_t end);

} // namespace torchgil
