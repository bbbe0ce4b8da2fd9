// A mutex that Clang's thread-safety analysis understands. Hold it for a few instructions, never
// across a co_await.
#pragma once

#include <mutex>

#if defined(__clang__)
#define LARDER_ATTRIBUTE(x) __attribute__((x))
#else
#define LARDER_ATTRIBUTE(x)
#endif
#define LARDER_CAPABILITY(x) LARDER_ATTRIBUTE(capability(x))
#define LARDER_SCOPED_CAPABILITY LARDER_ATTRIBUTE(scoped_lockable)
#define LARDER_GUARDED_BY(x) LARDER_ATTRIBUTE(guarded_by(x))
#define LARDER_REQUIRES(...) LARDER_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define LARDER_ACQUIRE(...) LARDER_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define LARDER_RELEASE(...) LARDER_ATTRIBUTE(release_capability(__VA_ARGS__))
#define LARDER_EXCLUDES(...) LARDER_ATTRIBUTE(locks_excluded(__VA_ARGS__))
#define LARDER_NO_ANALYSIS LARDER_ATTRIBUTE(no_thread_safety_analysis)

namespace larder {

class LARDER_CAPABILITY("mutex") Mutex {
 public:
  void lock() LARDER_ACQUIRE() { mutex_.lock(); }
  void unlock() LARDER_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class LARDER_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) LARDER_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() LARDER_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace larder
