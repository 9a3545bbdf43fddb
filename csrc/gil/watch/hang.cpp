// csrc/gil/watch/hang.cpp: see hang.h.
#include "watch/hang.h"

#include "collections/collections.h"
#include "cpython/gil_holder.h"
#include "cpython/thread_states.h"
#include "os_thread.h"
#include "priority/line.h"
#include "tasks.h"
#include "watch/native_stack.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <string_view>
#include <thread>

namespace torchgil {
namespace {

constexpr size_t kMostFrames = 100;
constexpr size_t kMostWaiting = 100; // whose stacks are read
constexpr int kLooks = 5;            // at what a thread does

// A thread that computes can be in a system call at any one moment. So it
// sleeps only if it is in the same one at each of several.
SystemCall sleeps_in(uint64_t native_id, Clock::duration between) {
  const std::string folder = folder_of(native_id);
  const SystemCall call = system_call_of(folder);
  for (int i = 1; i < kLooks && call.number >= 0; ++i) {
    std::this_thread::sleep_for(between);
    if (system_call_of(folder) != call) {
      return {.known = true}; // it runs
    }
  }
  return call;
}

FrozenStack stack_of(const void* state, bool read_stacks) {
  return read_stacks ? frozen_stack(state, kMostFrames) : FrozenStack{};
}

// The wait for the GIL is a timed one: each thread wakes every few
// milliseconds, and sleeps again. So one of several looks finds it.
std::map<uint64_t, std::string> waiting_names(Clock::duration between) {
  std::map<uint64_t, std::string> found;
  for (int i = 0; i < kLooks; ++i) {
    std::vector<GilMemory> places = priority::Waiter::places();
    places.push_back(gil_memory());
    for_each_task([&](const std::string& folder, uint64_t id) {
      if (found.contains(id)) {
        return;
      }
      const SystemCall call = system_call_of(folder);
      for (const GilMemory& place : places) {
        if (call.is_futex_in(place.begin, place.end)) {
          found[id] = system_name_of(folder);
        }
      }
    });
    std::this_thread::sleep_for(between);
  }
  return found;
}

// Those of the watchdog ask for the GIL only because somebody else holds it. A
// worker of ours runs the program's code.
bool is_ours(const Hang::Thread& thread) {
  return thread.who.name == "torchgil-knock" ||
      thread.who.name == "torchgil-watchdog";
}

std::vector<Hang::Thread> waiting_for_gil(
    const KnownThreads::Threads& known, const LookAtHang& how) {
  std::vector<Hang::Thread> found;
  for (const auto& [id, system_name] : waiting_names(how.between)) {
    Hang::Thread thread;
    const auto it =
        std::find_if(known.begin(), known.end(), [id = id](const auto& entry) {
          return entry.second.native_id == id;
        });
    if (it != known.end()) {
      thread.who = it->second;
      if (thread.who.name.empty()) {
        thread.who.name = system_name;
      }
      if (!can_be_of(thread.who.state, id)) {
        thread.who.state = state_of_native_thread(id);
      }
    } else {
      thread.who = {state_of_native_thread(id), 0, id, system_name};
    }
    if (is_ours(thread)) {
      continue;
    }
    if (thread.who.state != nullptr && found.size() < kMostWaiting) {
      thread.stack = stack_of(thread.who.state, how.read_stacks);
    }
    found.push_back(std::move(thread));
  }
  return found;
}

/// For a terminal, or a log of lines.
std::string printable(std::string_view text) {
  std::string shown;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next =
        i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0U;
    const bool control = byte < 0x20 || byte == 0x7F;
    const bool late_control = byte == 0xC2 && next >= 0x80 && next < 0xA0;
    const bool surrogate = byte == 0xED && next >= 0xA0;
    const bool separator = byte == 0xE2 && text.substr(i + 1, 1) == "\x80" &&
        (text.substr(i + 2, 1) == "\xA8" || text.substr(i + 2, 1) == "\xA9");
    if (control || late_control || surrogate || separator) {
      // Half a surrogate pair, and a separator of lines, are three bytes.
      const size_t length = control ? 1 : late_control ? 2 : 3;
      for (size_t end = std::min(i + length, text.size()); i < end; ++i) {
        std::array<char, 5> escaped{};
        std::snprintf(
            escaped.data(),
            escaped.size(),
            "\\x%02x",
            static_cast<unsigned char>(text[i]));
        shown += escaped.data();
      }
      --i;
    } else {
      shown += text[i];
    }
  }
  return shown;
}

std::string name_of(const KnownThread& thread) {
  const std::string name =
      thread.name.empty() ? "a thread without a name" : printable(thread.name);
  return thread.native_id == 0
      ? name
      : name + " (thread " + std::to_string(thread.native_id) + ")";
}

std::string seconds_of(Clock::duration length) {
  std::array<char, 32> text{};
  const double seconds = std::chrono::duration<double>(length).count();
  std::snprintf(
      text.data(), text.size(), seconds < 1 ? "%.3f s" : "%.1f s", seconds);
  return text.data();
}

std::string stack_in_words(const FrozenStack& stack) {
  if (!stack.known) {
    return "    (its Python frames could not be read)\n";
  }
  if (stack.frames.empty()) {
    return "    (it has no Python frame)\n";
  }
  std::string text = stack.cut ? "    ... more, further out\n" : "";
  for (auto frame = stack.frames.rbegin(); frame != stack.frames.rend();
       ++frame) {
    const std::string line =
        frame->line > 0 ? std::to_string(frame->line) : "(not known)";
    text += "    File \"" + printable(frame->filename) + "\", line " + line +
        ", in " + printable(frame->function) + "\n";
  }
  return text;
}

std::string how_many_wait(const Hang& hang) {
  if (!hang.waiting_known) {
    return "whether other threads wait for the GIL is not known";
  }
  const size_t waiting = hang.waiting.size();
  if (waiting == 0) {
    return "no other thread waits for the GIL";
  }
  return waiting == 1 ? "1 thread waits for the GIL"
                      : std::to_string(waiting) + " threads wait for the GIL";
}

} // namespace

