// csrc/gil/proc_file.h: a file of /proc, read without any lock of libc.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

namespace torchgil {

/// What the file says, as far as so many bytes; nothing where it cannot be
/// read. Not through stdio or streams: fopen() waits for a lock that
/// fflush(nullptr) in another thread holds for as long as a reader is stuck.
inline std::optional<std::string> read_proc_file(
    const std::string& path, size_t most = 255) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return std::nullopt;
  }
  struct Closed {
    int descriptor;
    ~Closed() {
      close(descriptor);
    }
  } const closed{descriptor};
  std::string text;
  std::array<char, 4096> data; // NOLINT: what is read is set
  ssize_t size = 1;
  while (size > 0 && text.size() < most) {
    size = read(
        descriptor, data.data(), std::min(data.size(), most - text.size()));
    if (size < 0) {
      return std::nullopt;
    }
    text.append(data.data(), static_cast<size_t>(size));
  }
  return text;
}

} // namespace torchgil
