// csrc/redirect/redirect.cpp: what each slot of each loaded object should hold.
//
// One table of all slots serves every client. A slot holds the replacement of
// the outermost client that is installed, whose `next` leads on to the other's,
// or to the function itself. Whoever comes or goes changes the clients of the
// functions, and then settle() makes the slots so.
#include "redirect/redirect.h"

#include "redirect/elf_slots.h"
#include "redirect/written_slot.h"

#ifdef TORCHGIL_ELF
#include <dlfcn.h>
#include <pthread.h>
#endif

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

namespace torchgil::redirect {
namespace {

// Written while our library is loaded, by one thread.
constinit Client* last_constructed = nullptr;

} // namespace

Client::Client(Place place, std::vector<Hook> hooks)
    : place(place),
      hooks(std::move(hooks)),
      constructed_before_(std::exchange(last_constructed, this)) {}

#ifndef TORCHGIL_ELF

bool supported() {
  return false;
}
int Client::install() {
  return 0;
}
std::vector<std::string> Client::uninstall() {
  return {};
}
void Client::uninstall_in_child() {}
bool Client::covers_interpreter(const char*) const {
  return false;
}
unsigned long long objects_ever_loaded() {
  return 0;
}

#else

namespace {

struct KnownObject {
  Object object;
  bool interpreter;
  std::vector<Redirected> slots;
  bool seen = true; // in the present walk
};

// Never destroyed: what they describe is called until the process ends.
struct State {
  std::mutex patching;                         // never taken on a hot path
  std::vector<Symbol> symbols;                 // of all clients that ever came
  std::vector<void*> originals;                // of the symbols
  std::vector<std::vector<const Hook*>> hooks; // likewise; the outermost first
  // What is loaded changes rarely, and libtorch alone has 300,000 relocations:
  // an object is read once, for all clients, and again only after something was
  // unloaded.
  std::vector<KnownObject> objects;
  unsigned long long unloads = 0;
  size_t symbols_read = 0;
  int clients = 0; // installed
};
State& state = *new State;

// Makes a slot hold what the clients of its function want now.
void settle(Redirected& slot, const Object& object, const Mappings& mappings) {
  const auto& hooks = state.hooks[slot.symbol];
  void* const wanted = hooks.empty() ? nullptr : hooks.front()->replacement;
  write_slot(slot, wanted, state.originals[slot.symbol], object, mappings);
}

KnownObject read_object(const Object& object) {
  static const void* const inside_interpreter =
      dlsym(RTLD_DEFAULT, "Py_Initialize");
  KnownObject known{object, object.contains(inside_interpreter), {}};
  for (const Slot& slot :
       find_slots(object, state.symbols, known.interpreter)) {
    known.slots.push_back({slot});
  }
  return known;
}

KnownObject* find_known(const Object& object) {
  const auto it = std::find_if(
      state.objects.begin(), state.objects.end(), [&](const auto& known) {
        return known.object == object;
      });
  return it == state.objects.end() ? nullptr : &*it;
}

// Another object may lie where an unloaded one did: what was done to a slot is
// remembered only where it still stands there.
void read_again(KnownObject& known) {
  KnownObject fresh = read_object(known.object);
  for (auto& slot : fresh.slots) {
    for (const auto& old : known.slots) {
      if (old.address == slot.address && old.symbol == slot.symbol &&
          old.written && *slot.address == old.written) {
        slot = old;
      }
    }
  }
  known = std::move(fresh);
}

template <typename Visit>
void for_each_loaded(Visit visit) {
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* visit) {
        (*static_cast<Visit*>(visit))(*info);
        return 0;
      },
      &visit);
}

// Makes every slot so, in what is loaded now. Within the walk the loader keeps
// its list locked: nothing is unloaded while it is read or written, and what is
// listed stays where it is. Before the walk its pages may have been another's.
void settle_all() {
  Mappings mappings;
  const bool more_symbols = state.symbols_read != state.symbols.size();
  for (auto& known : state.objects) {
    known.seen = false;
  }
  unsigned long long unloads = state.unloads;
  for_each_loaded([&](const dl_phdr_info& info) {
    const Object object(info);
    if (mappings.empty()) {
      mappings = read_mappings();
    }
    unloads = info.dlpi_subs;
    KnownObject* known = find_known(object);
    if (!known && state.clients > 0) {
      known = &state.objects.emplace_back(read_object(object));
    } else if (known && (unloads != state.unloads || more_symbols)) {
      read_again(*known);
    }
    if (known) {
      known->seen = true;
      // Before that, its loader writes to the same pages, and then locks them.
      const bool relocated = is_relocated(object, mappings);
      for (auto& slot : known->slots) {
        if (slot.written || relocated) {
          settle(slot, object, mappings);
        }
      }
    }
  });
  state.unloads = unloads;
  state.symbols_read = state.symbols.size();
  // An object unloaded meanwhile took its slots along.
  std::erase_if(state.objects, [](const auto& known) { return !known.seen; });
}

