// csrc/gil/redirect/written_slot.cpp: one slot, written or put back.
#include "redirect/written_slot.h"

#ifdef TORCHGIL_ELF
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

namespace torchgil::redirect {

namespace {

const uintptr_t page_size = sysconf(_SC_PAGESIZE);

uintptr_t page_of(uintptr_t address) {
  return address & ~(page_size - 1);
}

// Writes one pointer, whatever the protection of its page. A thread that
// resolves the slot lazily at this moment wins: then nothing is written.
bool exchange(const Slot& slot, void* expected, void* value) {
  const bool writable = slot.protection & PROT_WRITE;
  void* page = reinterpret_cast<void*>(
      page_of(reinterpret_cast<uintptr_t>(slot.address)));
  if (!writable &&
      mprotect(page, page_size, slot.protection | PROT_WRITE) != 0) {
    return false;
  }
  const bool done =
      std::atomic_ref<void*>(*slot.address)
          .compare_exchange_strong(expected, value, std::memory_order_seq_cst);
  if (!writable) {
    mprotect(page, page_size, slot.protection);
  }
  return done;
}

} // namespace

bool is_relocated(const Object& object, const Mappings& mappings) {
  for (int i = 0; i < object.phdr_count; ++i) {
    const auto& p = object.phdr[i];
    if (p.p_type != PT_GNU_RELRO) {
      continue;
    }
    const uintptr_t begin = page_of(object.base + p.p_vaddr);
    const uintptr_t end = page_of(object.base + p.p_vaddr + p.p_memsz);
    for (uintptr_t page = begin; page < end; page += page_size) {
      const auto* address = reinterpret_cast<const void*>(page);
      if (!(protection_of(mappings, address) & PROT_WRITE)) {
        return true; // another tool may have opened others since
      }
    }
    return begin == end;
  }
  return true;
}

void write_slot(
    Slot& slot,
    void* wanted,
    void* original,
    const Object& object,
    const Mappings& mappings) {
  if (slot.written == wanted) {
    return;
  }
  const int protection = protection_of(mappings, slot.address);
  if (protection >= 0) {
    slot.protection = protection;
  } else if (!slot.written || mappings.size() > 0) {
    return;
  } // else they could not be read: it is as when the slot was written
  if (slot.written) {
    const bool done =
        exchange(slot, slot.written, wanted ? wanted : slot.before);
    slot.written = done ? wanted : nullptr; // not done: another tool's by now
    return;
  }
  void* now = std::atomic_ref<void*>(*slot.address).load();
  // Either resolved, or still at the stub in its own object that resolves it.
  // Anything else is another tool's hook: leave it alone, and say so.
  const bool lazy = !slot.data_pointer && object.contains(now);
  if (now == original || lazy) {
    slot.before = now;
    slot.written = exchange(slot, now, wanted) ? wanted : nullptr;
  }
}

} // namespace torchgil::redirect

#endif
