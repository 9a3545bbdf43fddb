// csrc/gil/watch/run_queue.h: how long each OS thread waited for a core.
#pragma once

#include <chrono>
#include <cstdint>
#include <unordered_map>

namespace torchgil {

/// Time a thread could have run but other threads had the cores, since it
/// began, from /proc/self/task/*/schedstat. Zero where the kernel has none.
std::chrono::nanoseconds queued_time(uint64_t native_id);

/// By OS thread id.
using QueuedTimes = std::unordered_map<uint64_t, std::chrono::nanoseconds>;

/// The same for every thread of the process.
QueuedTimes queued_times();

} // namespace torchgil
