// libcuda.so: the entry points of the CUDA driver that the engine reaches through cudarc, with two devices (0 and 1) and the
// errors of a real driver. The environment is read by cuInit:
//   VGPU_SEED=n          the order of threads, blocks and streams, and the errors of inexact instructions; 0 is the order of
//                        the sources, and no errors
//   VGPU_CAPABILITY=7.5  compute capability, 9.0 if not given; 8.0 and 8.6 are known too
//   VGPU_MEMORY=bytes    of each device, 4 GiB if not given
//   VGPU_FAULT=...       stub_driver, no_device, unsupported_arch, old_driver, no_capture, cublaslt_memory: it has none, or
//                        refused_algorithms: cublasLtMatmulAlgoCheck refuses all
//   VGPU_FASTEST=n       the algorithm, from 0, of those that cuBLASLt suggests that takes half as long as the first
//   VGPU_FIRST=n         the algorithm that it suggests first
//   VGPU_CUBLASLT=n      version of cuBLASLt, 130002 if not given
//   VGPU_FAIL_LAUNCH=n   the n-th launch that runs is an illegal address
//   VGPU_TRACE=file      gets a line for each launch and each product, in the order of the calls: name, grid, threads of a block
#include "runtime.h"
#include "streams.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <unordered_set>

#define TRY(call) \
    if (int error = (call)) return error

namespace vgpu {
namespace {

struct ErrorText {
    int code;
    const char *name, *text;
};
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
};

const ErrorText* find_error(int code) {
    for (const ErrorText& error : ERRORS)
        if (error.code == code) return &error;
    return nullptr;
}

struct Module {
    std::unordered_set<std::string> names;
    std::map<std::string, void*> functions;
};

struct Function {
    Kernel& kernel;
    std::atomic<size_t> dynamic_shared{48 * 1024};  // the most that a launch may request
};

constexpr int DEVICES = 2;
Device devices[DEVICES] = {{0}, {1}};

struct Capability {
    int major, minor;
    int block_shared, shared;  // bytes of shared memory: limit per block with opting in, and total per multiprocessor
    int threads;               // per multiprocessor
};
// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
constexpr Capability CAPABILITIES[] = {
    {9, 0, MAX_DYNAMIC_SHARED, 228 * 1024, 2048},
    {8, 6, 99 * 1024, 100 * 1024, 1536},
    {8, 0, 163 * 1024, 164 * 1024, 2048},
    {7, 5, 64 * 1024, 64 * 1024, 1024},
};
Capability device_capability = CAPABILITIES[0];

void set_capability(const std::string& name) {
    for (const Capability& known : CAPABILITIES) {
        if (format("%d.%d", known.major, known.minor) != name) continue;
        device_capability = known;
        capability = 10 * known.major + known.minor;
        return;
    }
    fprintf(stderr, "vgpu: VGPU_CAPABILITY=%s: it is 7.5, 8.0, 8.6 or 9.0\n", name.c_str());
    abort();
}

Handles<Module> modules;
Handles<Function> functions;
Handles<Graph> graphs;

std::atomic<bool> initialised{false};
std::string injected_fault;
uint64_t failing_launch = 0;
std::atomic<uint64_t> launches{0};
// Submitted by this thread: launches of kernels, copies to the device, fills.
thread_local uint64_t submitted[3];

// Small, as they are in the static thread-local storage reserved for opened libraries.
__thread Device* current __attribute__((tls_model("initial-exec")));
__thread uint64_t current_seed __attribute__((tls_model("initial-exec")));
__thread uint64_t random_state __attribute__((tls_model("initial-exec")));
__thread bool seed_is_set __attribute__((tls_model("initial-exec")));
__thread bool only_checks __attribute__((tls_model("initial-exec")));
__thread uint64_t errors __attribute__((tls_model("initial-exec")));
__thread bool errors_are_set __attribute__((tls_model("initial-exec")));

std::string& last_error() {
    thread_local std::string detail;
    return detail;
}

void set_seed(uint64_t value) {
    current_seed = value;
    random_state = value * 0x9e3779b97f4a7c15 + 1;
    seed_is_set = true;
}

// The error with which a call is refused up front.
int ready() {
    if (!initialised) return NOT_INITIALIZED;
    return current ? current->error.load() : INVALID_CONTEXT;
}

void destroy_context(Device& device) {
    reset_streams(device);
    release_all(device);
    device.error = SUCCESS;
}

int ready_for_unsafe(const char* call) {
    TRY(ready());
    return refuse_in_capture(call);
}

}  // namespace

