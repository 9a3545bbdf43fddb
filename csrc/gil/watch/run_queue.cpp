// csrc/gil/watch/run_queue.cpp: how long each OS thread waited for a core.
#include "watch/run_queue.h"

#include <cinttypes>
#include <cstdio>
#include <string>

#include "os_thread.h"
#include "tasks.h"

namespace torchgil {

std::chrono::nanoseconds queued_time(uint64_t native_id) {
  const std::string path = folder_of(native_id) + "/schedstat";
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
  for_each_task(
      [&](const std::string&, uint64_t id) { times[id] = queued_time(id); });
  return times;
}

} // namespace torchgil
