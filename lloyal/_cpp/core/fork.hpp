// fork() copies neither llama.cpp's threads nor its hold on devices and servers: in the child nothing native works, and
// freeing it would wait for threads that are not there, or free what the parent still uses on a server.
#pragma once

#include <memory>
#include <utility>

namespace lloyal {

// Idempotent; called when llama.cpp is started.
void fork_install();

// True in a child of the process that started llama.cpp.
bool forked();

// A shared_ptr whose object is left alone by a forked child.
template <typename T, typename... Args> std::shared_ptr<T> make_handle(Args &&... args) {
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](T * object) {
        if (!forked()) {
            delete object;
        }
    });
}

} // namespace lloyal