int capability = 90;

Device* current_device() { return current; }

bool checks_only() { return only_checks; }

bool injected(const char* fault) { return injected_fault == fault; }

uint64_t environment_number(const char* name) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : 0;
}

uint64_t seed() {
    if (!seed_is_set) set_seed(environment_number("VGPU_SEED"));
    return current_seed;
}

uint64_t error_seed() {
    static const uint64_t from_environment = environment_number("VGPU_SEED");
    return errors_are_set ? errors : from_environment;
}

uint64_t random_below(uint64_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) % limit;
}

std::string format(const char* pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

void trace(const char* pattern, ...) {
    static FILE* file = [] {
        const char* path = getenv("VGPU_TRACE");
        return path ? fopen(path, "a") : nullptr;
    }();
    if (!file) return;
    va_list arguments;
    va_start(arguments, pattern);
    vfprintf(file, pattern, arguments);
    va_end(arguments);
    fflush(file);
}

int refuse(int code, const std::string& detail) {
    last_error() = detail;
    fprintf(stderr, "vgpu: %s\n", detail.c_str());
    return code;
}

void break_context(Device& device, int code, const std::string& detail) {
    device.error = refuse(code, detail);
}

namespace {

// ---- copies

Work work_on(uint64_t address, size_t bytes, std::function<void()> run) {
    return {[=](Device& device) {
        if (allocated(device, address, bytes)) return run();
        break_context(device, ILLEGAL_ADDRESS, format("a copy of %zu bytes at %#lx, %s", bytes, address, describe_address(address).c_str()));
    }};
}

int check_range(uint64_t address, size_t bytes) {
    if (allocated(*current, address, bytes)) return SUCCESS;
    return refuse(INVALID_VALUE, format("%zu bytes at %#lx, %s", bytes, address, describe_address(address).c_str()));
}

// Pinned memory is read when the copy runs, pageable memory during the call.
int copy_to_device(uint64_t to, const void* from, size_t bytes, void* stream) {
    TRY(ready());
    if (!bytes) return SUCCESS;
    TRY(check_range(to, bytes));
    submitted[1]++;
    void* target = reinterpret_cast<void*>(to);
    if (auto host = pinned(from, bytes)) {
        Work work = work_on(to, bytes, [=] { memcpy(target, from, bytes); });
        work.host = host;
        return submit(stream, work);
    }
    if (captured(stream)) return refuse(STREAM_CAPTURE_UNSUPPORTED, "a copy from pageable memory in a stream that is being captured");
    auto begin = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(begin, begin + bytes);
    return submit(stream, work_on(to, bytes, [=] { memcpy(target, staged->data(), bytes); }));
}

// Copies into pageable memory wait; into pinned memory they do not, and it holds garbage until the copy ran.
int copy_to_host(void* to, uint64_t from, size_t bytes, void* stream) {
    TRY(ready());
    if (!bytes) return SUCCESS;
    TRY(check_range(from, bytes));
    Work work = work_on(from, bytes, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
    if (auto host = pinned(to, bytes)) {
        work.host = host;
        work.arrives = to;
        work.bytes = bytes;
        return submit(stream, work);
    }
    if (captured(stream)) return refuse(STREAM_CAPTURE_UNSUPPORTED, "a copy to pageable memory in a stream that is being captured");
    TRY(submit(stream, work));
    return synchronize_stream(stream);
}

int copy_on_device(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    TRY(ready());
    if (!bytes) return SUCCESS;
    TRY(check_range(to, bytes));
    TRY(check_range(from, bytes));
    Work write = work_on(to, bytes, [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return submit(stream, work_on(from, bytes, [=, device = current] { write.run(*device); }));
}

template <class T> int fill(uint64_t to, T value, size_t count, void* stream) {
    TRY(ready());
    if (!count) return SUCCESS;
    TRY(check_range(to, count * sizeof(T)));
    if (to % sizeof(T)) return INVALID_VALUE;
    submitted[2]++;
    return submit(stream, work_on(to, count * sizeof(T), [=] { std::fill_n(reinterpret_cast<T*>(to), count, value); }));
}

// ---- images

// The end of the machine code, PTX or fatbin at the start of an image; its start if there is none.
const char* end_of_code(const char* image) {
    auto read = [&](auto number, size_t at) {
        memcpy(&number, image + at, sizeof number);
        return number;
    };
    if (read(uint32_t(), 0) == 0xba55ed50) return image + read(uint16_t(), 6) + read(uint64_t(), 8);
    if (!memcmp(image, "\177ELF", 4)) {
        // The tables of segments and of sections: offset, size of an entry, number of entries.
        size_t segments = read(uint64_t(), 32) + read(uint16_t(), 54) * read(uint16_t(), 56);
        size_t sections = read(uint64_t(), 40) + read(uint16_t(), 58) * read(uint16_t(), 60);
        size_t end = std::max(segments, sections);
        for (int i = 0; i < read(uint16_t(), 60); i++) {
            size_t section = read(uint64_t(), 40) + i * read(uint16_t(), 58);
            constexpr uint32_t NO_BYTES = 8;
            if (read(uint32_t(), section + 4) != NO_BYTES) end = std::max(end, size_t(read(uint64_t(), section + 24) + read(uint64_t(), section + 32)));
        }
        return image + end;
    }
    if (!strncmp(image, "//", 2)) return image + strlen(image) + 1;
    return image;
}

// The names in an image: `warpfit kernels`, followed by one per line.
int read_manifest(const void* image, Module& module) {
    const char* bytes = end_of_code(static_cast<const char*>(image));
    static const std::string title = "warpfit kernels\n";
    if (strncmp(bytes, title.c_str(), title.size())) return refuse(INVALID_IMAGE, "an image without a list of its kernels");
    const char* line = bytes + title.size();
    while (*line) {
        size_t length = strcspn(line, "\n");
        if (length) module.names.emplace(line, length);
        line += length + (line[length] == '\n');
    }
    return SUCCESS;
}

int check_launch(const Function& function, Grid grid, Grid block, size_t dynamic_shared) {
    const Kernel& kernel = function.kernel;
    const char* name = kernel.name.c_str();
    if (block.x != kernel.threads || block.y != 1 || block.z != 1)
        return refuse(INVALID_VALUE, format("%s: a block of %u x %u x %u threads, but its KERNEL line has %u", name, block.x, block.y, block.z, kernel.threads));
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return refuse(INVALID_VALUE, format("%s: a grid of %u x %u x %u blocks", name, grid.x, grid.y, grid.z));
    if (dynamic_shared > function.dynamic_shared)
        return refuse(INVALID_VALUE, format("%s: %zu bytes of dynamic shared memory, but %zu are allowed", name, dynamic_shared, function.dynamic_shared.load()));
    return SUCCESS;
}

void run_launch(Device& device, Kernel& kernel, Grid grid, size_t dynamic_shared, const void* arguments, uint64_t errors) {
    if (++launches == failing_launch) break_context(device, ILLEGAL_ADDRESS, format("kernel %s: the failure requested by VGPU_FAIL_LAUNCH", kernel.name.c_str()));
    else run_kernel(device, kernel, grid, dynamic_shared, arguments, errors);
}

}  // namespace
}  // namespace vgpu

using namespace vgpu;

#pragma GCC visibility push(default)
extern "C" {

// ---- the driver and its devices

int cuInit(unsigned) {
    static std::once_flag once;
    std::call_once(once, [] {
        if (const char* fault = getenv("VGPU_FAULT")) injected_fault = fault;
        failing_launch = environment_number("VGPU_FAIL_LAUNCH");
        if (const char* name = getenv("VGPU_CAPABILITY")) set_capability(name);
        Dl_info here;
        dladdr(reinterpret_cast<void*>(&cuInit), &here);
        std::string path = here.dli_fname;
        path = path.substr(0, path.rfind('/') + 1) + "libvgpu_kernels.so";
        if (!dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
            fprintf(stderr, "vgpu: %s\n", dlerror());
            abort();
        }
        catch_signals();
        initialised = true;
    });
    if (injected_fault == "stub_driver") return STUB_LIBRARY;
    return injected_fault == "no_device" ? NO_DEVICE : SUCCESS;
}

int cuDriverGetVersion(int* version) {
    *version = injected_fault == "old_driver" ? 12020 : 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    *count = injected_fault == "no_device" ? 0 : DEVICES;
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int* device, int ordinal) {
    if (!initialised) return NOT_INITIALIZED;
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char* name, int bytes, int device) {
    snprintf(name, bytes, "Virtual GPU %d", device);
    return SUCCESS;
}

int cuDeviceGetUuid(void* uuid, int device) {
    memset(uuid, device + 1, 16);
    return SUCCESS;
}

int cuDeviceGetUuid_v2(void* uuid, int device) { return cuDeviceGetUuid(uuid, device); }

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory_total();
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    bool old = injected_fault == "unsupported_arch";
    const Capability& gpu = device_capability;
    const std::map<int, int> attributes = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},      // threads per block
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},       // blocks per grid
        {8, 48 * 1024}, {97, gpu.block_shared},        // shared memory per block, and with opting in
        {81, gpu.shared}, {82, 65536}, {12, 65536},    // shared memory and registers per multiprocessor
        {10, 32}, {16, 4}, {39, gpu.threads},          // lanes, multiprocessors, threads of one
        {13, 1000000}, {36, 1000000}, {37, 512}, {38, 4 << 20},  // clocks in kHz, bus width, L2 bytes
        {41, 1}, {75, old ? 5 : gpu.major}, {76, old ? 0 : gpu.minor}, {115, 1},  // unified addresses, compute capability, memory pools
    };
    auto found = attributes.find(attribute);
    if (found == attributes.end()) return refuse(INVALID_VALUE, format("device attribute %d is not known here", attribute));
    *value = found->second;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(Device** context, int device) {
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    *context = &devices[device];
    devices[device].retained++;
    return SUCCESS;
}

// The last one destroys the context.
int cuDevicePrimaryCtxRelease_v2(int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    Device& device = devices[ordinal];
    if (device.retained == 0) return refuse(INVALID_CONTEXT, "a primary context that is not retained");
    if (--device.retained) return SUCCESS;
    destroy_context(device);
    device.left_behind = device.left_behind || device.kernels_loaded;
    return SUCCESS;
}

// For tests: resets everything.
int cuDevicePrimaryCtxReset_v2(int device) {
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    destroy_context(devices[device]);
    devices[device].kernels_loaded = devices[device].left_behind = false;
    return SUCCESS;
}

int cuCtxGetCurrent(Device** context) {
    *context = current;
    return SUCCESS;
}

int cuCtxSetCurrent(Device* context) {
    current = context;
    return SUCCESS;
}

int cuCtxSynchronize() {
    TRY(ready_for_unsafe("cuCtxSynchronize"));
    return synchronize_device(*current);
}

int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = *greatest = 0;
    return ready();
}

