// csrc/gil/redirect/mappings.h: what of this process's memory is mapped, and
// how.
#pragma once

#include "redirect/reserved.h"

#include <atomic>
#include <cstdint>

namespace torchgil::redirect {

/// A stretch of memory. The protection is that of mprotect().
struct Mapping {
  uintptr_t begin, end;
  int protection;
};

using Mappings = Reserved<Mapping>; // in the order of their addresses

/// Reads them anew, as is done for each change: whoever else writes to these
/// pages may change their protection. False where there are more than `into`
/// has room for. Allocates nothing and takes no lock. Where the system does not
/// tell, there are none.
bool read_mappings(Mappings& into);

/// Whether that failed the last time, since the process had no free descriptor.
extern std::atomic<bool> no_descriptor;

/// -1 where the address is not mapped.
int protection_of(const Mappings& mappings, const void* address);

} // namespace torchgil::redirect
