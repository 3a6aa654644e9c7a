// The end of the process. The libraries destroy their static objects then, which a thread that nobody joins (a daemon of
// Python's) may still be computing with.
#pragma once

namespace lloyal {

// One native call from beginning to end. Not `allowed` once the process ends.
class NativeCall {
  public:
    NativeCall() noexcept;
    NativeCall(const NativeCall &) = delete;
    ~NativeCall();
    bool allowed() const { return allowed_; }

  private:
    bool allowed_;
};

bool exiting() noexcept;
// Refuse further calls, stop the decodes that run, and wait for every call to end, 10 s at most.
void exit_begin() noexcept;

} // namespace lloyal
