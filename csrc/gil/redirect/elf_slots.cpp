// csrc/gil/redirect/elf_slots.cpp: reads the relocations of loaded ELF objects.
#include "redirect/elf_slots.h"

#ifdef TORCHGIL_ELF
#include <elf.h>

#include <algorithm>
#include <bit>
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

/// The tables of one object that name the functions it calls.
struct Relocations {
  const Object& object;
  const ElfW(Sym) * table;
  const char* strings;
};

/// Which functions are looked for, by their first letters: most relocations are
/// of others, 300,000 in libtorch alone.
class Wanted {
 public:
  Wanted(const std::vector<Symbol>& symbols, bool is_interpreter)
      : symbols_(symbols) {
    for (size_t s = 0; s < symbols.size(); ++s) {
      if (!symbols[s].interpreter_only || is_interpreter) {
        with_letter(symbols[s].name) |= uint64_t{1} << s;
      }
    }
  }

  static constexpr size_t kNone = kMostSymbols;

  /// The symbol of this name.
  size_t index_of(const char* name) const {
    for (uint64_t rest = with_letter(name); rest; rest &= rest - 1) {
      const size_t s = std::countr_zero(rest);
      if (std::strcmp(name, symbols_[s].name) == 0) {
        return s;
      }
    }
    return kNone;
  }

 private:
  uint64_t& with_letter(const char* name) {
    return sets_[static_cast<unsigned char>(name[0])];
  }
  uint64_t with_letter(const char* name) const {
    return sets_[static_cast<unsigned char>(name[0])];
  }

  const std::vector<Symbol>& symbols_;
  uint64_t sets_[256] = {}; // of indices
};

bool read_relocations(
    const Relocations& from,
    const ElfW(Rela) * rela,
    size_t count,
    const Wanted& wanted,
    Reserved<Slot>& into) {
  for (size_t i = 0; i < count; ++i) {
    const auto type = ELF64_R_TYPE(rela[i].r_info);
    const auto entry = ELF64_R_SYM(rela[i].r_info);
    if (entry == 0 ||
        (type != kJumpSlot && type != kGlobDat && type != kDataPointer) ||
        (type == kDataPointer && rela[i].r_addend != 0)) {
      continue;
    }
    const size_t symbol =
        wanted.index_of(from.strings + from.table[entry].st_name);
    if (symbol != Wanted::kNone &&
        !into.add(
            {reinterpret_cast<void**>(from.object.base + rela[i].r_offset),
             symbol,
             type == kDataPointer})) {
      return false;
    }
  }
  return true;
}

} // namespace

bool find_slots(
    const Object& object,
    const std::vector<Symbol>& symbols,
    bool is_interpreter,
    Reserved<Slot>& into) {
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
    return true;
  }
  const Relocations from{
      object,
      at<const ElfW(Sym)>(object, symtab),
      at<const char>(object, strtab)};
  const Wanted wanted(symbols, is_interpreter);
  constexpr size_t kEntry = sizeof(ElfW(Rela));
  const auto read = [&](const ElfW(Rela)* entries, size_t count) {
    return read_relocations(from, entries, count, wanted, into);
  };
  if (jmprel &&
      !read(at<const ElfW(Rela)>(object, jmprel), jmprel_size / kEntry)) {
    return false;
  }
  // The relative ones come first and name no symbol.
  return !rela ||
      read(
          at<const ElfW(Rela)>(object, rela) + relative_count,
          rela_size / kEntry - std::min(relative_count, rela_size / kEntry));
}

} // namespace torchgil::redirect

#endif
