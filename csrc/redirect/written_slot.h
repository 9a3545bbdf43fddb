// csrc/redirect/written_slot.h: one slot, written or put back.
#pragma once

#include "redirect/elf_slots.h"

#ifdef TORCHGIL_ELF
#include <cstdint>
#include <vector>

namespace torchgil::redirect {

/// A slot, and what was done to it.
struct Redirected : Slot {
  void* before = nullptr;  // what to put back: resolved, or its lazy stub
  void* written = nullptr; // null while nobody redirects it
  int protection = -1;     // of its page, as found
};

/// A stretch of this process's memory.
struct Mapping {
  uintptr_t begin, end;
  int protection;
};

using Mappings = std::vector<Mapping>; // in the order of their addresses

/// Read anew for each change: whoever else writes to these pages may change
/// their protection.
Mappings read_mappings();

/// -1 where the address is not mapped.
int protection_of(const Mappings& mappings, const void* address);

/// Whether the loader has done its part: last of all it takes away the right to
/// write to the object's PT_GNU_RELRO, where there is one. Before that, what it
/// writes there and the protection of the pages are its own affair.
bool is_relocated(const Object& object, const Mappings& mappings);

/// Makes `slot`, of `object`, hold `wanted`; null: what it held before. A slot
/// that holds neither `original` nor its own object's lazy stub is another
/// tool's, and left alone.
void write_slot(
    Redirected& slot,
    void* wanted,
    void* original,
    const Object& object,
    const Mappings& mappings);

} // namespace torchgil::redirect

#endif