int cuGetErrorName(int code, const char** name) {
    const ErrorText* error = find_error(code);
    *name = error ? error->name : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int code, const char** text) {
    const ErrorText* error = find_error(code);
    *text = error ? error->text : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}

// ---- memory

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    TRY(ready());
    *total = memory_total();
    *free = *total - memory_used(*current);
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    TRY(ready_for_unsafe("cuMemAlloc"));
    if (current->is_struck()) return OUT_OF_MEMORY;
    int error = allocate(*current, bytes, address);
    if (error != OUT_OF_MEMORY) return error;
    // Frees in stream order may be pending.
    TRY(synchronize_device(*current));
    return allocate(*current, bytes, address);
}

int cuMemFree_v2(uint64_t address) {
    TRY(ready_for_unsafe("cuMemFree"));
    TRY(synchronize_device(*current));
    return release(*current, address);
}

int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    TRY(ready());
    if (captured(stream)) return refuse(NOT_SUPPORTED, "an allocation in a stream that is being captured");
    return cuMemAlloc_v2(address, bytes);
}

int cuMemFreeAsync(uint64_t address, void* stream) {
    TRY(ready());
    if (captured(stream)) return refuse(NOT_SUPPORTED, "a free in a stream that is being captured");
    TRY(check_range(address, 1));
    return submit(stream, {[=](Device& device) {
        if (int error = release(device, address)) break_context(device, error, "a free in a stream failed");
    }});
}

