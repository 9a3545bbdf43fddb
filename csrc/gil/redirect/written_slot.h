// csrc/gil/redirect/written_slot.h: one slot, written or put back.
#pragma once

#include "redirect/elf_slots.h"
#include "redirect/mappings.h"

#ifdef TORCHGIL_ELF

namespace torchgil::redirect {

/// Whether the loader has done its part: last of all it takes away the right to
/// write to the object's PT_GNU_RELRO, where there is one. Before that, what it
/// writes there and the protection of the pages are its own affair.
bool is_relocated(const Object& object, const Mappings& mappings);

/// Makes `slot`, of `object`, hold `wanted`; null: what it held before. A slot
/// that holds neither `original` nor its own object's lazy stub is another
/// tool's, and left alone. Allocates nothing and takes no lock.
void write_slot(
    Slot& slot,
    void* wanted,
    void* original,
    const Object& object,
    const Mappings& mappings);

} // namespace torchgil::redirect

#endif
