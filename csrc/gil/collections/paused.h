// csrc/gil/collections/paused.h: no garbage collection starts meanwhile.
#pragma once

#include <Python.h>

namespace torchgil {

/// Before 3.12 any allocation may start a collection, which runs finalizers,
/// which are Python code: the GIL could change hands in the middle. None is
/// started while one of these lives. GIL: held throughout.
class CollectionPaused {
 public:
  CollectionPaused() : was_enabled_(PyGC_Disable()) {}
  ~CollectionPaused() {
    if (was_enabled_) {
      PyGC_Enable();
    }
  }
  CollectionPaused(const CollectionPaused&) = delete;
  CollectionPaused& operator=(const CollectionPaused&) = delete;

 private:
  int was_enabled_;
};

} // namespace torchgil
