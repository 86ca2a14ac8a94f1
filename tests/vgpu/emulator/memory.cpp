// Device memory: each allocation is a mapping of its own that ends at an inaccessible page, so that an access past its end
// faults immediately. It starts as NaN, and is inaccessible once freed. Bytes that a guard page cannot protect (up to 15 past
// the end, and those before the start in the first page) are filled with a canary that release() checks. An allocation is
// 256-byte aligned, as a GPU's is, if its size is a multiple of 256, else 16-byte aligned.
#include "runtime.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <sys/mman.h>
#include <unistd.h>

// If AddressSanitizer is preloaded, it detects accesses past the end too.
extern "C" void __asan_poison_memory_region(const volatile void*, size_t) __attribute__((weak));
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));

namespace vgpu {
namespace {

constexpr size_t PAGE = 4096;
constexpr unsigned char CANARY = 0xca;
// Freed allocations that are remembered, to tell a use after free from a wild address.
constexpr size_t GRAVES = 4096;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Allocation {
    const Device* device;
    size_t bytes;
    char* mapping;  // an inaccessible page, the first canaries, the bytes, the last canaries, an inaccessible page
    size_t mapped;
    bool live;
    bool hollow;  // without content, and not counted

    char* first_page() const { return mapping + PAGE; }
    char* end() const { return mapping + mapped - PAGE; }
    char* begin() const { return end() - round_up(bytes, 16); }

    bool intact() const {
        if (hollow) return true;
        for (const char* p = first_page(); p < begin(); p++)
            if (static_cast<unsigned char>(*p) != CANARY) return false;
        for (const char* p = begin() + bytes; p < end(); p++)
            if (static_cast<unsigned char>(*p) != CANARY) return false;
        return true;
    }
};

std::mutex mutex;
std::map<uint64_t, Allocation> allocations;  // by address
std::deque<uint64_t> graves;
std::map<const Device*, size_t> used;
std::map<uintptr_t, std::shared_ptr<HostBuffer>> host_buffers;

// Makes pages accessible. They are NaN: those of a file until they are written, so that memory which is never used costs nothing.
bool begin_as_nan(char* pages, size_t bytes) {
    constexpr size_t LENGTH = 16 << 20;
    static const int file = [] {
        int file = memfd_create("NaN", MFD_CLOEXEC);
        std::vector<char> ones(LENGTH, '\xff');
        return write(file, ones.data(), LENGTH) == ssize_t(LENGTH) ? file : -1;
    }();
    for (size_t at = 0; at < bytes; at += LENGTH) {
        size_t length = std::min(LENGTH, bytes - at);
        if (mmap(pages + at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) return false;
    }
    return true;
}

void bury(uint64_t address, Allocation& allocation) {
    if (!allocation.hollow) used[allocation.device] -= allocation.bytes;
    allocation.live = false;
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(allocation.mapping, allocation.mapped);
    mmap(allocation.mapping, allocation.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    graves.push_back(address);
    if (graves.size() <= GRAVES) return;
    auto oldest = allocations.find(graves.front());
    munmap(oldest->second.mapping, oldest->second.mapped);
    allocations.erase(oldest);
    graves.pop_front();
}

}  // namespace

size_t memory_total() {
    static const char* bytes = getenv("VGPU_MEMORY");
    return bytes ? strtoull(bytes, nullptr, 10) : size_t(4) << 30;
}

size_t memory_used(const Device& device) {
    std::lock_guard lock(mutex);
    return used[&device];
}

int allocate(Device& device, size_t bytes, uint64_t* address) {
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard lock(mutex);
    bool hollow = checks_only();
    if (!hollow && bytes > memory_total() - used[&device]) return OUT_OF_MEMORY;
    size_t mapped = round_up(bytes, PAGE) + 2 * PAGE;
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    Allocation allocation{&device, bytes, static_cast<char*>(mapping), mapped, true, hollow};
    if (!hollow && !begin_as_nan(allocation.first_page(), mapped - 2 * PAGE)) {
        munmap(mapping, mapped);
        return OUT_OF_MEMORY;
    }
    *address = reinterpret_cast<uint64_t>(allocation.begin());
    allocations[*address] = allocation;
    if (hollow) return SUCCESS;
    memset(allocation.first_page(), CANARY, allocation.begin() - allocation.first_page());
    char* end = allocation.begin() + bytes;
    memset(end, CANARY, allocation.end() - end);
    if (__asan_poison_memory_region) {
        __asan_poison_memory_region(allocation.first_page(), allocation.begin() - allocation.first_page());
        __asan_poison_memory_region(end, allocation.end() - end);
    }
    used[&device] += bytes;
    return SUCCESS;
}

int release(Device& device, uint64_t address) {
    std::lock_guard lock(mutex);
    auto found = allocations.find(address);
    if (found == allocations.end() || found->second.device != &device)
        return refuse(INVALID_VALUE, format("free of %#lx, which is not an allocation", address));
    if (!found->second.live) return refuse(INVALID_VALUE, format("free of %#lx, which is already freed", address));
    bool intact = found->second.intact();
    bury(address, found->second);
    if (!intact)
        break_context(device, ILLEGAL_ADDRESS,
                      format("the bytes around an allocation of %zu bytes were written to; seen at its end", found->second.bytes));
    return SUCCESS;
}

void release_all(Device& device) {
    std::lock_guard lock(mutex);
    std::vector<uint64_t> live;
    for (auto& [address, allocation] : allocations)
        if (allocation.live && allocation.device == &device) live.push_back(address);
    for (uint64_t address : live) bury(address, allocations.at(address));
}

bool allocated(const Device& device, uint64_t address, size_t bytes) {
    std::lock_guard lock(mutex);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    auto& [begin, allocation] = *std::prev(next);
    return allocation.live && allocation.device == &device && bytes <= allocation.bytes && address - begin <= allocation.bytes - bytes;
}

std::string describe_address(uint64_t address) {
    std::lock_guard lock(mutex);
    for (auto& [begin, allocation] : allocations) {
        uint64_t low = reinterpret_cast<uint64_t>(allocation.mapping), high = low + allocation.mapped;
        if (address < low || address >= high) continue;
        std::string which = format("an allocation of %zu bytes%s", allocation.bytes, allocation.live ? "" : " that is freed");
        if (address < begin) return format("%lu bytes before ", begin - address) + which;
        if (address < begin + allocation.bytes) return format("byte %lu of ", address - begin) + which;
        return format("%lu bytes past the end of ", address - begin - allocation.bytes) + which;
    }
    return "in no allocation";
}

void* allocate_host(size_t bytes) {
    auto buffer = std::make_shared<HostBuffer>();
    buffer->bytes = bytes;
    buffer->memory = {static_cast<unsigned char*>(aligned_alloc(PAGE, round_up(bytes, PAGE))), free};
    void* address = memset(buffer->memory.get(), 0xff, bytes);
    std::lock_guard lock(mutex);
    host_buffers[reinterpret_cast<uintptr_t>(address)] = std::move(buffer);
    return address;
}

int release_host(void* address) {
    std::lock_guard lock(mutex);
    return host_buffers.erase(reinterpret_cast<uintptr_t>(address)) ? SUCCESS : INVALID_VALUE;
}

std::shared_ptr<HostBuffer> pinned(const void* address, size_t bytes) {
    std::lock_guard lock(mutex);
    uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
    auto next = host_buffers.upper_bound(wanted);
    if (next == host_buffers.begin()) return nullptr;
    auto& [begin, buffer] = *std::prev(next);
    return wanted + bytes <= begin + buffer->bytes ? buffer : nullptr;
}

}  // namespace vgpu
