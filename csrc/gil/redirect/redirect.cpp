// csrc/gil/redirect/redirect.cpp: what each slot of each loaded object should
// hold.
//
// One table of all slots serves every client. A slot holds the replacement of
// the outermost client that is installed, whose `next` leads on to the other's,
// or to the function itself. Whoever comes or goes changes the clients of the
// functions, and then settle_all() makes the slots so.
//
// These locks are involved, and are taken in this order:
//   1. the loader's (dl_load_lock). It is held while a library is loaded or
//      unloaded, and while its constructors run. These may import a module or
//      begin a trace, and then a thread comes here with this lock.
//   2. `patching`, ours: all that is in `state`, and so one change at a time.
//   3. that of the loader's list (dl_load_write_lock). dl_iterate_phdr() holds
//      it around its callbacks, the loader while it enters or removes an
//      object.
// The GIL is never held by a thread that waits for one of these: a constructor
// with the first, or a callback written in Python with the third, may want it.
// So whoever comes here with the GIL gives it up first and gets it back last
// (Turn), which is the case in Python's own import of an extension as well.
//
// Within a walk, with the third lock, our code therefore
//   - looks no symbol up (dlsym takes the first lock): what is needed was found
//     as our extension was loaded;
//   - allocates nothing: an allocator may have a lock that another thread holds
//     while it waits for the loader, as a heap profiler does that records
//     stacks. Memory is reserved before (loaded.h);
//   - takes no lock, and touches no thread-local variable that the loader might
//     have to place first.
// It reads memory and /proc/self/maps, and writes slots. That has to be done
// there: outside of it what was read may be unloaded, and another object lie in
// its place.
#include "redirect/redirect.h"

#include "redirect/elf_slots.h"

#ifdef TORCHGIL_ELF
#include <Python.h>

#include <torchgil/gil.h>

#include "redirect/loaded.h"
#include "redirect/mappings.h"
#include "redirect/written_slot.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>

