// csrc/gil/redirect/redirect.h: calls of loaded ELF objects, redirected for a
// time.
//
// Objects call each other's functions through tables of addresses that the
// loader fills in. Writing another address there redirects the call: exactly,
// in every loaded object, and until the address is put back. Several clients
// may redirect one function at the same time; they come and go in any order.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace torchgil::redirect {

/// A Next, whatever the type of its function.
struct AnyNext {
  std::atomic<void*> original{nullptr};
  std::atomic<void*> address{nullptr};
};

/// The function that a replacement calls in turn: the next client's
/// replacement, or the function itself. Our own calls are redirected, too, so
/// it is always called through this.
///
/// The function's address is taken as the extension is loaded, before anything
/// is redirected; or it is given later, by whoever has it, before the first
/// install() of the Client that redirects it. Another thread may be
/// redirecting other functions meanwhile, or give the same one.
template <typename F>
class Next : public AnyNext {
 public:
  explicit Next(F* function = nullptr) {
    set_original(function);
  }
  void set_original(F* function) {
    auto* given = reinterpret_cast<void*>(function);
    void* none = nullptr;
    if (original.compare_exchange_strong(none, given)) {
      address = given;
    }
  }
  template <typename... Args>
  auto operator()(Args... args) const {
    return reinterpret_cast<F*>(address.load(std::memory_order_relaxed))(
        args...);
  }
};

/// One function whose callers are to reach `replacement` instead.
struct Hook {
  const char* symbol;
  void* replacement;
  AnyNext* next;
  /// Redirect only the interpreter's own calls (libpython, or a static
  /// `python`), not those of every loaded object.
  bool interpreter_only;
};

template <typename F, typename R>
Hook hook(
    const char* symbol,
    Next<F>& next,
    R* replacement,
    bool interpreter_only = false) {
  static_assert(std::is_convertible_v<F*, R*>); // noexcept may be dropped
  return {
      symbol, reinterpret_cast<void*>(replacement), &next, interpreter_only};
}

/// True where the loaded objects are ELF and their tables can be found. False
/// in the child of a fork that happened while another thread waited for the
/// loader.
bool supported();

/// False where the process had no free file descriptor when what is loaded was
/// looked at last. What was not redirected by then is not now; a later
/// install() may do it.
bool could_look();

/// What one part of the program redirects. Lives as long as the process.
/// All functions may be called from any thread, with or without the GIL. Those
/// that change something wait for each other and for the loader, and give the
/// GIL up meanwhile.
class Client {
 public:
  /// Where two clients redirect one function, the outer one is called first.
  enum class Place { kOuter, kInner };

  Client(Place place, std::vector<Hook> hooks);

  /// Redirects the hooks' functions in all objects that are loaded now, and in
  /// those that the interpreter loads later. Called again, it adds what was
  /// loaded otherwise, and what was still being loaded then. Returns how many
  /// slots lead here.
  int install();

  /// As install(), where there may be something to add: else it costs 1 us.
  /// Once it has returned, in whichever thread, the calls lead here.
  void keep_installed();

  /// Puts back what this client redirected. Returns the names of loaded objects
  /// whose calls stayed unseen: another tool holds the slot, or the object was
  /// loaded past the interpreter and after the last install().
  std::vector<std::string> uninstall();

  /// As uninstall(), in the child of a fork: asks nothing of the loader, whose
  /// lock a thread that stayed in the parent may have.
  void uninstall_in_child();

  /// True if the interpreter's own calls of `symbol` led here after the last
  /// install().
  bool covers_interpreter(const char* symbol) const;

  const Place place;
  const std::vector<Hook> hooks;

 private:
  int install_in_turn();
  void take_out();
  Client* const constructed_before_;
  bool installed_ = false;
  std::atomic<uint64_t> covers_{0}; // of the hooks, a bit each
};

} // namespace torchgil::redirect
