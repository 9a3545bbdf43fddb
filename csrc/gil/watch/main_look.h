// csrc/gil/watch/main_look.h: has Python's main thread look before it goes on.
#pragma once

#include <functional>
#include <memory>

namespace torchgil {

/// Calls a function in the main thread as soon as that runs Python code again:
/// before its next call, and before it gives the GIL away.
///
/// A thread that asks for the GIL is one of several. If the main thread gets it
/// first, as it does when it waits for the culprit to start or to end, the
/// culprit may be through, and its thread gone, when the others' turn comes.
class MainLook {
 public:
  explicit MainLook(std::function<void()> look);

  /// The function is not running then, and will not be called any more.
  /// GIL: must not be held: the main thread may be in the function.
  ~MainLook();

  MainLook(const MainLook&) = delete;
  MainLook& operator=(const MainLook&) = delete;

  /// Asks for one call; nothing where one is asked for already. GIL: not
  /// needed.
  void ask();

 private:
  struct Shared;
  static int call(void* shared);

  std::shared_ptr<Shared> shared_; // with what waits in the interpreter's queue
};

} // namespace torchgil
