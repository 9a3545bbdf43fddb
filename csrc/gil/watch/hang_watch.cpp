// csrc/gil/watch/hang_watch.cpp: see hang_watch.h.
#include "watch/hang_watch.h"

#include "watch/run_queue.h"

#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace torchgil {
namespace {

constexpr int kExitCode = 70;     // EX_SOFTWARE of sysexits.h
constexpr int kPatienceMs = 1000; // with whoever should read a pipe
constexpr auto kBetween = std::chrono::milliseconds(1);

} // namespace

HangWatch::File HangWatch::file_behind(int descriptor) {
  struct stat found{};
  if (fstat(descriptor, &found) != 0) {
    return {};
  }
  return {found.st_dev, found.st_ino};
}

bool HangWatch::due(const Hold& hold) {
  if (settings_.after == Clock::duration::zero() || hold.holder == nullptr) {
    return false;
  }
  if (hold.holder != holder_ || hold.first != first_) {
    holder_ = hold.holder;
    first_ = hold.first;
    next_ = settings_.after;
  }
  const bool ends = settings_.exit_after != Clock::duration::zero() &&
      hold.length() >= settings_.exit_after;
  return hold.length() > next_ || ends;
}

std::shared_ptr<const Hang> HangWatch::look(
    const Hold& hold, uint64_t switches) {
  // Ten looks must be over before a hang is that just lasts long enough.
  const auto between =
      std::min<Clock::duration>(kBetween, settings_.after / 100);
  auto hang = look_at_hang(
      hold.holder, switches, known_, {settings_.read_stacks, between});
  if (hang == nullptr) {
    return nullptr;
  }
  Clock::duration queued{};
  const auto before = hold.queued_before.find(hang->holder.who.native_id);
  if (before != hold.queued_before.end()) {
    queued = queued_time(before->first) - before->second;
  }
  if (!is_long(hold.length(), queued, settings_.after, settings_.turn)) {
    next_ = hold.length() + settings_.after / 4;
    return nullptr;
  }
  while (next_ < hold.length()) {
    next_ *= 2;
  }
  return hang;
}

void HangWatch::tell(const Hold& hold, const Hang& hang) {
  write(in_words(hang, hold.length()));
  if (settings_.exit_after != Clock::duration::zero() &&
      hold.length() >= settings_.exit_after) {
    write(
        "torchgil: this process ends with exit code 70, since the GIL was held "
        "for so long\n");
    _exit(kExitCode);
  }
}

void HangWatch::tell_end(const Hang& hang, Clock::duration length) const {
  write(end_in_words(hang, length));
}

// Whole lines, in pieces that a pipe takes at once. Nobody may wait here for
// ever, for a reader that is stuck itself, say: the rest is dropped then.
void HangWatch::write(std::string_view text) const {
  // A program may close a descriptor that was given to us, and have another
  // file under its number. Standard error is whatever it is now.
  if (settings_.output != STDERR_FILENO &&
      file_behind(settings_.output) != file_) {
    return;
  }
  while (!text.empty()) {
    size_t size = std::min<size_t>(text.size(), PIPE_BUF);
    if (size < text.size()) {
      const size_t line = text.substr(0, size).rfind('\n');
      size = line == std::string_view::npos ? size : line + 1;
    }
    pollfd ready{settings_.output, POLLOUT, 0};
    int found = 0;
    do {
      found = poll(&ready, 1, kPatienceMs);
    } while (found < 0 && errno == EINTR);
    if (found <= 0) {
      return;
    }
    const ssize_t written = ::write(settings_.output, text.data(), size);
    if (written < 0 && errno != EINTR) {
      return; // it is closed, or full
    }
    text.remove_prefix(std::max<ssize_t>(written, 0));
  }
}

} // namespace torchgil
