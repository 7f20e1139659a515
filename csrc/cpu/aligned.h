// Arrays that begin on a line of the cache: a vector that crosses two lines costs two loads, a tile of AMX
// four times as much.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace pfgm {

template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  friend bool operator==(LineAllocator, LineAllocator) { return true; }
};

template <class T>
using Array = std::vector<T, LineAllocator<T>>;

}  // namespace pfgm
