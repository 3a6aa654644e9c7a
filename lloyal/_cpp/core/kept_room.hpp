// Room that a thread keeps from use to use. It is this one's alone while it is used: a signal handler, or a function that is
// called meanwhile, may need the same and finds none.
#pragma once

#include <utility>

namespace lloyal {

template <typename T> class KeptRoom {
  public:
    KeptRoom() { std::swap(value, kept()); }
    KeptRoom(const KeptRoom &) = delete;
    ~KeptRoom() { std::swap(value, kept()); }
    T value;

  private:
    static T & kept() {
        static thread_local T room;
        return room;
    }
};

} // namespace lloyal
