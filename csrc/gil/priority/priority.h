// csrc/gil/priority/priority.h: threads that get the GIL back at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace torchgil::priority {

/// Redirects the interpreter's timed wait, and its signal at each release, for
/// windows with priority. Once done it stays: a thread without priority pays
/// one thread-local load for each wait, and a look at who waits for each
/// release. Returns why it cannot be done, or null. GIL: held on entry and
/// return; the first call gives it up in between.
const char* redirect_wait();

/// How many blocks with priority a thread is in.
using Depth = std::shared_ptr<std::atomic<int64_t>>;

/// The calling thread has priority from now on, until leave() was called as
/// often. The first call of the process redirects; a thread's first one adds
/// the objects loaded meanwhile. GIL: held on entry and return; a thread's
/// first call gives it up in between.
Depth enter();

/// Ends what enter() began; any thread may call it, at any time.
void leave(const Depth& depth);

/// Whether the calling thread has priority.
bool has_priority();

/// Whether the interpreter's own releases, as that of time.sleep, pass its
/// entry points where they are redirected. They do not where it calls these
/// within itself, as one that is linked statically does: a thread that comes
/// back from such a release is known by its wait for the GIL alone. Known after
/// the first enter().
bool sees_own_releases();

} // namespace torchgil::priority
