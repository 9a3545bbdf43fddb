// csrc/gil/tasks.h: the threads of this process, as the system lists them.
#pragma once

#include <dirent.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

namespace torchgil {

/// Calls `visit(folder, id)` for each: its folder in /proc, and the operating
/// system's number of it. None where there is no such folder. A thread may end
/// between being listed and being read.
///
/// Not by std::filesystem, which ends the process where it gets no memory.
template <typename Visit>
void for_each_task(const Visit& visit) {
  const std::string all = "/proc/self/task/";
  struct Close {
    void operator()(DIR* tasks) const {
      closedir(tasks);
    }
  };
  const std::unique_ptr<DIR, Close> tasks(opendir(all.c_str()));
  while (const dirent* task = tasks ? readdir(tasks.get()) : nullptr) {
    if (const uint64_t id = std::strtoull(task->d_name, nullptr, 10)) {
      visit(all + task->d_name, id); // not "." and ".."
    }
  }
}

} // namespace torchgil
