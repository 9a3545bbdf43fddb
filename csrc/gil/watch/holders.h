// csrc/gil/watch/holders.h: the threads that a monitor has met.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

namespace torchgil {

/// A thread that has been seen holding the GIL, or could be.
struct Holder {
  const void* state;  // its PyThreadState's address, while it has not ended
  uint64_t id = 0;    // of that PyThreadState; 0: not known yet
  std::string name{}; // as it was last seen; empty: not yet
  bool ended = false;
  uint64_t looks = 0;      // that found it holding, and are not taken yet
  uint64_t collecting = 0; // of these, in a garbage collection
  uint64_t kept = 0;       // looks at it that can be asked for again
};

/// All of them. The interpreter uses the memory of a PyThreadState again, so an
/// address stands for one thread only until that ends: threads say themselves
/// when they begin and end. One that Python did not start does not, and is
/// told from another at its address by the PyThreadState's id alone.
///
/// Addresses of holders stay good until prune(), which only a thread with the
/// GIL calls, as it does all but at(). The owner's lock is held in each.
class Holders {
 public:
  /// Who holds the GIL where this PyThreadState does. GIL: not needed.
  Holder& at(const void* state);

  /// False where this thread is known already.
  bool begin(const void* state, uint64_t id, std::string name);

  /// The thread here has ended, under this name.
  void end(const void* state, std::string name);

  /// It has ended some time ago; its name stays as it was last seen.
  void has_ended(Holder& holder);

  /// Forgets what nothing speaks of any more, and of many that have ended keeps
  /// those with the most looks apart.
  void prune();

  std::list<Holder>& all() {
    return all_;
  }

 private:
  Holder& other();

  std::list<Holder> all_;
  std::unordered_map<const void*, Holder*> now_; // those that have not ended
};

/// The name of those that are not kept apart.
inline constexpr std::string_view kOtherHolders = "(other)";

} // namespace torchgil
