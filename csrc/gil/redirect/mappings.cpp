// csrc/gil/redirect/mappings.cpp: reads /proc/self/maps.
#include "redirect/mappings.h"

#include "redirect/elf_slots.h"

#ifdef TORCHGIL_ELF
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace torchgil::redirect {
namespace {

int hex(char digit) {
  return digit <= '9' ? digit - '0' : digit - 'a' + 10;
}

/// Takes the file's text in pieces: "begin-end mode offset ...", a line for
/// each mapping.
class Parser {
 public:
  explicit Parser(Mappings& into) : into_(into) {}

  /// False where there is no more room.
  bool take(char c) {
    switch (field_) {
      case Field::kBegin:
        if (c == '-') {
          field_ = Field::kEnd;
        } else {
          mapping_.begin = mapping_.begin * 16 + hex(c);
        }
        return true;
      case Field::kEnd:
        if (c == ' ') {
          field_ = Field::kMode;
        } else {
          mapping_.end = mapping_.end * 16 + hex(c);
        }
        return true;
      case Field::kMode:
        mapping_.protection |= c == 'r' ? PROT_READ
            : c == 'w'                  ? PROT_WRITE
            : c == 'x'                  ? PROT_EXEC
                                        : 0;
        if (c == ' ') {
          field_ = Field::kRest;
          return into_.add(mapping_);
        }
        return true;
      default:
        if (c == '\n') {
          field_ = Field::kBegin;
          mapping_ = {};
        }
        return true;
    }
  }

 private:
  enum class Field { kBegin, kEnd, kMode, kRest };
  Field field_ = Field::kBegin;
  Mapping mapping_{};
  Mappings& into_;
};

} // namespace

std::atomic<bool> no_descriptor{false};

// Not by stdio, which allocates.
bool read_mappings(Mappings& into) {
  into.clear();
  const int file = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  no_descriptor = file < 0 && (errno == EMFILE || errno == ENFILE);
  if (file < 0) {
    return true;
  }
  Parser parser(into);
  bool fits = true;
  char text[4096];
  ssize_t size = 0;
  while (fits &&
         ((size = ::read(file, text, sizeof text)) > 0 ||
          (size < 0 && errno == EINTR))) {
    fits = std::all_of(text, text + std::max<ssize_t>(size, 0), [&](char c) {
      return parser.take(c);
    });
  }
  ::close(file);
  return fits;
}

int protection_of(const Mappings& mappings, const void* address) {
  const auto a = reinterpret_cast<uintptr_t>(address);
  auto it = std::upper_bound(
      mappings.begin(), mappings.end(), a, [](uintptr_t x, const Mapping& m) {
        return x < m.end;
      });
  return it != mappings.end() && it->begin <= a ? it->protection : -1;
}

} // namespace torchgil::redirect

#endif
