// csrc/tracing/got.cpp: redirects and restores GOT slots.
#include "tracing/got.h"

#include "tracing/elf_slots.h"

#ifdef TORCHGIL_GOT
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
  const LoadedObjects loaded = loaded_objects();
  const auto& objects = loaded.objects;
  // Another object may lie where an unloaded one did. While a trace runs only
  // those that are gone are forgotten: the others have slots to put back.
  static unsigned long long unloaded_before = 0;
  const bool tracing = std::any_of(
      scanned_objects.begin(), scanned_objects.end(), [](const auto& s) {
        return std::any_of(s.slots.begin(), s.slots.end(), [](const Slot& x) {
          return x.redirected;
        });
      });
  if (loaded.unloaded != unloaded_before && !tracing) {
    scanned_objects.clear();
    unloaded_before = loaded.unloaded;
  }
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
  const auto objects = loaded_objects().objects;
  for (auto& scanned : scanned_objects) {
    if (std::find(objects.begin(), objects.end(), scanned.object) !=
        objects.end()) {
      std::for_each(scanned.slots.begin(), scanned.slots.end(), put_back);
    }
  }
}

void restore_after_fork() {
  // Not by asking the loader what is loaded: a thread that stayed in the parent
  // may have its lock. What was unloaded is no longer mapped.
  const auto mappings = read_mappings();
  for (auto& scanned : scanned_objects) {
    for (auto& slot : scanned.slots) {
      if (protection_of(mappings, slot.address) == slot.protection) {
        put_back(slot);
      }
    }
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
  for (const auto& object : loaded_objects().objects) {
    if (!is_scanned(object) &&
        calls_unseen(scan(object, redirects, inside_interpreter))) {
      names.push_back(object.name);
    }
  }
  return names;
}

#endif

} // namespace torchgil::got
