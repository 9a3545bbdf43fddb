// csrc/tracing/got.cpp: finds, redirects and restores GOT slots by symbol name.
#include "tracing/got.h"

#if defined(__ELF__) && defined(__linux__) && \
    (defined(__x86_64__) || defined(__aarch64__))
#define TORCHGIL_GOT 1
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace torchgil::got {

#ifndef TORCHGIL_GOT

bool supported() {
  return false;
}
int apply(const std::vector<Redirect>&, void*) {
  return 0;
}
void restore() {}
void restore_after_fork() {}
bool covers_interpreter(const char*) {
  return false;
}
std::vector<std::string> missed(const std::vector<Redirect>&, void*) {
  return {};
}

#else

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

// What is loaded changes rarely, and libtorch alone has 300,000 relocations:
// an object is scanned once, and again only if it was unloaded meanwhile.
std::vector<ScannedObject> scanned_objects;

uintptr_t page_of(const void* address) {
  static const uintptr_t size = sysconf(_SC_PAGESIZE);
  return reinterpret_cast<uintptr_t>(address) & ~(size - 1);
}

struct Mapping {
  uintptr_t begin, end;
  int protection;
};

std::vector<Mapping> read_mappings() {
  std::vector<Mapping> result;
  if (FILE* file = std::fopen("/proc/self/maps", "re")) {
    char* line = nullptr;
    size_t capacity = 0;
    while (getline(&line, &capacity, file) > 0) {
      unsigned long begin = 0, end = 0;
      char mode[5] = "";
      if (std::sscanf(line, "%lx-%lx %4s", &begin, &end, mode) == 3) {
        result.push_back(
            {begin,
             end,
             (mode[0] == 'r' ? PROT_READ : 0) |
                 (mode[1] == 'w' ? PROT_WRITE : 0) |
                 (mode[2] == 'x' ? PROT_EXEC : 0)});
      }
    }
    std::free(line);
    std::fclose(file);
  }
  return result;
}

// -1 where the address is not mapped.
int protection_of(const std::vector<Mapping>& mappings, const void* address) {
  const auto a = reinterpret_cast<uintptr_t>(address);
  auto it = std::upper_bound(
      mappings.begin(), mappings.end(), a, [](uintptr_t x, const Mapping& m) {
        return x < m.end;
      });
  return it != mappings.end() && it->begin <= a ? it->protection : -1;
}

// Writes one pointer, whatever the protection of its page. A thread that
// resolves the slot lazily at this moment wins: then nothing is written.
bool exchange(Slot& slot, void* expected, void* value) {
  const bool writable = slot.protection & PROT_WRITE;
  void* page = reinterpret_cast<void*>(page_of(slot.address));
  const size_t size = sysconf(_SC_PAGESIZE);
  if (!writable && mprotect(page, size, slot.protection | PROT_WRITE) != 0) {
    return false;
  }
  const bool done =
      std::atomic_ref<void*>(*slot.address)
          .compare_exchange_strong(expected, value, std::memory_order_seq_cst);
  if (!writable) {
    mprotect(page, size, slot.protection);
  }
  return done;
}

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

std::vector<Object> loaded_objects() {
  std::vector<Object> result;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        static_cast<std::vector<Object>*>(out)->push_back(
            {info->dlpi_addr,
             info->dlpi_phdr,
             info->dlpi_phnum,
             info->dlpi_name ? info->dlpi_name : ""});
        return 0;
      },
      &result);
  return result;
}

bool is_scanned(const Object& object) {
  return std::any_of(
      scanned_objects.begin(), scanned_objects.end(), [&](const auto& s) {
        return s.object == object;
      });
}

void redirect(Slot& slot, const Object& object, const auto& mappings) {
  slot.protection = protection_of(mappings, slot.address);
  if (slot.protection < 0) {
    return;
  }
  void* now = std::atomic_ref<void*>(*slot.address).load();
  // Either resolved, or still at the stub in its own object that resolves it.
  // Anything else is another tool's hook: leave it alone, and say so.
  const bool lazy =
      !slot.data_pointer && object.contains(reinterpret_cast<uintptr_t>(now));
  if (now == slot.original || lazy) {
    slot.before = now;
    slot.redirected = exchange(slot, now, slot.replacement);
  }
}

void put_back(Slot& slot) {
  if (slot.redirected) {
    exchange(slot, slot.replacement, slot.before);
    slot.redirected = false;
  }
}

} // namespace

bool supported() {
  return true;
}

int apply(const std::vector<Redirect>& redirects, void* inside_interpreter) {
  const auto objects = loaded_objects();
  std::erase_if(scanned_objects, [&](const ScannedObject& s) {
    return std::find(objects.begin(), objects.end(), s.object) == objects.end();
  });
  for (const auto& object : objects) {
    if (!is_scanned(object)) {
      scanned_objects.push_back(scan(object, redirects, inside_interpreter));
    }
  }
  const auto mappings = read_mappings();
  int count = 0;
  for (auto& scanned : scanned_objects) {
    for (auto& slot : scanned.slots) {
      if (!slot.redirected) {
        redirect(slot, scanned.object, mappings);
        count += slot.redirected;
      }
    }
  }
  return count;
}

void restore() {
  // An object unloaded meanwhile took its slots along.
  const auto objects = loaded_objects();
  for (auto& scanned : scanned_objects) {
    if (std::find(objects.begin(), objects.end(), scanned.object) !=
        objects.end()) {
      std::for_each(scanned.slots.begin(), scanned.slots.end(), put_back);
    }
  }
}

void restore_after_fork() {
  for (auto& scanned : scanned_objects) {
    std::for_each(scanned.slots.begin(), scanned.slots.end(), put_back);
  }
}

bool covers_interpreter(const char* symbol) {
  for (const auto& scanned : scanned_objects) {
    for (const auto& slot : scanned.slots) {
      if (scanned.interpreter && slot.redirected &&
          std::strcmp(slot.symbol, symbol) == 0) {
        return true;
      }
    }
  }
  return false;
}

std::vector<std::string> missed(
    const std::vector<Redirect>& redirects, void* inside_interpreter) {
  std::vector<std::string> names;
  const auto calls_unseen = [](const ScannedObject& scanned) {
    // A data word that holds another function's address is the program's own.
    return std::any_of(
        scanned.slots.begin(), scanned.slots.end(), [](const Slot& s) {
          return !s.redirected && !s.data_pointer;
        });
  };
  for (const auto& scanned : scanned_objects) {
    if (calls_unseen(scanned)) {
      names.push_back(scanned.object.name);
    }
  }
  for (const auto& object : loaded_objects()) {
    if (!is_scanned(object) &&
        calls_unseen(scan(object, redirects, inside_interpreter))) {
      names.push_back(object.name);
    }
  }
  return names;
}

#endif

} // namespace torchgil::got
