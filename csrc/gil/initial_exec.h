// csrc/gil/initial_exec.h: thread-local variables that are found without the
// loader.
#pragma once

/// For the thread-local variables of whatever runs in place of a redirected
/// call, before the declaration. By default a thread's first use of such a
/// variable asks the loader where it lies, and waits for the loader's lock; the
/// redirected calls are made with the GIL, or with the lock behind it, and a
/// library's constructor that wants the GIL is run under the loader's lock.
/// With this the place is known when the extension is loaded, and a use is one
/// load from memory.
#if defined(__ELF__)
#define TORCHGIL_INITIAL_EXEC __attribute__((tls_model("initial-exec")))
#else
#define TORCHGIL_INITIAL_EXEC
#endif
