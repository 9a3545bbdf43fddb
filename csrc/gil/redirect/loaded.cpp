// csrc/gil/redirect/loaded.cpp: walks through the loader's list.
//
// A walk makes the table of objects anew, in memory that was reserved for it,
// and takes over what is known. Where the memory does not suffice nothing has
// been changed yet: more is reserved, outside the walk, and it begins again.
#include "redirect/loaded.h"

#ifdef TORCHGIL_ELF
#include <algorithm>
#include <utility>

namespace torchgil::redirect {

struct LoadedObjects::Walk {
  LoadedObjects& loaded;
  const std::vector<Symbol>& symbols;
  const Visit& visit;
  bool all_anew = false;
  bool fits = false;
};

void LoadedObjects::walk(
    const std::vector<Symbol>& symbols, const Visit& visit) {
  Walk walk{*this, symbols, visit};
  while (true) {
    reserve();
    dl_iterate_phdr(&read_all, &walk);
    if (walk.fits) {
      return;
    }
    room_ *= 2;
  }
}

void LoadedObjects::reserve() {
  found_.objects.reserve(room_);
  found_.slots.reserve(room_ * 16);
  found_.names.reserve(room_ * 128);
  mappings_.reserve(room_ * 16);
}

// Called for the first object. The list is locked from here on until this
// returns, and may be walked again meanwhile: a thread can take that lock more
// than once.
int LoadedObjects::read_all(dl_phdr_info* info, size_t, void* data) {
  Walk& walk = *static_cast<Walk*>(data);
  LoadedObjects& loaded = walk.loaded;
  walk.all_anew = loaded.unloaded_ != info->dlpi_subs ||
      loaded.symbols_read_ != walk.symbols.size();
  walk.fits =
      read_mappings(loaded.mappings_) && dl_iterate_phdr(&read_one, &walk) == 0;
  if (walk.fits) {
    std::swap(loaded.known_, loaded.found_);
    loaded.ever_loaded_ = info->dlpi_adds;
    loaded.unloaded_ = info->dlpi_subs;
    loaded.symbols_read_ = walk.symbols.size();
    loaded.visit_all(walk.visit);
  }
  return 1;
}

int LoadedObjects::read_one(dl_phdr_info* info, size_t, void* data) {
  const Walk& walk = *static_cast<Walk*>(data);
  return walk.loaded.read(Object(*info), walk) ? 0 : 1;
}

bool LoadedObjects::read(const Object& object, const Walk& walk) {
  const LoadedObject* known = find_known(object);
  auto& slots = found_.slots;
  const size_t begin = slots.size();
  const bool is_interpreter = object.contains(inside_interpreter_);
  if (known && !walk.all_anew) {
    for (size_t i = known->begin; i < known->end; ++i) {
      if (!slots.add(known_.slots[i])) {
        return false;
      }
    }
  } else if (!find_slots(object, walk.symbols, is_interpreter, slots)) {
    return false;
  } else if (known) {
    for (size_t i = begin; i < slots.size(); ++i) {
      take_over(slots[i], *known);
    }
  }
  LoadedObject entry{object, is_interpreter, begin, slots.size()};
  entry.object.name = keep(object.name);
  return entry.object.name && found_.objects.add(entry);
}

// Another object may lie where an unloaded one did: what was done to a slot is
// remembered only where it still stands there.
void LoadedObjects::take_over(Slot& slot, const LoadedObject& known) const {
  for (size_t i = known.begin; i < known.end; ++i) {
    const Slot& old = known_.slots[i];
    if (old.address == slot.address && old.symbol == slot.symbol &&
        old.written && *slot.address == old.written) {
      slot = old;
    }
  }
}

const char* LoadedObjects::keep(const char* name) {
  const size_t begin = found_.names.size();
  do {
    if (!found_.names.add(*name)) {
      return nullptr;
    }
  } while (*name++);
  return &found_.names[begin];
}

const LoadedObject* LoadedObjects::find_known(const Object& object) const {
  const auto it = std::find_if(
      known_.objects.begin(), known_.objects.end(), [&](const auto& known) {
        return known.object == object;
      });
  return it == known_.objects.end() ? nullptr : &*it;
}

void LoadedObjects::visit_known(const Visit& visit) {
  for (mappings_.reserve(room_ * 16); !read_mappings(mappings_);
       mappings_.reserve(room_ * 16)) {
    room_ *= 2;
  }
  visit_all(visit);
}

void LoadedObjects::visit_all(const Visit& visit) {
  for (LoadedObject& object : known_.objects) {
    visit(
        object,
        {known_.slots.begin() + object.begin,
         known_.slots.begin() + object.end},
        mappings_);
  }
}

} // namespace torchgil::redirect

#endif
