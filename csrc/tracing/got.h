// csrc/tracing/got.h: redirects calls that go through global offset tables.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torchgil::got {

/// One function whose callers are to reach `replacement` instead.
struct Redirect {
  const char* symbol;
  void* original;
  void* replacement;
  /// Redirect only the interpreter's own calls (libpython, or a static
  /// `python`), not those of every loaded object.
  bool interpreter_only;
};

/// True where the loaded objects are ELF and their tables can be found.
bool supported();

/// Points every slot of `redirects` at its replacement, in all objects loaded
/// now; a second call adds the objects loaded since. `inside_interpreter` is
/// any address in the interpreter's code. Returns the slots redirected by
/// this call. Not thread-safe: the caller serialises.
int apply(const std::vector<Redirect>& redirects, void* inside_interpreter);

/// Puts back every slot, and its page's protection, as apply() found it.
void restore();

/// As restore(), for the child of a fork: takes no lock of the loader.
void restore_after_fork();

/// True if the interpreter's own calls of `symbol` were redirected.
bool covers_interpreter(const char* symbol);

/// Names of loaded objects that call one of `redirects` unseen: another tool
/// holds the slot, or the object was loaded after the last apply().
std::vector<std::string> missed(
    const std::vector<Redirect>& redirects, void* inside_interpreter);

} // namespace torchgil::got