namespace torchgil::redirect {
namespace {

// Written while our extension is loaded, by one thread.
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
bool could_look() {
  return true;
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
void Client::keep_installed() {}

#else

namespace {

// Never destroyed: what they describe is called until the process ends.
struct State {
  std::mutex patching;
  // Read and written with `patching` held, but for loader_is_lost, which the
  // child of a fork writes while it has one thread:
  std::vector<Symbol> symbols;                 // of all clients that ever came
  std::vector<const AnyNext*> functions;       // of the symbols
  std::vector<std::vector<const Hook*>> hooks; // likewise; the outermost first
  LoadedObjects loaded{reinterpret_cast<const void*>(&Py_Initialize)};
  // So many objects had been loaded when none was left alone.
  unsigned long long complete_at = 0;
  int clients = 0;             // installed
  bool loader_is_lost = false; // this is a fork's child, and cannot ask it
};
State& state = *new State;

/// Whoever changes anything here. GIL: not held meanwhile, whether or not it is
/// before and after; see the order of locks at the top.
class Turn {
 public:
  Turn() {
    if (gil_held()) {
      released_.emplace();
    }
    guard_ = std::unique_lock(state.patching);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::optional<ReleaseWindow> released_; // the last to end
  std::unique_lock<std::mutex> guard_;
};

void* original(size_t symbol) {
  return state.functions[symbol]->original;
}

// Makes a slot hold what the clients of its function want now.
void settle(Slot& slot, const Object& object, const Mappings& mappings) {
  const auto& hooks = state.hooks[slot.symbol];
  void* const wanted = hooks.empty() ? nullptr : hooks.front()->replacement;
  write_slot(slot, wanted, original(slot.symbol), object, mappings);
}

size_t index_of(const Hook& hook) {
  const auto it = std::find_if(
      state.symbols.begin(), state.symbols.end(), [&](const Symbol& s) {
        return std::strcmp(s.name, hook.symbol) == 0;
      });
  const size_t index = it - state.symbols.begin();
  if (it == state.symbols.end()) {
    if (index == kMostSymbols) {
      throw std::length_error("redirect: more functions than it can look for");
    }
    state.symbols.push_back({hook.symbol, hook.interpreter_only});
    state.functions.push_back(hook.next);
    state.hooks.emplace_back();
  }
  return index;
}

// Links the installed clients of one function, the outermost first.
void link(size_t symbol) {
  const auto& hooks = state.hooks[symbol];
  for (size_t i = 0; i < hooks.size(); ++i) {
    hooks[i]->next->address =
        i + 1 < hooks.size() ? hooks[i + 1]->replacement : original(symbol);
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
    hook.next->address =
        hook.next->original.load(); // for a call that is under way
  }
}

// Which of the client's hooks a slot is for; as many as there are: none.
size_t index_in(const Client& client, const Slot& slot) {
  const auto it = std::find_if(
      client.hooks.begin(), client.hooks.end(), [&](const Hook& hook) {
        return std::strcmp(state.symbols[slot.symbol].name, hook.symbol) == 0;
      });
  return it - client.hooks.begin();
}

// A data word that holds another function's address is the program's own.
bool was_unseen(const Client& client, std::span<Slot> slots) {
  return std::any_of(slots.begin(), slots.end(), [&](const Slot& slot) {
    return !slot.data_pointer && !slot.written &&
        index_in(client, slot) < client.hooks.size();
  });
}

// Makes every slot so, in what is loaded now. Returns the objects whose calls a
// client that has just gone did not see.
std::vector<std::string> settle_all(const Client* gone = nullptr) {
  std::vector<std::string> missed;
  if (state.loader_is_lost) {
    return missed;
  }
  bool complete = true;
  state.loaded.walk(
      state.symbols,
      [&](LoadedObject& loaded,
          std::span<Slot> slots,
          const Mappings& mappings) {
        loaded.missed = gone && was_unseen(*gone, slots);
        // Before that, its loader writes to the same pages, and locks them.
        const bool relocated = is_relocated(loaded.object, mappings);
        complete = complete && relocated;
        for (Slot& slot : slots) {
          if (slot.written || relocated) {
            settle(slot, loaded.object, mappings);
          }
        }
      });
  state.complete_at = complete ? state.loaded.ever_loaded() : 0;
  for (const LoadedObject& loaded : state.loaded.objects()) {
    if (loaded.missed) {
      missed.emplace_back(loaded.object.name);
    }
  }
  return missed;
}

// How many objects were ever loaded. 1 us.
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

// Python's import of an extension module, which may bring callers of its own.
// The interpreter's dlopen alone: that function looks at who calls it, to
// search the caller's RUNPATH, and the interpreter passes whole paths.
Next<decltype(dlopen)> next_dlopen(&dlopen);

void* open_object(const char* path, int flags) {
  void* handle = next_dlopen(path, flags);
  if (handle) {
    const Turn turn;
    if (state.clients > 0) {
      settle_all();
    }
  }
  return handle;
}

const Client& loader = *new Client(
    Client::Place::kInner, {hook("dlopen", next_dlopen, &open_object, true)});

// A fork waits until whoever changes something is ready: the child has no such
// thread, but what that thread had locked, the loader's list above all, which
// glibc does not unlock for it. After a second it waits no longer: the other
// waits for that list itself then, which is in the hands of a callback that
// wants the GIL, and the forking thread has that. The child of such a fork
// cannot ask the loader for anything, and redirects nothing more.
bool forks_in_turn = false;

void before_fork() {
  for (int ms = 0; ms < 1000; ++ms) {
    forks_in_turn = state.patching.try_lock();
    if (forks_in_turn) {
      return;
    }
    ::usleep(1000);
  }
}

void after_fork_in_parent() {
  if (forks_in_turn) {
    state.patching.unlock();
  }
}

void after_fork_in_child() {
  if (forks_in_turn) {
    state.patching.unlock();
  } else {
    new (&state.patching) std::mutex; // the other's
    state.loader_is_lost = true;
  }
}

// Before any client's handlers, so that those find the lock free in the child.
const int fork_handlers =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

} // namespace

bool supported() {
  return fork_handlers == 0 && !state.loader_is_lost;
}

bool could_look() {
  return !no_descriptor;
}

int Client::install() {
  const Turn turn;
  return install_in_turn();
}

void Client::keep_installed() {
  const Turn turn;
  if (!state.loader_is_lost &&
      (!installed_ || state.complete_at != objects_ever_loaded())) {
    install_in_turn();
  }
}

int Client::install_in_turn() {
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
  uint64_t covers = 0;
  for (const LoadedObject& loaded : state.loaded.objects()) {
    for (const Slot& slot : state.loaded.slots_of(loaded)) {
      const size_t hook = index_in(*this, slot);
      if (slot.written && hook < hooks.size()) {
        ++count;
        covers |= uint64_t{loaded.interpreter} << hook;
      }
    }
  }
  covers_ = covers;
  return count;
}

std::vector<std::string> Client::uninstall() {
  const Turn turn;
  if (!installed_) {
    return {};
  }
  take_out();
  return settle_all(this);
}

void Client::uninstall_in_child() {
  std::lock_guard guard(state.patching); // no other thread is there
  if (!installed_ || state.loader_is_lost) {
    return; // what stays redirected passes its calls on
  }
  take_out();
  state.loaded.visit_known([](LoadedObject& loaded,
                              std::span<Slot> slots,
                              const Mappings& mappings) {
    for (Slot& slot : slots) {
      // What was unloaded is no longer mapped.
      if (slot.written &&
          protection_of(mappings, slot.address) == slot.protection) {
        settle(slot, loaded.object, mappings);
      }
    }
  });
}

void Client::take_out() {
  remove(*this);
  installed_ = false;
  if (--state.clients == 0) {
    remove(loader);
  }
}

bool Client::covers_interpreter(const char* symbol) const {
  for (size_t i = 0; i < hooks.size(); ++i) {
    if (std::strcmp(hooks[i].symbol, symbol) == 0) {
      return covers_ >> i & 1;
    }
  }
  return false;
}

#endif

} // namespace torchgil::redirect
