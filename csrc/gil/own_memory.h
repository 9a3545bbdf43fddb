// csrc/gil/own_memory.h: memory of this process, read where it may be gone.
#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <cstddef>

namespace torchgil {

/// Copies `size` bytes at an address of this process. False where they cannot
/// be read: then the address is no good, or the system refuses the call. What
/// another thread writes meanwhile may be read half.
inline bool read_memory(const void* at, void* into, size_t size) {
#ifdef __linux__
  const iovec from{const_cast<void*>(at), size};
  const iovec to{into, size};
  const ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
  return got == static_cast<ssize_t>(size);
#else
  return false;
#endif
}

template <typename T>
bool read_memory(const void* at, T& into) {
  return read_memory(at, &into, sizeof(T));
}

} // namespace torchgil
