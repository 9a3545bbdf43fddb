// csrc/gil/watch/holders.cpp: the threads that a monitor has met.
#include "watch/holders.h"

#include <algorithm>
#include <utility>

namespace torchgil {
namespace {

// Threads that ended and are not taken yet: a program may make new ones for
// weeks while nobody asks.
constexpr std::ptrdiff_t kMostEnded = 1000;

} // namespace

Holder& Holders::at(const void* state) {
  Holder*& holder = now_[state];
  if (holder == nullptr) {
    holder = &all_.emplace_back(Holder{state});
  }
  return *holder;
}

bool Holders::begin(const void* state, uint64_t id, std::string name) {
  if (const auto found = now_.find(state); found != now_.end()) {
    if (found->second->id == id) {
      return false; // a greenlet's
    }
    has_ended(*found->second);
  }
  Holder& holder = at(state);
  holder.id = id;
  holder.name = std::move(name);
  return true;
}

void Holders::end(const void* state, std::string name) {
  const auto found = now_.find(state);
  if (found != now_.end()) {
    found->second->name = std::move(name);
    has_ended(*found->second);
    prune();
  }
}

void Holders::has_ended(Holder& holder) {
  now_.erase(holder.state);
  holder.ended = true;
}

void Holders::prune() {
  std::erase_if(all_, [](const Holder& holder) {
    return holder.ended && holder.looks == 0 && holder.kept == 0;
  });
  const auto untaken = [](const Holder& holder) {
    return holder.ended && holder.looks > 0 && holder.name != kOtherHolders;
  };
  for (auto n = std::count_if(all_.begin(), all_.end(), untaken);
       n > kMostEnded;
       --n) {
    Holder* least = nullptr;
    for (Holder& holder : all_) {
      if (untaken(holder) &&
          (least == nullptr || holder.looks < least->looks)) {
        least = &holder;
      }
    }
    Holder& sum = other();
    sum.looks += std::exchange(least->looks, 0);
    sum.collecting += std::exchange(least->collecting, 0);
  }
}

Holder& Holders::other() {
  for (Holder& holder : all_) {
    if (holder.ended && holder.name == kOtherHolders) {
      return holder;
    }
  }
  return all_.emplace_back(
      Holder{
          .state = nullptr, .name = std::string(kOtherHolders), .ended = true});
}

} // namespace torchgil
