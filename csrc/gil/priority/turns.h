// csrc/gil/priority/turns.h: who waits for the GIL in which way, and who is
// woken.
#pragma once

#include "redirect/redirect.h"

#include <cstdint>

namespace torchgil::priority {

/// Redirects the interpreter's timed wait and its signals.
extern redirect::Client& waits;

/// Whether a fork leaves the child an empty line.
bool follows_forks();

/// How many threads with priority asked before the interpreter would, each once
/// for each time that it wanted the GIL: the tests' witness.
uint64_t answers();

/// How many times one of them waited for what it owed, before it asked.
uint64_t owed_waits();

/// How many times one of the others asked because it was owed.
uint64_t turns_of_others();

} // namespace torchgil::priority
