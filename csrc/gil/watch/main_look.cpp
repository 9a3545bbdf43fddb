// csrc/gil/watch/main_look.cpp: has Python's main thread look before it goes
// on.
#include <Python.h>

#include "watch/main_look.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <utility>

namespace torchgil {

struct MainLook::Shared {
  explicit Shared(std::function<void()> f) : look(std::move(f)) {}

  const pid_t made_in = getpid();
  std::atomic<bool> asked{false};
  std::mutex mutex; // held while the function runs
  std::function<void()> look;
};

MainLook::MainLook(std::function<void()> look)
    : shared_(std::make_shared<Shared>(std::move(look))) {}

MainLook::~MainLook() {
  std::lock_guard lock(shared_->mutex);
  shared_->look = nullptr;
}

void MainLook::ask() {
  if (shared_->asked.exchange(true)) {
    return;
  }
  auto handed = std::make_unique<std::shared_ptr<Shared>>(shared_);
  if (Py_AddPendingCall(&MainLook::call, handed.get()) == 0) {
    handed.release(); // NOLINT: call() takes it over
  } else {            // the queue is full
    shared_->asked = false;
  }
}

// GIL: held throughout, by the main thread.
int MainLook::call(void* handed) {
  const std::unique_ptr<std::shared_ptr<Shared>> owned(
      static_cast<std::shared_ptr<Shared>*>(handed));
  Shared& shared = **owned;
  if (getpid() != shared.made_in) {
    return 0; // a fork's child: nobody there would let go of the lock
  }
  shared.asked = false;
  std::lock_guard lock(shared.mutex);
  if (shared.look) {
    shared.look();
  }
  return 0;
}

} // namespace torchgil