int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    TRY(ready_for_unsafe("cuMemHostAlloc"));
    if (current->is_struck()) return OUT_OF_MEMORY;
    if (!bytes) return INVALID_VALUE;
    *address = allocate_host(bytes);
    return SUCCESS;
}

int cuMemFreeHost(void* address) {
    TRY(ready_for_unsafe("cuMemFreeHost"));
    TRY(synchronize_device(*current));
    return release_host(address);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) { return copy_to_device(to, from, bytes, stream); }
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) { return copy_to_host(to, from, bytes, stream); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) { return copy_on_device(to, from, bytes, stream); }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void* stream) { return fill(to, value, count, stream); }
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void* stream) { return fill(to, value, count, stream); }

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    TRY(copy_to_device(to, from, bytes, nullptr));
    return synchronize_stream(nullptr);
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    TRY(copy_to_host(to, from, bytes, nullptr));
    return synchronize_stream(nullptr);
}

int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return copy_on_device(to, from, bytes, nullptr); }
int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t count) { return fill(to, value, count, nullptr); }

// ---- kernels

int cuModuleLoadData(void** handle, const void* image) {
    TRY(ready_for_unsafe("cuModuleLoadData"));
    if (injected_fault == "unsupported_arch") return NO_BINARY_FOR_GPU;
    if (injected_fault == "old_driver") return UNSUPPORTED_PTX_VERSION;
    auto module = std::make_shared<Module>();
    TRY(read_manifest(image, *module));
    *handle = modules.add(module);
    return SUCCESS;
}

