// csrc/gil/cpython/frozen_stack.cpp: see frozen_stack.h.
//
// PyThreadState and PyCodeObject are in public headers. The frame is not: three
// of its words are needed, which lie here since
//   3.10        a frame is an object, whose struct is public;
//   3.11        { function, globals, builtins, locals, code, object, previous,
//               instruction before the next one, ... };
//   3.12        { code, previous, function, globals, builtins, locals, object,
//               instruction before the next one, ... };
//   3.13, 3.14  the same, with the instruction itself, and the code tagged in
//               its lowest bits.
// can_read_frozen_stacks() compares with the interpreter's own answer.
#include <Python.h>
#if PY_VERSION_HEX < 0x030B0000
#include <frameobject.h>
#endif

#include "cpython/frozen_stack.h"

#include "own_memory.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

namespace torchgil {
namespace {

constexpr size_t kMostCharacters = 4096;   // of a name
constexpr Py_ssize_t kMostTable = 1 << 20; // bytes of a code's table of lines
constexpr int kMostBetween = 1000;         // frames that are not Python's

#if PY_VERSION_HEX < 0x030B0000
constexpr size_t kCode = offsetof(PyFrameObject, f_code);
constexpr size_t kPrevious = offsetof(PyFrameObject, f_back);
#elif PY_VERSION_HEX < 0x030C0000
constexpr size_t kCode = 4 * sizeof(void*);
constexpr size_t kPrevious = 6 * sizeof(void*);
constexpr size_t kInstruction = 7 * sizeof(void*);
#else
constexpr size_t kCode = 0;
constexpr size_t kPrevious = sizeof(void*);
constexpr size_t kInstruction = 7 * sizeof(void*);
#endif

/// What of a frame is read.
struct Link {
  const char* frame = nullptr;
  const char* code = nullptr;
  uint64_t instruction = 0; // 3.10: its number; later: where it is
  int line = 0;             // 3.10: what a trace function has set