size_t index_of(const Hook& hook) {
  const auto it = std::find_if(
      state.symbols.begin(), state.symbols.end(), [&](const Symbol& s) {
        return std::strcmp(s.name, hook.symbol) == 0;
      });
  const size_t index = it - state.symbols.begin();
  if (it == state.symbols.end()) {
    state.symbols.push_back({hook.symbol, hook.interpreter_only});
    state.originals.push_back(hook.original);
    state.hooks.emplace_back();
  }
  return index;
}

// Links the installed clients of one function, the outermost first.
void link(size_t symbol) {
  const auto& hooks = state.hooks[symbol];
  for (size_t i = 0; i < hooks.size(); ++i) {
    *hooks[i]->next = i + 1 < hooks.size() ? hooks[i + 1]->replacement
                                           : state.originals[symbol];
  }
}

void add(const Client& client) {
  for (const Hook& hook : client.hooks) {
    const size_t symbol = index_of(hook);
    auto& hooks = state.hooks[symbol];
    const bool outer = client.place == Client::Place::kOuter;
    hooks.insert(outer ? hooks.begin() : hooks.end(), &hook);
    link(symbol);
  }
}

void remove(const Client& client) {
  for (const Hook& hook : client.hooks) {
    const size_t symbol = index_of(hook);
    std::erase(state.hooks[symbol], &hook);
    link(symbol);
    *hook.next = hook.original; // for a call that is under way
  }
}

bool redirects(const Client& client, const Slot& slot) {
  return std::any_of(
      client.hooks.begin(), client.hooks.end(), [&](const Hook& hook) {
        return std::strcmp(state.symbols[slot.symbol].name, hook.symbol) == 0;
      });
}

// Python's import of an extension module, which may bring callers of its own.
// The interpreter's dlopen alone: that function looks at who calls it, to
// search the caller's RUNPATH, and the interpreter passes whole paths.
Next<decltype(dlopen)> next_dlopen(&dlopen);

void* open_object(const char* path, int flags) {
  void* handle = next_dlopen(path, flags);
  if (handle) {
    std::lock_guard guard(state.patching);
    if (state.clients > 0) {
      settle_all();
    }
  }
  return handle;
}

const Client& loader = *new Client(
    Client::Place::kInner, {hook("dlopen", next_dlopen, &open_object, true)});

// Before any client's handlers, so that those find the lock free in the child.
const int fork_handlers = pthread_atfork(
    [] { state.patching.lock(); },
    [] { state.patching.unlock(); },
    [] { state.patching.unlock(); });

} // namespace

bool supported() {
  return fork_handlers == 0;
}

int Client::install() {
  std::lock_guard guard(state.patching);
  if (!installed_) {
    if (state.clients++ == 0) {
      add(loader);
      for (Client* c = last_constructed; c; c = c->constructed_before_) {
        for (const Hook& hook : c->hooks) {
          index_of(hook); // so that the tables are read for it, too
        }
      }
    }
    add(*this);
    installed_ = true;
  }
  settle_all();
  int count = 0;
  for (const auto& known : state.objects) {
    for (const auto& slot : known.slots) {
      count += slot.written && redirects(*this, slot);
    }
  }
  return count;
}

std::vector<std::string> Client::uninstall() {
  std::lock_guard guard(state.patching);
  std::vector<std::string> missed;
  if (!installed_) {
    return missed;
  }
  for_each_loaded([&](const dl_phdr_info& info) {
    const Object object(info);
    const KnownObject* known = find_known(object);
    const auto slots = known ? known->slots : read_object(object).slots;
    // A data word that holds another function's address is the program's own.
    if (std::any_of(slots.begin(), slots.end(), [&](const auto& slot) {
          return !slot.data_pointer && !slot.written && redirects(*this, slot);
        })) {
      missed.push_back(object.name);
    }
  });
  take_out();
  settle_all();
  return missed;
}

void Client::uninstall_in_child() {
  std::lock_guard guard(state.patching);
  if (!installed_) {
    return;
  }
  take_out();
  const auto mappings = read_mappings();
  for (auto& known : state.objects) {
    for (auto& slot : known.slots) {
      // What was unloaded is no longer mapped.
      if (slot.written &&
          protection_of(mappings, slot.address) == slot.protection) {
        settle(slot, known.object, mappings);
      }
    }
  }
}

void Client::take_out() {
  remove(*this);
  installed_ = false;
  if (--state.clients == 0) {
    remove(loader);
  }
}

bool Client::covers_interpreter(const char* symbol) const {
  std::lock_guard guard(state.patching);
  const auto covered = [&](const Redirected& slot) {
    return slot.written && redirects(*this, slot) &&
        std::strcmp(state.symbols[slot.symbol].name, symbol) == 0;
  };
  return std::any_of(
      state.objects.begin(), state.objects.end(), [&](const auto& known) {
        return known.interpreter &&
            std::any_of(known.slots.begin(), known.slots.end(), covered);
      });
}

unsigned long long objects_ever_loaded() {
  unsigned long long count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* count) {
        *static_cast<unsigned long long*>(count) = info->dlpi_adds;
        return 1; // the first object says it
      },
      &count);
  return count;
}

#endif

} // namespace torchgil::redirect
