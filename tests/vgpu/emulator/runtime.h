// Shared by the parts of the emulator. libcuda.so has scheduler.cpp (a kernel's blocks and threads), memory.cpp, streams.cpp
// and driver.cpp (the entry points); libcublasLt.so builds on it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace vgpu {

// CUresult: the codes that the emulator returns.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    STUB_LIBRARY = 34,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
};

// Compute capability of the devices: 9.0 is 90.
extern int capability;

// A device is its primary context; there is no other.
struct Device {
    int ordinal;
    std::atomic<int> error{SUCCESS};  // sticky
    std::atomic<int> retained{0};
    // Whether cuBLASLt has loaded kernels into the context; and whether it keeps those of a context destroyed since, as
    // libraries of CUDA's runtime do.
    std::atomic<bool> kernels_loaded{false}, left_behind{false};
    // The calls that can fail on a sound GPU, counted, and the one that vgpu_fail lets fail: at once, or when its work runs.
    std::atomic<uint64_t> calls{0}, failing_call{0};
    std::atomic<bool> fails_late{false};
    // Nanoseconds that work has taken; of all work, only products take time.
    std::atomic<uint64_t> clock{0};

    bool is_struck() { return ++calls == failing_call; }
};

// Dynamic shared memory of a block on the largest GPU.
constexpr int MAX_DYNAMIC_SHARED = 227 * 1024;

// The context of this host thread, or null.
Device* current_device();

// Reports an error on stderr, keeps it for vgpu_last_error of this thread, and returns the code.
int refuse(int code, const std::string& detail);

// Whether VGPU_FAULT names this one.
bool injected(const char* fault);

// The number that a variable of the environment holds; 0 if it is not set.
uint64_t environment_number(const char* name);

// Breaks the device's context: every later call returns the code.
void break_context(Device& device, int code, const std::string& detail);

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// Adds a line to the file that VGPU_TRACE names, if any.
void trace(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// ---- randomness, by the seed of this thread; with seed 0 everything is deterministic

uint64_t seed();
inline bool seeded() { return seed() != 0; }
uint64_t random_below(uint64_t limit);
inline bool coin() { return seeded() && random_below(2); }
// Chooses the errors of inexact instructions in the kernels that this thread launches; 0: none.
uint64_t error_seed();

// Whether this thread's work is only checked and not run; memory allocated then has addresses and no content.
bool checks_only();

// ---- memory.cpp

int allocate(Device& device, size_t bytes, uint64_t* address);
int release(Device& device, uint64_t address);
void release_all(Device& device);
size_t memory_total();
size_t memory_used(const Device& device);
// Whether the bytes lie inside one live allocation of the device.
bool allocated(const Device& device, uint64_t address, size_t bytes);
// The allocation that an address is in, or past; for messages.
std::string describe_address(uint64_t address);

// Pinned memory of the host.
struct HostBuffer {
    std::unique_ptr<unsigned char, void (*)(void*)> memory{nullptr, nullptr};
    size_t bytes = 0;
    int pending = 0;  // queued copies from or to it; guarded by the streams' lock
};
void* allocate_host(size_t bytes);
int release_host(void* address);
// The pinned buffer that holds all the bytes, or null: the memory is pageable.
std::shared_ptr<HostBuffer> pinned(const void* address, size_t bytes);

// ---- streams.cpp

// Queued work of a stream. Runs while the device's context is intact, and may break it.
struct Work {
    std::function<void(Device&)> run;
    std::shared_ptr<HostBuffer> host = nullptr;  // read or written when it runs
    void* arrives = nullptr;                     // the part of it that is written: garbage until then
    size_t bytes = 0;
};
int submit(void* stream, Work work);

// ---- scheduler.cpp

struct Kernel {
    std::string name;
    bool is_test;  // a kernel of tests/vgpu and not of the engine
    size_t argument_bytes;
    unsigned threads;
    void (*body)(const void* arguments);
    std::atomic<uint64_t> launches{0};
    std::atomic<size_t> dynamic_shared{0};  // the most that a launch requested
};
std::map<std::string, std::unique_ptr<Kernel>>& kernels();

struct Grid { unsigned x, y, z; };
void run_kernel(Device& device, Kernel& kernel, Grid grid, size_t dynamic_shared, const void* arguments, uint64_t errors);
void catch_signals();

// ---- handles: numbers that are never reused, so that a stale one is detected

template <class T> class Handles {
public:
    void* add(std::shared_ptr<T> object) {
        std::lock_guard lock(mutex);
        next += 16;
        objects[next] = std::move(object);
        return reinterpret_cast<void*>(next);
    }

    std::shared_ptr<T> find(void* handle) {
        std::lock_guard lock(mutex);
        auto found = objects.find(reinterpret_cast<uintptr_t>(handle));
        return found == objects.end() ? nullptr : found->second;
    }

    std::shared_ptr<T> remove(void* handle) {
        std::lock_guard lock(mutex);
        auto found = objects.find(reinterpret_cast<uintptr_t>(handle));
        if (found == objects.end()) return nullptr;
        auto object = std::move(found->second);
        objects.erase(found);
        return object;
    }

private:
    std::mutex mutex;
    std::map<uintptr_t, std::shared_ptr<T>> objects;
    uintptr_t next = 0x1000;
};

}  // namespace vgpu
#pragma GCC visibility pop
