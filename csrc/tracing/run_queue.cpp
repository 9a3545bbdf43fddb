// csrc/tracing/run_queue.cpp: how long each OS thread waited for a core.
#include "tracing/run_queue.h"

#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>

namespace torchgil {

std::chrono::nanoseconds queued_time(uint64_t native_id) {
  const std::string path =
      "/proc/self/task/" + std::to_string(native_id) + "/schedstat";
  int64_t queued = 0;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    // Three numbers: nanoseconds on a core, nanoseconds queued, turns.
    if (std::fscanf(file, "%*d %" SCNd64, &queued) != 1) {
      queued = 0;
    }
    std::fclose(file);
  }
  return std::chrono::nanoseconds(queued);
}

QueuedTimes queued_times() {
  QueuedTimes times;
  std::error_code gone; // a thread may end between being listed and being read
  std::filesystem::directory_iterator tasks("/proc/self/task", gone), end;
  while (!gone && tasks != end) {
    const uint64_t id = std::stoull(tasks->path().filename().string());
    times[id] = queued_time(id);
    tasks.increment(gone);
  }
  return times;
}

} // namespace torchgil