int cuModuleUnload(void* handle) {
    TRY(ready());
    auto module = modules.remove(handle);
    if (!module) return INVALID_HANDLE;
    for (auto& [name, function] : module->functions) functions.remove(function);
    return SUCCESS;
}

int cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    TRY(ready());
    auto module = modules.find(module_handle);
    if (!module) return INVALID_HANDLE;
    auto kernel = kernels().find(name);
    if (!module->names.count(name) || kernel == kernels().end()) return refuse(NOT_FOUND, format("no kernel %s in the image", name));
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    void*& function = module->functions[name];
    if (!function) function = functions.add(std::shared_ptr<Function>(new Function{*kernel->second}));
    *handle = function;
    return SUCCESS;
}

int cuFuncSetAttribute(void* handle, int attribute, int value) {
    TRY(ready());
    auto function = functions.find(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute == 9) return SUCCESS;  // the split between L1 and shared memory, which is a hint
    if (attribute != 8 || value < 0 || value > device_capability.block_shared)
        return refuse(INVALID_VALUE, format("%s: attribute %d cannot be %d", function->kernel.name.c_str(), attribute, value));
    function->dynamic_shared = value;
    return SUCCESS;
}

// The architecture of the PTX that kernels are made from: that of the GPU, or VGPU_PTX.
int ptx_version() {
    static const int other = environment_number("VGPU_PTX");
    return other ? other : capability;
}

int cuFuncGetAttribute(int* value, int attribute, void* handle) {
    TRY(ready());
    auto function = functions.find(handle);
    if (!function) return INVALID_HANDLE;
    switch (attribute) {
        case 0: *value = function->kernel.threads; return SUCCESS;
        case 5: *value = ptx_version(); return SUCCESS;
        case 8: *value = function->dynamic_shared; return SUCCESS;
        default: return refuse(NOT_SUPPORTED, format("attribute %d of a kernel is not known here", attribute));
    }
}

int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned dynamic_shared, void* stream, void** arguments, void** extra) {
    TRY(ready());
    auto function = functions.find(handle);
    if (!function) return INVALID_HANDLE;
    Grid grid{grid_x, grid_y, grid_z};
    TRY(check_launch(*function, grid, {block_x, block_y, block_z}, dynamic_shared));
    if (extra || !arguments) return INVALID_VALUE;
    submitted[0]++;
    Kernel& kernel = function->kernel;
    // In units of the largest alignment that a struct of arguments needs.
    auto copy = std::make_shared<std::vector<std::max_align_t>>(kernel.argument_bytes / sizeof(std::max_align_t) + 1);
    memcpy(copy->data(), arguments[0], kernel.argument_bytes);
    trace("%s %u %u %u %u\n", kernel.name.c_str(), grid_x, grid_y, grid_z, block_x);
    // Another thread of the same context may run it.
    const uint64_t errors = error_seed();
    return submit(stream, {[=, &kernel](Device& device) { run_launch(device, kernel, grid, dynamic_shared, copy->data(), errors); }});
}

struct LaunchAttribute {
    int id;
    alignas(8) int value;
    char rest[60];
};

struct LaunchConfig {
    unsigned grid[3], block[3], dynamic_shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "as in cuda.h");

// The one attribute is programmatic dependent launch. Kernels here start after the one before them has ended, so it changes
// nothing; that kernels wait for that one is tested in their machine code.
int cuLaunchKernelEx(const LaunchConfig* config, void* handle, void** arguments, void** extra) {
    TRY(ready());
    constexpr int PROGRAMMATIC_STREAM_SERIALIZATION = 6;
    for (unsigned i = 0; i < config->attribute_count; i++) {
        if (config->attributes[i].id != PROGRAMMATIC_STREAM_SERIALIZATION)
            return refuse(NOT_SUPPORTED, format("attribute %d of a launch", config->attributes[i].id));
        if (ptx_version() < 90 || injected("no_early_launches")) return refuse(NOT_SUPPORTED, "a kernel without griddepcontrol.wait is launched early");
    }
    const auto& [grid, block] = std::tie(config->grid, config->block);
    return cuLaunchKernel(handle, grid[0], grid[1], grid[2], block[0], block[1], block[2], config->dynamic_shared, config->stream, arguments, extra);
}

