// csrc/redirect/elf_slots.cpp: reads the relocations of loaded ELF objects.
#include "redirect/elf_slots.h"

#ifdef TORCHGIL_ELF
#include <elf.h>

#include <algorithm>
#include <cstring>

namespace torchgil::redirect {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kJumpSlot = R_X86_64_JUMP_SLOT;
constexpr uint32_t kGlobDat = R_X86_64_GLOB_DAT;
constexpr uint32_t kDataPointer = R_X86_64_64;
#else
constexpr uint32_t kJumpSlot = R_AARCH64_JUMP_SLOT;
constexpr uint32_t kGlobDat = R_AARCH64_GLOB_DAT;
constexpr uint32_t kDataPointer = R_AARCH64_ABS64;
#endif

// The dynamic section's addresses are relocated by glibc, not by musl.
template <typename T>
T* at(const Object& object, uintptr_t address) {
  return reinterpret_cast<T*>(
      address < object.base ? object.base + address : address);
}

void read_relocations(
    std::vector<Slot>& slots,
    const Object& object,
    const ElfW(Rela) * rela,
    size_t count,
    const ElfW(Sym) * table,
    const char* strings,
    const std::vector<Symbol>& symbols,
    bool is_interpreter) {
  for (size_t i = 0; i < count; ++i) {
    const auto type = ELF64_R_TYPE(rela[i].r_info);
    const auto entry = ELF64_R_SYM(rela[i].r_info);
    if (entry == 0 ||
        (type != kJumpSlot && type != kGlobDat && type != kDataPointer) ||
        (type == kDataPointer && rela[i].r_addend != 0)) {
      continue;
    }
    const char* name = strings + table[entry].st_name;
    if (name[0] != 'P' && name[0] != 'p' && name[0] != 'd' &&
        std::strncmp(name, "_ZN2at16", 8) != 0) {
      continue; // Py..., pthread_..., dlopen, at::init_num_threads: a quick
                // refusal of the rest
    }
    for (size_t s = 0; s < symbols.size(); ++s) {
      if ((!symbols[s].interpreter_only || is_interpreter) &&
          std::strcmp(name, symbols[s].name) == 0) {
        slots.push_back(
            {reinterpret_cast<void**>(object.base + rela[i].r_offset),
             s,
             type == kDataPointer});
      }
    }
  }
}

} // namespace

std::vector<Slot> find_slots(
    const Object& object,
    const std::vector<Symbol>& symbols,
    bool is_interpreter) {
  std::vector<Slot> slots;
  const ElfW(Dyn)* dynamic = nullptr;
  for (int i = 0; i < object.phdr_count; ++i) {
    if (object.phdr[i].p_type == PT_DYNAMIC) {
      dynamic = reinterpret_cast<const ElfW(Dyn)*>(
          object.base + object.phdr[i].p_vaddr);
    }
  }
  uintptr_t jmprel = 0, rela = 0, symtab = 0, strtab = 0;
  size_t jmprel_size = 0, rela_size = 0, relative_count = 0;
  for (; dynamic && dynamic->d_tag != DT_NULL; ++dynamic) {
    switch (dynamic->d_tag) {
      case DT_JMPREL:
        jmprel = dynamic->d_un.d_ptr;
        break;
      case DT_PLTRELSZ:
        jmprel_size = dynamic->d_un.d_val;
        break;
      case DT_RELA:
        rela = dynamic->d_un.d_ptr;
        break;
      case DT_RELASZ:
        rela_size = dynamic->d_un.d_val;
        break;
      case DT_RELACOUNT:
        relative_count = dynamic->d_un.d_val;
        break;
      case DT_SYMTAB:
        symtab = dynamic->d_un.d_ptr;
        break;
      case DT_STRTAB:
        strtab = dynamic->d_un.d_ptr;
        break;
    }
  }
  if (!symtab || !strtab) {
    return slots;
  }
  const auto* table = at<const ElfW(Sym)>(object, symtab);
  const auto* strings = at<const char>(object, strtab);
  constexpr size_t kEntry = sizeof(ElfW(Rela));
  const auto read = [&](const ElfW(Rela)* entries, size_t count) {
    read_relocations(
        slots, object, entries, count, table, strings, symbols, is_interpreter);
  };
  if (jmprel) {
    read(at<const ElfW(Rela)>(object, jmprel), jmprel_size / kEntry);
  }
  if (rela) { // the relative ones come first and name no symbol
    read(
        at<const ElfW(Rela)>(object, rela) + relative_count,
        rela_size / kEntry - std::min(relative_count, rela_size / kEntry));
  }
  return slots;
}

} // namespace torchgil::redirect

#endif