  bool operator==(const Link&) const = default;
};

const char* first_frame(const void* thread_state) {
  const auto* at = static_cast<const char*>(thread_state);
  const char* frame = nullptr;
#if PY_VERSION_HEX < 0x030B0000
  return read_memory(at + offsetof(PyThreadState, frame), frame) ? frame
                                                                 : nullptr;
#elif PY_VERSION_HEX < 0x030D0000
  const char* cframe = nullptr;
  const bool found =
      read_memory(at + offsetof(PyThreadState, cframe), cframe) && cframe &&
      read_memory(cframe + offsetof(_PyCFrame, current_frame), frame);
  return found ? frame : nullptr;
#else
  return read_memory(at + offsetof(PyThreadState, current_frame), frame)
      ? frame
      : nullptr;
#endif
}

/// Whether the interpreter itself shows this frame. Before what it traces of
/// the code stand those that it has between others, as around a class's
/// __init__, and those that have not begun.
bool is_shown([[maybe_unused]] const Link& link) {
#if PY_VERSION_HEX >= 0x030B0000
  int first = 0; // instruction
  const auto begin = reinterpret_cast<uint64_t>(link.code) +
      offsetof(PyCodeObject, co_code_adaptive);
  return read_memory(
             link.code + offsetof(PyCodeObject, _co_firsttraceable), first) &&
      link.instruction >= begin + 2 * static_cast<uint64_t>(first);
#else
  return true;
#endif
}

/// The frames of Python code, the innermost first; nothing where one cannot be
/// read. From 3.12 on the interpreter has frames of its own between them.
std::optional<std::vector<Link>> chain(
    const void* thread_state, size_t most, bool& cut) {
  std::vector<Link> links;
  const char* frame = first_frame(thread_state);
  int between = 0;
  while (frame != nullptr && links.size() < most && between < kMostBetween) {
    Link link;
    link.frame = frame;
    const char* previous = nullptr;
    PyTypeObject* type = nullptr;
    if (!read_memory(frame + kCode, link.code) ||
        !read_memory(frame + kPrevious, previous)) {
      return std::nullopt;
    }
#if PY_VERSION_HEX < 0x030B0000
    int instruction = 0;
    if (!read_memory(frame + offsetof(PyFrameObject, f_lasti), instruction) ||
        !read_memory(frame + offsetof(PyFrameObject, f_lineno), link.line)) {
      return std::nullopt;
    }
    link.instruction = static_cast<uint64_t>(instruction);
#else
    if (!read_memory(frame + kInstruction, link.instruction)) {
      return std::nullopt;
    }
    link.code -= reinterpret_cast<uintptr_t>(link.code) % alignof(PyObject);
#endif
    if (link.code != nullptr &&
        read_memory(link.code + offsetof(PyObject, ob_type), type) &&
        type == &PyCode_Type && is_shown(link)) {
      links.push_back(link);
    } else {
      ++between;
    }
    frame = previous;
  }
  cut = frame != nullptr;
  return links;
}

void add_utf8(std::string& text, uint32_t character) {
  const auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
  const auto rest = [&](int shift) {
    add(0x80 | ((character >> shift) & 0x3F));
  };
  if (character < 0x80) {
    add(character);
  } else if (character < 0x800) {
    add(0xC0 | (character >> 6));
    rest(0);
  } else if (character < 0x10000) {
    add(0xE0 | (character >> 12));
    rest(6);
    rest(0);
  } else {
    add(0xF0 | ((character >> 18) & 7));
    rest(12);
    rest(6);
    rest(0);
  }
}

/// Whether it is str, or a class that inherits from it, as a name may be of.
bool is_str(const PyTypeObject* type) {
  const auto* at = reinterpret_cast<const char*>(type);
  unsigned long flags = 0;
  return type == &PyUnicode_Type ||
      (read_memory(at + offsetof(PyTypeObject, tp_flags), flags) &&
       flags & Py_TPFLAGS_UNICODE_SUBCLASS);
}

/// A str, or nothing where it is none; cut where it is long.
std::optional<std::string> text_at(const PyObject* object) {
  PyASCIIObject head{};
  if (!read_memory(object, head) || !is_str(head.ob_base.ob_type) ||
      head.length < 0) {
    return std::nullopt;
  }
  const size_t length =
      std::min(static_cast<size_t>(head.length), kMostCharacters);
  const size_t width = head.state.kind;
  std::vector<unsigned char> data(length * width);
  const char* at = reinterpret_cast<const char*>(object) +
      (head.state.ascii ? sizeof(PyASCIIObject)
                        : sizeof(PyCompactUnicodeObject));
  if (!head.state.compact &&
      !read_memory(
          reinterpret_cast<const char*>(object) +
              offsetof(PyUnicodeObject, data),
          at)) {
    return std::nullopt;
  }
  if (!data.empty() && !read_memory(at, data.data(), data.size())) {
    return std::nullopt;
  }
  std::string text;
  text.reserve(data.size());
  for (size_t i = 0; i < length; ++i) {
    uint32_t character = 0;
    for (size_t byte = width; byte-- > 0;) { // little-endian, as x86 and ARM
      character = character << 8 | data[i * width + byte];
    }
    add_utf8(text, character);
  }
  return text;
}

std::optional<std::string> bytes_at(const PyObject* object) {
  PyBytesObject head{};
  const size_t before = offsetof(PyBytesObject, ob_sval);
  if (!read_memory(object, &head, before) ||
      head.ob_base.ob_base.ob_type != &PyBytes_Type ||
      head.ob_base.ob_size < 0 || head.ob_base.ob_size > kMostTable) {
    return std::nullopt;
  }
  std::string bytes(static_cast<size_t>(head.ob_base.ob_size), '\0');
  if (!bytes.empty() &&
      !read_memory(
          reinterpret_cast<const char*>(object) + before,
          bytes.data(),
          bytes.size())) {
    return std::nullopt;
  }
  return bytes;
}

#if PY_VERSION_HEX < 0x030B0000

/// By the table of 3.10: pairs of bytes, how far the instructions and the line
/// go on; -128: no line. `at`: in bytes of code.
int line_at(std::string_view table, int line, int64_t at) {
  int64_t end = 0;
  for (size_t i = 0; i + 1 < table.size(); i += 2) {
    const int step = static_cast<signed char>(table[i + 1]);
    line += step == -128 ? 0 : step;
    end += static_cast<unsigned char>(table[i]);
    if (at < end) {
      return step == -128 ? 0 : line;
    }
  }
  return 0;
}

#else

/// Reads the numbers in an entry of the table.
class Entry {
 public:
  Entry(std::string_view table, size_t at) : table_(table), at_(at) {}

