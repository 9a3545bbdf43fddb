// csrc/gil/watch/native_stack.cpp: see native_stack.h.
#include <Python.h>

#include "watch/native_stack.h"

#include "own_memory.h"
#include "proc_file.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

namespace torchgil {
namespace {

constexpr size_t kMostBytes = 64 << 10; // of the stack
constexpr size_t kMostObjects = 8;
constexpr size_t kMostMaps = 16 << 20; // bytes of /proc/self/maps

/// Code of a shared object.
struct Code {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  std::string path;
};

/// By address, from /proc/self/maps.
std::vector<Code> mapped_code() {
  std::vector<Code> found;
  const std::string maps =
      read_proc_file("/proc/self/maps", kMostMaps).value_or("");
  for (size_t at = 0, end = 0; (end = maps.find('\n', at)) != maps.npos;
       at = end + 1) {
    const std::string line = maps.substr(at, end - at);
    Code code;
    std::array<char, 5> rights{};
    int path = 0;
    if (std::sscanf(
            line.c_str(),
            "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %*s %n",
            &code.begin,
            &code.end,
            rights.data(),
            &path) >= 3 &&
        rights[2] == 'x' && line[path] == '/') {
      code.path = line.substr(path);
      found.push_back(std::move(code));
    }
  }
  return found;
}

const Code* code_at(const std::vector<Code>& all, uintptr_t address) {
  const auto next = std::upper_bound(
      all.begin(), all.end(), address, [](uintptr_t at, const Code& code) {
        return at < code.begin;
      });
  const Code* code = next == all.begin() ? nullptr : &*(next - 1);
  return code && address < code->end ? code : nullptr;
}

/// Whether the instruction before this address is a call.
bool is_behind_call(uintptr_t address) {
#if defined(__aarch64__)
  uint32_t before = 0;
  return address % 4 == 0 &&
      read_memory(reinterpret_cast<const void*>(address - 4), before) &&
      ((before & 0xFC000000) == 0x94000000 || // bl
       (before & 0xFFFFFC1F) == 0xD63F0000);  // blr
#elif defined(__x86_64__)
  std::array<uint8_t, 7> before{};
  if (!read_memory(reinterpret_cast<const void*>(address - 7), before)) {
    return false;
  }
  // A call by a register or by memory is FF /2 in two to seven bytes.
  const auto indirect = [&](size_t length) {
    const uint8_t how = before[before.size() - length + 1];
    return before[before.size() - length] == 0xFF && (how & 0x38) == 0x10;
  };
  return before[2] == 0xE8 || indirect(2) || indirect(3) || indirect(4) ||
      indirect(6) || indirect(7);
#else
  return false;
#endif
}

bool is_runtime(std::string_view path) {
  const std::string_view name = path.substr(path.rfind('/') + 1);
  for (const char* known :
       {"libc.so", "libc-", "libpthread", "ld-", "libstdc++", "libgcc_s"}) {
    if (name.starts_with(known)) {
      return true;
    }
  }
  return false;
}

} // namespace

std::vector<std::string> objects_on_stack(const SystemCall& call) {
  std::vector<std::string> found;
  if (call.stack == 0) {
    return found;
  }
  const std::vector<Code> all = mapped_code();
  const Code* interpreter =
      code_at(all, reinterpret_cast<uintptr_t>(&PyObject_Call));
  std::array<uintptr_t, 64> words{};
  for (size_t at = 0; at < kMostBytes; at += sizeof(words)) {
    // The end of the stack may lie amid them.
    if (!read_memory(reinterpret_cast<const void*>(call.stack + at), words)) {
      return found;
    }
    for (const uintptr_t word : words) {
      const Code* code = code_at(all, word);
      if (code == nullptr || !is_behind_call(word)) {
        continue;
      }
      if (interpreter != nullptr && code->path == interpreter->path) {
        return found;
      }
      if (!is_runtime(code->path) &&
          std::find(found.begin(), found.end(), code->path) == found.end()) {
        found.push_back(code->path);
      }
      if (found.size() == kMostObjects) {
        return found;
      }
    }
  }
  return found;
}

} // namespace torchgil