// ---- streams and events

int cuStreamCreate(void** stream, unsigned flags) {
    TRY(ready());
    if (flags != 1) return refuse(NOT_SUPPORTED, "a stream that waits for the null stream; make it CU_STREAM_NON_BLOCKING");
    *stream = create_stream();
    return SUCCESS;
}

int cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

int cuStreamDestroy_v2(void* stream) {
    int destroyed = destroy_stream(stream);
    TRY(ready());
    return destroyed;
}

int cuStreamSynchronize(void* stream) {
    TRY(ready());
    return synchronize_stream(stream);
}

int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    TRY(ready());
    return wait_event(stream, event);
}

int cuEventCreate(void** event, unsigned flags) {
    constexpr unsigned DISABLE_TIMING = 2;
    TRY(ready());
    *event = create_event(!(flags & DISABLE_TIMING));
    return SUCCESS;
}

int cuEventDestroy_v2(void* event) {
    int destroyed = destroy_event(event);
    TRY(ready());
    return destroyed;
}

int cuEventRecord(void* event, void* stream) {
    TRY(ready());
    return record_event(event, stream);
}

int cuEventSynchronize(void* event) {
    TRY(ready());
    TRY(synchronize_event(event));
    return current->error;
}

int cuEventQuery(void* event) {
    TRY(ready());
    return query_event(event);
}

int cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
    TRY(ready());
    return elapsed_time(milliseconds, begin, end);
}

// ---- graphs

int cuStreamBeginCapture_v2(void* stream, int mode) {
    TRY(ready());
    if (injected("no_capture")) return NOT_SUPPORTED;
    return begin_capture(stream, static_cast<CaptureMode>(mode));
}

int cuStreamEndCapture(void* stream, void** handle) {
    TRY(ready());
    *handle = nullptr;
    std::shared_ptr<Graph> graph;
    TRY(end_capture(stream, &graph));
    *handle = graphs.add(graph);
    return SUCCESS;
}

int cuStreamIsCapturing(void* stream, int* status) {
    TRY(ready());
    *status = captured(stream);
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void** executable, void* handle, unsigned long long) {
    TRY(ready());
    auto graph = graphs.find(handle);
    if (!graph) return INVALID_HANDLE;
    *executable = graphs.add(std::make_shared<Graph>(*graph));
    return SUCCESS;
}

int cuGraphUpload(void* executable, void*) {
    TRY(ready());
    return graphs.find(executable) ? SUCCESS : INVALID_HANDLE;
}

int cuGraphLaunch(void* executable, void* stream) {
    TRY(ready());
    auto graph = graphs.find(executable);
    return graph ? launch_graph(*graph, stream) : INVALID_HANDLE;
}

int cuGraphDestroy(void* graph) { return graphs.remove(graph) ? SUCCESS : INVALID_HANDLE; }
int cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

// ---- for the tests; lists are written line by line into a buffer, and the number of bytes needed is returned

static size_t give(const std::string& text, char* buffer, size_t bytes) {
    if (bytes) snprintf(buffer, bytes, "%s", text.c_str());
    return text.size();
}

void vgpu_set_seed(uint64_t value) { set_seed(value); }

void vgpu_set_only_checks(int on) { only_checks = on; }

void vgpu_set_errors(uint64_t value) {
    errors = value;
    errors_are_set = true;
}

size_t vgpu_last_error(char* buffer, size_t bytes) { return give(last_error(), buffer, bytes); }

void vgpu_fail(int device, uint64_t call, int late) {
    devices[device].calls = 0;
    devices[device].failing_call = call;
    devices[device].fails_late = late;
}

uint64_t vgpu_calls(int device) { return devices[device].calls; }

void vgpu_submitted(uint64_t* counts) { std::copy_n(submitted, 3, counts); }

// `name launches bytes` of the engine's kernels: number of launches, and most dynamic shared memory.
size_t vgpu_launches(char* buffer, size_t bytes) {
    std::string lines;
    for (auto& [name, kernel] : kernels())
        if (!kernel->is_test) lines += format("%s %lu %zu\n", name.c_str(), kernel->launches.load(), kernel->dynamic_shared.load());
    return give(lines, buffer, bytes);
}

}  // extern "C"
#pragma GCC visibility pop