  int number() {
    unsigned value = 0;
    unsigned byte = 0x40;
    for (int shift = 0; byte & 0x40 && shift < 30; shift += 6) {
      byte =
          at_ < table_.size() ? static_cast<unsigned char>(table_[at_++]) : 0;
      value |= (byte & 0x3F) << shift;
    }
    return value & 1 ? -static_cast<int>(value >> 1)
                     : static_cast<int>(value >> 1);
  }

 private:
  std::string_view table_;
  size_t at_;
};

/// By the table of 3.11 and later (PEP 657): entries whose first byte alone has
/// the highest bit; it has a kind, and how many instructions the entry is of.
/// `at`: in instructions.
int line_at(std::string_view table, int line, int64_t at) {
  int64_t end = 0;
  for (size_t i = 0; i < table.size();) {
    const auto first = static_cast<unsigned char>(table[i]);
    const int kind = first >> 3 & 15;
    if (kind == 13 || kind == 14) {
      line += Entry(table, i + 1).number();
    } else if (kind >= 10 && kind <= 12) {
      line += kind - 10;
    }
    end += (first & 7) + 1;
    if (at < end) {
      return kind == 15 ? 0 : line;
    }
    ++i;
    while (i < table.size() && !(table[i] & 0x80)) {
      ++i;
    }
  }
  return 0;
}

#endif

std::optional<FrozenFrame> read_frame(const Link& link) {
  PyCodeObject code{};
  if (!read_memory(link.code, code)) {
    return std::nullopt;
  }
  auto filename = text_at(code.co_filename);
  auto function = text_at(code.co_name);
  const auto table = bytes_at(code.co_linetable);
  if (!filename || !function || !table) {
    return std::nullopt;
  }
#if PY_VERSION_HEX < 0x030B0000
  const int64_t at = static_cast<int64_t>(link.instruction) * 2;
#else
  const auto begin = reinterpret_cast<uint64_t>(link.code) +
      offsetof(PyCodeObject, co_code_adaptive);
  const int64_t at = static_cast<int64_t>(link.instruction - begin) / 2;
#endif
  const int line =
      link.line ? link.line : line_at(*table, code.co_firstlineno, at);
  return FrozenFrame{std::move(*filename), line, std::move(*function)};
}

} // namespace

FrozenStack frozen_stack(const void* thread_state, size_t most_frames) {
  FrozenStack stack;
  const auto before = chain(thread_state, most_frames, stack.cut);
  if (!before) {
    return stack;
  }
  for (const Link& link : *before) {
    auto frame = read_frame(link);
    if (!frame) {
      return stack;
    }
    stack.frames.push_back(std::move(*frame));
  }
  stack.known = chain(thread_state, most_frames, stack.cut) == before;
  return stack;
}

bool can_read_frozen_stacks() {
  constexpr size_t kCompared = 20;
  const FrozenStack stack = frozen_stack(PyThreadState_Get(), kCompared);
  bool same = stack.known;
  size_t depth = 0;
  PyFrameObject* frame = PyThreadState_GetFrame(PyThreadState_Get());
  while (frame != nullptr && depth < kCompared) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    same = same && depth < stack.frames.size() &&
        stack.frames[depth].line == PyFrame_GetLineNumber(frame) &&
        stack.frames[depth].filename == text_at(code->co_filename) &&
        stack.frames[depth].function == text_at(code->co_name);
    Py_DECREF(code);
    PyFrameObject* back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
    ++depth;
  }
  Py_XDECREF(frame);
  return same && depth == stack.frames.size();
}

} // namespace torchgil