std::shared_ptr<const Hang> look_at_hang(
    const void* holder,
    uint64_t switches,
    const KnownThreads& known,
    const LookAtHang& how) {
  auto hang = std::make_shared<Hang>();
  const auto threads = known.all();
  const auto found = threads.find(holder);
  KnownThread& who = hang->holder.who;
  if (is_of_sub_interpreter(holder)) {
    who = {holder, 0, 0, "(in a sub-interpreter)"};
  } else if (
      found != threads.end() && can_be_of(holder, found->second.native_id)) {
    who = found->second;
  } else {
    who = {holder, 0, native_id_at(holder), ""};
  }
  if (who.name.empty() && who.native_id != 0) {
    who.name = system_name_of(folder_of(who.native_id));
  }
  hang->holder.stack = stack_of(holder, how.read_stacks);
  const SystemCall call = sleeps_in(who.native_id, how.between);
  hang->state = !call.known ? "is not known to run or to sleep"
      : call.number < 0     ? "runs"
                            : "sleeps in " + call.name();
  hang->objects = objects_on_stack(call);
  hang->collecting = collections::collecting() == holder;
  hang->waiting_known = system_call_of(folder_of(this_native_id())).known;
  hang->waiting = waiting_for_gil(threads, how);
  // Each of these was read while the same thread held the GIL.
  return gil_holder() == holder && gil_switches() == switches ? hang : nullptr;
}

std::string in_words(const Hang& hang, Clock::duration length) {
  const bool waits = hang.state == "sleeps in futex" && !hang.waiting.empty();
  std::string text = "torchgil: the GIL is stuck: " + name_of(hang.holder.who) +
      " has held it for " + seconds_of(length) + " and still does\n";
  text += "  it " + hang.state +
      (hang.collecting ? ", amid a garbage collection" : "");
  text += waits ? ": it holds the GIL and waits for something else; " : "; ";
  text += how_many_wait(hang) + "\n";
  if (!hang.objects.empty()) {
    text += "  native code on its stack, the innermost first:";
    for (const std::string& path : hang.objects) {
      text += (&path == hang.objects.data() ? " " : ", ") + printable(path);
    }
    text += "\n";
  }
  text += "  " + name_of(hang.holder.who) + ", most recent call last:\n" +
      stack_in_words(hang.holder.stack);
  for (const Hang::Thread& thread : hang.waiting) {
    text += "  " + name_of(thread.who) + " waits for the GIL:\n" +
        (thread.who.state != nullptr ? stack_in_words(thread.stack)
                                     : "    (it is in no Python code yet)\n");
  }
  return text;
}

std::string end_in_words(const Hang& hang, Clock::duration length) {
  return "torchgil: " + name_of(hang.holder.who) + " held the GIL for " +
      seconds_of(length) + "; it has let it go\n";
}

} // namespace torchgil
