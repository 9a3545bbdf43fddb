// csrc/gil/redirect/reserved.h: memory that is asked for beforehand.
#pragma once

#include <cstddef>
#include <vector>

namespace torchgil::redirect {

/// A list whose memory is asked for before it is filled, because where it is
/// filled no memory may be asked for (loaded.h).
template <typename T>
class Reserved {
 public:
  /// Forgets the items. Has room for `count` of them at least. Allocates.
  void reserve(size_t count) {
    items_.clear();
    items_.reserve(count);
  }
  void clear() {
    items_.clear();
  }
  /// False, and nothing is added, where it is full.
  bool add(const T& item) {
    if (items_.size() == items_.capacity()) {
      return false;
    }
    items_.push_back(item);
    return true;
  }
  size_t size() const {
    return items_.size();
  }
  T& operator[](size_t i) {
    return items_[i];
  }
  const T& operator[](size_t i) const {
    return items_[i];
  }
  auto begin() {
    return items_.begin();
  }
  auto end() {
    return items_.end();
  }
  auto begin() const {
    return items_.begin();
  }
  auto end() const {
    return items_.end();
  }

 private:
  std::vector<T> items_;
};

} // namespace torchgil::redirect
