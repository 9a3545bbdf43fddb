// csrc/gil/trace/futex_waiters.cpp: which threads sleep on a lock.
#include "trace/futex_waiters.h"

#include <cinttypes>
#include <cstdio>
#include <string>

#include "tasks.h"

#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace torchgil {

#if defined(__linux__)

namespace {

// The file says "running", or the system call and its arguments.
bool sleeps_on(const std::string& task, uintptr_t begin, uintptr_t end) {
  std::FILE* file = std::fopen((task + "/syscall").c_str(), "re");
  if (!file) {
    return false;
  }
  long call = -1;
  uint64_t address = 0;
  const int found = std::fscanf(file, "%ld %" SCNx64, &call, &address);
  std::fclose(file);
  return found == 2 && call == SYS_futex && begin <= address && address < end;
}

} // namespace

std::vector<int64_t> futex_waiters(uintptr_t begin, uintptr_t end) {
  std::vector<int64_t> waiters;
  for_each_task([&](const std::string& task, uint64_t id) {
    if (sleeps_on(task, begin, end)) {
      waiters.push_back(static_cast<int64_t>(id));
    }
  });
  return waiters;
}

#else

std::vector<int64_t> futex_waiters(uintptr_t, uintptr_t) {
  return {};
}

#endif

} // namespace torchgil
