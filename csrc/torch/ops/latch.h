// csrc/torch/ops/latch.h: a door that one thread opens and others wait at.
#pragma once

#include <condition_variable>
#include <mutex>

namespace torchgil {

/// Opens once and stays open. Knows nothing of the GIL: whether a waiting
/// thread keeps it is the caller's policy, and that is the proof it serves.
/// With the GIL kept, no other Python thread can come to open it.
class Latch {
 public:
  void open();
  bool is_open() const;
  /// Blocks until the latch is open or `timeout` seconds passed; whether it is
  /// open then.
  bool wait(double timeout) const;

 private:
  // Never held while anybody asks for the GIL: neither side calls Python.
  mutable std::mutex mutex_;
  mutable std::condition_variable opened_;
  bool open_ = false;
};

} // namespace torchgil
