// csrc/gil/redirect/elf_slots.h: where loaded ELF objects keep the addresses
// they call.
#pragma once

#include "redirect/reserved.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__ELF__) && defined(__linux__) && \
    (defined(__x86_64__) || defined(__aarch64__))
#define TORCHGIL_ELF 1
#include <link.h>

namespace torchgil::redirect {

/// A function whose callers are looked for.
struct Symbol {
  const char* name;
  bool interpreter_only;
};

/// One loaded object, as the dynamic loader names it.
struct Object {
  uintptr_t base;
  const ElfW(Phdr) * phdr;
  int phdr_count;
  const char* name; // the loader's, for as long as the object is loaded
  explicit Object(const dl_phdr_info& info)
      : base(info.dlpi_addr),
        phdr(info.dlpi_phdr),
        phdr_count(info.dlpi_phnum),
        name(info.dlpi_name ? info.dlpi_name : "") {}
  bool operator==(const Object& o) const {
    return base == o.base && phdr == o.phdr && std::strcmp(name, o.name) == 0;
  }
  bool contains(const void* pointer) const {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    for (int i = 0; i < phdr_count; ++i) {
      const auto& p = phdr[i];
      if (p.p_type == PT_LOAD && address - base - p.p_vaddr < p.p_memsz) {
        return true;
      }
    }
    return false;
  }
};

/// One word that holds the address of a function to call, and what was done to
/// it.
struct Slot {
  void** address;
  size_t symbol;           // its index
  bool data_pointer;       // a word of data, not of a table of calls
  void* before = nullptr;  // what to put back: resolved, or its lazy stub
  void* written = nullptr; // null while nobody redirects it
  int protection = -1;     // of its page, as found
};

constexpr size_t kMostSymbols = 64;

/// Adds the slots of `symbols`, at most so many, in one object that is, and
/// stays, loaded. False where there is no room for all. Allocates nothing and
/// takes no lock.
bool find_slots(
    const Object& object,
    const std::vector<Symbol>& symbols,
    bool is_interpreter,
    Reserved<Slot>& into);

} // namespace torchgil::redirect

#endif
