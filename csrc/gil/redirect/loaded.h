// csrc/gil/redirect/loaded.h: the objects that are loaded, and their slots.
#pragma once

#include "redirect/elf_slots.h"
#include "redirect/mappings.h"

#ifdef TORCHGIL_ELF
#include <functional>
#include <span>

namespace torchgil::redirect {

/// One object, as the last walk found it.
struct LoadedObject {
  Object object;       // but its name lies in our memory
  bool interpreter;    // libpython, or a static `python`
  size_t begin, end;   // its slots
  bool missed = false; // for whoever visits it
};

/// What is loaded. Reading it costs 10 ms, most of them for libtorch, and it
/// changes rarely: so an object is read once for all clients, and again only
/// after something was unloaded, or where another symbol is looked for.
///
/// One thread at a time.
class LoadedObjects {
 public:
  /// `inside_interpreter` is an address in libpython, or in a static `python`.
  explicit LoadedObjects(const void* inside_interpreter)
      : inside_interpreter_(inside_interpreter) {}

  /// Called within a walk: allocates nothing, takes no lock, calls nothing that
  /// does.
  using Visit =
      std::function<void(LoadedObject&, std::span<Slot>, const Mappings&)>;

  /// Looks at what is loaded now, and calls `visit` for each object while the
  /// loader keeps its list locked: nothing is unloaded meanwhile, and what is
  /// listed stays where it is. Before that its pages may have been another's,
  /// so the mappings are read then, too.
  void walk(const std::vector<Symbol>& symbols, const Visit& visit);

  /// As walk(), for what the last walk found: asks nothing of the loader. What
  /// was unloaded since is visited, too.
  void visit_known(const Visit& visit);

  /// What the last walk found.
  const Reserved<LoadedObject>& objects() const {
    return known_.objects;
  }
  std::span<const Slot> slots_of(const LoadedObject& object) const {
    return {
        known_.slots.begin() + object.begin, known_.slots.begin() + object.end};
  }

  /// How many objects had ever been loaded at the last walk.
  unsigned long long ever_loaded() const {
    return ever_loaded_;
  }

 private:
  struct Table {
    Reserved<LoadedObject> objects;
    Reserved<Slot> slots;
    Reserved<char> names;
  };
  struct Walk;

  void reserve();
  static int read_all(dl_phdr_info* info, size_t size, void* walk);
  static int read_one(dl_phdr_info* info, size_t size, void* walk);
  bool read(const Object& object, const Walk& walk);
  void take_over(Slot& slot, const LoadedObject& known) const;
  const char* keep(const char* name);
  const LoadedObject* find_known(const Object& object) const;
  void visit_all(const Visit& visit);

  const void* const inside_interpreter_;
  size_t room_ = 256; // for so many objects, and the rest accordingly
  Table known_;
  Table found_; // by the walk that goes on
  Mappings mappings_;
  unsigned long long ever_loaded_ = 0;
  unsigned long long unloaded_ = 0;
  size_t symbols_read_ = 0;
};

} // namespace torchgil::redirect

#endif
