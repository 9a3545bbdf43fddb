// csrc/tracing/elf_slots.cpp: reads the relocations of loaded ELF objects.
#include "tracing/elf_slots.h"

#ifdef TORCHGIL_GOT
#include <elf.h>

#include <algorithm>
#include <cstring>

namespace torchgil::got {
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

void scan_relocations(
    ScannedObject& scanned,
    const ElfW(Rela) * rela,
    size_t count,
    const ElfW(Sym) * symbols,
    const char* strings,
    const std::vector<Redirect>& redirects) {
  for (size_t i = 0; i < count; ++i) {
    const auto type = ELF64_R_TYPE(rela[i].r_info);
    const auto symbol = ELF64_R_SYM(rela[i].r_info);
    if (symbol == 0 ||
        (type != kJumpSlot && type != kGlobDat && type != kDataPointer)) {
      continue;
    }
    const char* name = strings + symbols[symbol].st_name;
    if (name[0] != 'P' && name[0] != 'p' && name[0] != 'd') {
      continue; // Py..., pthread_..., dlopen: a quick refusal of the rest
    }
    for (const auto& r : redirects) {
      if ((!r.interpreter_only || scanned.interpreter) &&
          std::strcmp(name, r.symbol) == 0 &&
          !(type == kDataPointer && rela[i].r_addend != 0)) {
        scanned.slots.push_back(
            {reinterpret_cast<void**>(scanned.object.base + rela[i].r_offset),
             r.symbol,
             r.original,
             r.replacement,
             nullptr,
             -1,
             type == kDataPointer});
      }
    }
  }
}

} // namespace

ScannedObject scan(
    const Object& object,
    const std::vector<Redirect>& redirects,
    void* inside_interpreter) {
  ScannedObject scanned{
      object,
      object.contains(reinterpret_cast<uintptr_t>(inside_interpreter)),
      {}};
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
    return scanned;
  }
  const auto* symbols = at<const ElfW(Sym)>(object, symtab);
  const auto* strings = at<const char>(object, strtab);
  constexpr size_t kEntry = sizeof(ElfW(Rela));
  if (jmprel) {
    scan_relocations(
        scanned,
        at<const ElfW(Rela)>(object, jmprel),
        jmprel_size / kEntry,
        symbols,
        strings,
        redirects);
  }
  if (rela) { // the relative ones come first and name no symbol
    scan_relocations(
        scanned,
        at<const ElfW(Rela)>(object, rela) + relative_count,
        rela_size / kEntry - std::min(relative_count, rela_size / kEntry),
        symbols,
        strings,
        redirects);
  }
  return scanned;
}

LoadedObjects loaded_objects() {
  LoadedObjects result;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        auto& result = *static_cast<LoadedObjects*>(out);
        result.unloaded = info->dlpi_subs;
        result.objects.push_back(
            {info->dlpi_addr,
             info->dlpi_phdr,
             info->dlpi_phnum,
             info->dlpi_name ? info->dlpi_name : ""});
        return 0;
      },
      &result);
  return result;
}

} // namespace torchgil::got

#endif
