// csrc/gil/tasks.h: the threads of this process, as the system lists them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

namespace torchgil {

/// Calls `visit(folder, id)` for each: its folder in /proc, and the operating
/// system's number of it. None where there is no such folder. A thread may end
/// between being listed and being read.
template <typename Visit>
void for_each_task(const Visit& visit) {
  std::error_code gone;
  std::filesystem::directory_iterator tasks("/proc/self/task", gone), end;
  while (!gone && tasks != end) {
    const std::filesystem::path& folder = tasks->path();
    visit(folder.string(), uint64_t{std::stoull(folder.filename().string())});
    tasks.increment(gone);
  }
}

} // namespace torchgil
