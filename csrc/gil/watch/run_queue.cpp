// csrc/gil/watch/run_queue.cpp: how long each OS thread waited for a core.
#include "watch/run_queue.h"

#include <cinttypes>
#include <cstdio>
#include <string>

#include "os_thread.h"
#include "proc_file.h"
#include "tasks.h"

namespace torchgil {

std::chrono::nanoseconds queued_time(uint64_t native_id) {
  const auto text = read_proc_file(folder_of(native_id) + "/schedstat");
  int64_t queued = 0;
  // Three numbers: nanoseconds on a core, nanoseconds queued, turns.
  if (!text || std::sscanf(text->c_str(), "%*d %" SCNd64, &queued) != 1) {
    queued = 0;
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
