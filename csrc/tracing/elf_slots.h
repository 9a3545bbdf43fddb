// csrc/tracing/elf_slots.h: where loaded ELF objects keep the addresses they
// call.
#pragma once

#include "tracing/got.h"

#if defined(__ELF__) && defined(__linux__) && \
    (defined(__x86_64__) || defined(__aarch64__))
#define TORCHGIL_GOT 1
#include <link.h>

namespace torchgil::got {

/// One loaded object, as the dynamic loader names it.
struct Object {
  uintptr_t base;
  const ElfW(Phdr) * phdr;
  int phdr_count;
  std::string name;
  bool operator==(const Object& o) const {
    return base == o.base && phdr == o.phdr && name == o.name;
  }
  bool contains(uintptr_t address) const {
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
  const char* symbol;
  void* original;
  void* replacement;
  void* before;   // what to put back: resolved, or its lazy-binding stub
  int protection; // of its page, as found
  bool data_pointer;
  bool redirected = false;
};

struct ScannedObject {
  Object object;
  bool interpreter;
  std::vector<Slot> slots;
};

struct LoadedObjects {
  std::vector<Object> objects;
  unsigned long long unloaded = 0; // how many ever were
};

LoadedObjects loaded_objects();

/// Finds the slots of `redirects` in one object.
ScannedObject scan(
    const Object& object,
    const std::vector<Redirect>& redirects,
    void* inside_interpreter);

} // namespace torchgil::got

#endif
