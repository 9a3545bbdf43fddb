// csrc/gil/os_thread.cpp: what the system says that a thread is doing.
#include "os_thread.h"

#include <cinttypes>
#include <cstdio>

#include "proc_file.h"
#include "tasks.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace torchgil {
namespace {

#if defined(__linux__)
constexpr int64_t kFutex = SYS_futex;

struct Name {
  int64_t number;
  const char* name;
};

// Those in which threads wait. Not every processor has all of them.
constexpr Name kNames[] = {
    {SYS_futex, "futex"},
    {SYS_read, "read"},
    {SYS_write, "write"},
    {SYS_readv, "readv"},
    {SYS_writev, "writev"},
    {SYS_pread64, "pread64"},
    {SYS_pwrite64, "pwrite64"},
    {SYS_ppoll, "ppoll"},
    {SYS_pselect6, "pselect6"},
    {SYS_epoll_pwait, "epoll_pwait"},
    {SYS_nanosleep, "nanosleep"},
    {SYS_clock_nanosleep, "clock_nanosleep"},
    {SYS_wait4, "wait4"},
    {SYS_waitid, "waitid"},
    {SYS_recvfrom, "recvfrom"},
    {SYS_recvmsg, "recvmsg"},
    {SYS_recvmmsg, "recvmmsg"},
    {SYS_sendto, "sendto"},
    {SYS_sendmsg, "sendmsg"},
    {SYS_connect, "connect"},
    {SYS_accept, "accept"},
    {SYS_accept4, "accept4"},
    {SYS_fcntl, "fcntl"},
    {SYS_flock, "flock"},
    {SYS_ioctl, "ioctl"},
    {SYS_openat, "openat"},
    {SYS_fsync, "fsync"},
    {SYS_fdatasync, "fdatasync"},
    {SYS_msync, "msync"},
    {SYS_sendfile, "sendfile"},
    {SYS_splice, "splice"},
    {SYS_msgrcv, "msgrcv"},
    {SYS_msgsnd, "msgsnd"},
    {SYS_semtimedop, "semtimedop"},
    {SYS_rt_sigtimedwait, "rt_sigtimedwait"},
    {SYS_rt_sigsuspend, "rt_sigsuspend"},
    {SYS_io_getevents, "io_getevents"},
    {SYS_sched_yield, "sched_yield"},
    {SYS_getdents64, "getdents64"},
    {SYS_munmap, "munmap"},
    {SYS_restart_syscall, "restart_syscall"},
    {SYS_clone, "clone"},
    {SYS_execve, "execve"},
#ifdef SYS_poll
    {SYS_poll, "poll"},
    {SYS_select, "select"},
    {SYS_epoll_wait, "epoll_wait"},
    {SYS_pause, "pause"},
    {SYS_open, "open"},
    {SYS_fork, "fork"},
    {SYS_vfork, "vfork"},
#endif
#ifdef SYS_io_uring_enter
    {SYS_io_uring_enter, "io_uring_enter"},
#endif
};
#else
constexpr int64_t kFutex = -2;
#endif

} // namespace

bool SystemCall::is_futex_in(uintptr_t begin, uintptr_t end) const {
  return number == kFutex && begin <= first && first < end;
}

std::string SystemCall::name() const {
#if defined(__linux__)
  for (const Name& known : kNames) {
    if (known.number == number) {
      return known.name;
    }
  }
#endif
  return "system call " + std::to_string(number);
}

// The file says "running", or the system call and its arguments.
SystemCall system_call_of(const std::string& folder) {
  SystemCall call;
  const auto text = read_proc_file(folder + "/syscall");
  if (text &&
      std::sscanf(
          text->c_str(),
          "%" SCNd64 " %" SCNx64 " %*x %*x %*x %*x %*x %" SCNx64,
          &call.number,
          &call.first,
          &call.stack) != 3) {
    call = {};
  }
  call.known = text.has_value();
  return call;
}

std::string folder_of(uint64_t native_id) {
  return "/proc/self/task/" + std::to_string(native_id);
}

uint64_t this_native_id() {
#if defined(__linux__)
  return static_cast<uint64_t>(syscall(SYS_gettid));
#else
  return 0;
#endif
}

std::string system_name_of(const std::string& folder) {
  std::string name = read_proc_file(folder + "/comm").value_or("");
  if (name.ends_with('\n')) {
    name.pop_back();
  }
  return name;
}

std::vector<int64_t> sleepers_on(uintptr_t begin, uintptr_t end) {
  std::vector<int64_t> found;
  for_each_task([&](const std::string& folder, uint64_t id) {
    if (system_call_of(folder).is_futex_in(begin, end)) {
      found.push_back(static_cast<int64_t>(id));
    }
  });
  return found;
}

} // namespace torchgil
