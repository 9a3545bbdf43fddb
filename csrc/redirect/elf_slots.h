// csrc/redirect/elf_slots.h: where loaded ELF objects keep the addresses they
// call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
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
  std::string name;
  explicit Object(const dl_phdr_info& info)
      : base(info.dlpi_addr),
        phdr(info.dlpi_phdr),
        phdr_count(info.dlpi_phnum),
        name(info.dlpi_name ? info.dlpi_name : "") {}
  bool operator==(const Object& o) const {
    return base == o.base && phdr == o.phdr && name == o.name;
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

/// One word that holds the address of a function to call.
struct Slot {
  void** address;
  size_t symbol;     // its index
  bool data_pointer; // a word of data, not of a table of calls
};

/// Finds the slots of `symbols` in one object that is, and stays, loaded.
std::vector<Slot> find_slots(
    const Object& object,
    const std::vector<Symbol>& symbols,
    bool is_interpreter);

} // namespace torchgil::redirect

#endif
