// csrc/gil/cpython/gil_holder.cpp: which thread holds the GIL, read without it.
//
// No public function answers this, so each version is asked in its own way:
//   3.10, 3.11  the runtime's current thread state, which is set after the GIL
//               was taken and cleared before it is given up; the switches are
//               the GIL's own field, through the internal header;
//   3.12        the GIL's own fields, through the internal header;
//   3.13, 3.14  the same fields, through the offsets that CPython publishes
//               for debuggers at the start of _PyRuntime; the count of switches
//               is the word behind `locked`, as in all versions before.
// Wherever the answer cannot be trusted, gil_holder_known() says so.
#include <patchlevel.h>

#if PY_VERSION_HEX < 0x030D0000
#define Py_BUILD_CORE 1 // must stand before Python.h
#endif
#include <Python.h>

#include "cpython/gil_holder.h"

#include <pthread.h>

#if PY_VERSION_HEX < 0x030D0000
// The header's own C11 atomics are not C++; its fallback reads the same words.
#undef HAVE_STD_ATOMIC
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>
#else
#include <cstdint>
#include <cstring>
extern "C" const char _PyRuntime[];
#endif

namespace torchgil {

namespace {

[[maybe_unused]] GilMemory memory_of(const void* gil, size_t size) noexcept {
  const auto begin = reinterpret_cast<uintptr_t>(gil);
  return gil ? GilMemory{begin, begin + size} : GilMemory{};
}

} // namespace

#if PY_VERSION_HEX < 0x030C0000

bool gil_holder_known() noexcept {
  return true;
}

const void* gil_holder() noexcept {
  return _PyThreadState_UncheckedGet();
}

uint64_t gil_switches() noexcept {
  return __atomic_load_n(&_PyRuntime.ceval.gil.switch_number, __ATOMIC_RELAXED);
}

bool has_main_gil(const PyThreadState*) noexcept {
  return true; // there is one for all interpreters
}

GilMemory gil_memory() noexcept {
  return memory_of(&_PyRuntime.ceval.gil, sizeof(_PyRuntime.ceval.gil));
}

#elif PY_VERSION_HEX < 0x030D0000

bool gil_holder_known() noexcept {
  return true;
}

const void* gil_holder() noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  if (main == nullptr) {
    return nullptr; // the interpreter has ended
  }
  const _gil_runtime_state* gil = main->ceval.gil;
  // `locked` is -1 before the first thread; `last_holder` outlives a release.
  if (_Py_atomic_load_relaxed(&gil->locked) != 1) {
    return nullptr;
  }
  return reinterpret_cast<const void*>(
      _Py_atomic_load_relaxed(&gil->last_holder));
}

uint64_t gil_switches() noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  return main == nullptr
      ? 0
      : __atomic_load_n(&main->ceval.gil->switch_number, __ATOMIC_RELAXED);
}

bool has_main_gil(const PyThreadState* state) noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  return main == nullptr || state->interp == main ||
      state->interp->ceval.gil == main->ceval.gil;
}

GilMemory gil_memory() noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  return main ? memory_of(main->ceval.gil, sizeof(*main->ceval.gil))
              : GilMemory{};
}

#else

namespace {

/// How `struct _Py_DebugOffsets` begins.
struct DebugOffsets {
  char cookie[8];
  uint64_t version;
  uint64_t free_threaded;
  uint64_t runtime_state[3];
#if PY_VERSION_HEX >= 0x030E0000
  uint64_t interpreter_state[9];
#else
  uint64_t interpreter_state[8];
#endif
  uint64_t ceval_gil;
  uint64_t gil_runtime_state;
  uint64_t gil_enabled;
  uint64_t gil_locked;
  uint64_t gil_holder;
};

const DebugOffsets& offsets() noexcept {
  return *reinterpret_cast<const DebugOffsets*>(_PyRuntime);
}

template <typename T>
T load(const PyInterpreterState* interpreter, uint64_t offset) noexcept {
  auto* at = reinterpret_cast<const char*>(interpreter) + offset;
  return __atomic_load_n(reinterpret_cast<const T*>(at), __ATOMIC_RELAXED);
}

} // namespace

bool gil_holder_known() noexcept {
  // The layout belongs to a minor version, and its micro versions keep it.
  return PY_VERSION_HEX < 0x030F0000 &&
      std::memcmp(offsets().cookie, "xdebugpy", 8) == 0 &&
      offsets().version >> 16 == PY_VERSION_HEX >> 16 &&
      offsets().free_threaded == 0;
}

const void* gil_holder() noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  if (main == nullptr || load<int>(main, offsets().gil_locked) != 1) {
    return nullptr; // nobody, or the interpreter has ended
  }
  return load<const void*>(main, offsets().gil_holder);
}

uint64_t gil_switches() noexcept {
  constexpr uint64_t kWord = sizeof(unsigned long);
  const uint64_t behind = offsets().gil_locked + sizeof(int);
  const PyInterpreterState* main = PyInterpreterState_Main();
  return main == nullptr
      ? 0
      : load<unsigned long>(main, (behind + kWord - 1) / kWord * kWord);
}

bool has_main_gil(const PyThreadState* state) noexcept {
  const PyInterpreterState* main = PyInterpreterState_Main();
  const uint64_t gil = offsets().ceval_gil;
  return main == nullptr || state->interp == main || !gil_holder_known() ||
      load<const void*>(state->interp, gil) == load<const void*>(main, gil);
}

GilMemory gil_memory() noexcept {
  // Four words and two pairs of condition and mutex. How they lie is known of
  // no version, and what lies behind them is no futex that anybody sleeps on.
  constexpr size_t kSize = 4 * sizeof(unsigned long) +
      2 * (sizeof(pthread_cond_t) + sizeof(pthread_mutex_t));
  const PyInterpreterState* main = PyInterpreterState_Main();
  return main ? memory_of(load<const void*>(main, offsets().ceval_gil), kSize)
              : GilMemory{};
}

#endif

} // namespace torchgil
