// Runs the blocks of a launch one after the other, and each CUDA thread of a block on a fiber of its own. A fiber runs until it
// waits at a barrier or in an operation of its warp; then another one continues. A fiber whose thread ends starts the next
// thread, so that a kernel without barriers never switches. Seed 0 runs blocks and threads in order; other seeds shuffle both
// and switch at random. A wrong access is reported as the error of a GPU, with the known details.
#include "runtime.h"
#include "vgpu.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <dlfcn.h>
#include <link.h>
#include <numeric>
#include <sys/mman.h>
#include <ucontext.h>

// ThreadSanitizer, if preloaded: each CUDA thread is a fiber to it, and barriers order the same accesses as on a GPU.
extern "C" {
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));
}

// Stores the running fiber's registers and stack pointer, and continues where `to` was stored.
extern "C" void vgpu_switch(void** from, void* to);
asm(R"(
    .text
    .globl vgpu_switch
    .hidden vgpu_switch
    .type vgpu_switch, @function
vgpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace vgpu {

__thread Thread* current_thread;

namespace {

constexpr size_t PAGE = 4096, STACK = 256 * 1024;
constexpr unsigned MAX_THREADS = 1024, WARP = 32;

bool sanitized() { return __tsan_acquire || __asan_unpoison_memory_region; }

// Location of a thread's shared memory: the static arrays are the thread-local data of the kernels' library.
struct Range {
    char* begin;
    size_t bytes;
    bool holds(const void* address, size_t size) const {
        auto p = static_cast<const char*>(address);
        return p >= begin && p + size <= begin + bytes;
    }
};

extern "C" void* __tls_get_addr(const unsigned long (*module_and_offset)[2]);

Range static_shared() {
    struct Library { size_t module = 0, bytes = 0; };
    static const Library library = [] {
        Library found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* result) {
                if (!strstr(info->dlpi_name, "libvgpu_kernels")) return 0;
                for (int i = 0; i < info->dlpi_phnum; i++)
                    if (info->dlpi_phdr[i].p_type == PT_TLS)
                        *static_cast<Library*>(result) = {info->dlpi_tls_modid, info->dlpi_phdr[i].p_memsz};
                return 1;
            },
            &found);
        return found;
    }();
    if (!library.bytes) return {nullptr, 0};
    const unsigned long start[2] = {library.module, 0};
    return {static_cast<char*>(__tls_get_addr(&start)), library.bytes};
}

enum class State { FRESH, RUNNING, READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber : Thread {
    State state;
    void* stack_pointer;
    void* tsan = nullptr;
    unsigned warp;
    unsigned committed;        // groups of copies
    std::deque<Copy> copies;  // pending, oldest first
    Copy landing;
};

// Lanes of a warp that wait for each other. Two sets of slots: a lane may return before all have left.
struct Meeting {
    unsigned mask, arrived;
    int parity;
    const char* operation;
    Site site;
    Slot slots[2][WARP];
    char order;  // a label for tsan
};

struct Warp {
    unsigned ended;  // lanes
    unsigned meetings;
    std::array<Meeting, 4> meeting;
};

// Ready fibers, first come first served.
class Queue {
public:
    void clear() { first = last = 0; }
    unsigned size() const { return last - first; }
    void push(Fiber* fiber) { fibers[last++ % MAX_THREADS] = fiber; }
    Fiber* pop() { return fibers[first++ % MAX_THREADS]; }
    void swap_first(unsigned other) { std::swap(fibers[first % MAX_THREADS], fibers[(first + other) % MAX_THREADS]); }

private:
    Fiber* fibers[MAX_THREADS];
    unsigned first = 0, last = 0;
};

// State of a host thread that runs a launch.
struct Runner {
    Kernel* kernel;
    const void* arguments;
    Block block;
    Range shared, dynamic;
    int error;
    std::string detail;

    std::vector<Fiber> fibers;
    std::vector<void*> tsan_fibers;  // kept, as their number is limited
    std::vector<unsigned> order;  // in which threads start
    std::vector<Warp> warps;
    unsigned started, alive, waiting;  // threads; waiting at the barrier
    Site barrier_site;
    Queue ready;

    char* stacks;          // one per thread, each above an inaccessible page
    unsigned stacks_used;
    char* dynamic_memory;  // followed by an inaccessible page
    void* main_stack;
    void* main_tsan;
    char begin, end, barrier[2];  // labels for tsan
    int barrier_parity;

    Runner() {
        stacks = map(MAX_THREADS * (STACK + PAGE));
        for (unsigned i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
        dynamic_memory = map(MAX_DYNAMIC_SHARED + 2 * PAGE);
        mprotect(dynamic_end(), PAGE, PROT_NONE);
    }

    static char* map(size_t bytes) {
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        return static_cast<char*>(memory);
    }

    char* dynamic_end() const { return dynamic_memory + (MAX_DYNAMIC_SHARED + PAGE - 1) / PAGE * PAGE; }

    void launch(Kernel& kernel, Grid grid, size_t dynamic_shared, const void* arguments, uint64_t errors);
    void run_block();
    void* new_stack();
    void run_threads();
    void end_thread(Fiber& fiber);
    void next(void** from, Fiber* leaving);
    void wait(Fiber& fiber, State state);
    void wake(Fiber& fiber);
    void give_way(Fiber& fiber);
    Meeting& meeting(Fiber& fiber, unsigned mask, Site site);
    template <class Put, class Finish>
    Slot& meet(unsigned mask, const char* operation, Site site, Put put, Finish finish);
    void release_barrier();
    [[noreturn]] void deadlock();
    [[noreturn]] void stop();
};

__thread Runner* runner;

Fiber& self() { return *static_cast<Fiber*>(current_thread); }

void tsan_switch(void* fiber) {
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber, 1 /* no ordering by itself */);
}
void tsan_acquire(void* name) {
    if (__tsan_acquire) __tsan_acquire(name);
}
void tsan_release(void* name) {
    if (__tsan_release) __tsan_release(name);
}

// ---- fibers

extern "C" void vgpu_fiber() { runner->run_threads(); }

// A stack whose first switch enters vgpu_fiber. The tops are spread over the sets of the cache.
void* Runner::new_stack() {
    char* top = stacks + (stacks_used + 1) * (STACK + PAGE) - 128 - stacks_used % 61 * 192;
    stacks_used++;
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // vgpu_fiber's return address
    *--stack = reinterpret_cast<void*>(vgpu_fiber);
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    return stack;
}

void Runner::run_threads() {
    while (started < fibers.size()) {
        Fiber& fiber = fibers[order[started++]];
        fiber.state = State::RUNNING;
        current_thread = &fiber;
        tsan_switch(fiber.tsan);
        tsan_acquire(&begin);
        kernel->body(arguments);
        tsan_release(&end);
        end_thread(self());
    }
    void* nowhere;
    next(&nowhere, nullptr);
}

void Runner::end_thread(Fiber& fiber) {
    if (!fiber.copies.empty()) fault(LAUNCH_FAILED, "the thread ended without waiting for its cp.async", fiber.copies.front().site);
    if (waiting) fault(LAUNCH_FAILED, "the thread ended while others wait for it at __syncthreads", barrier_site);
    fiber.state = State::DONE;
    alive--;
    Warp& warp = warps[fiber.warp];
    warp.ended |= 1u << fiber.lane;
    for (unsigned i = 0; i < warp.meetings; i++) {
        Meeting& meeting = warp.meeting[i];
        if (meeting.arrived && (meeting.mask & warp.ended))
            fault(LAUNCH_FAILED, format("the thread ended while lanes of its warp wait for it in %s", meeting.operation).c_str(), meeting.site);
    }
}

// Leaves a fiber (which may have ended) for another one.
void Runner::next(void** from, Fiber* leaving) {
    bool unstarted = started < fibers.size();
    void* to;
    if (unstarted && (ready.size() == 0 || (seeded() && random_below(ready.size() + 1) == 0))) {
        to = new_stack();
    } else if (ready.size()) {
        if (seeded()) ready.swap_first(random_below(ready.size()));
        Fiber* fiber = ready.pop();
        fiber->state = State::RUNNING;
        if (fiber == leaving) return;
        current_thread = fiber;
        tsan_switch(fiber->tsan);
        to = fiber->stack_pointer;
    } else {
        if (alive) deadlock();
        tsan_switch(main_tsan);
        to = main_stack;
    }
    vgpu_switch(from, to);
}

void Runner::wait(Fiber& fiber, State state) {
    fiber.state = state;
    next(&fiber.stack_pointer, &fiber);
}

void Runner::wake(Fiber& fiber) {
    fiber.state = State::READY;
    ready.push(&fiber);
}

// At random, lets others run first.
void Runner::give_way(Fiber& fiber) {
    if (!coin()) return;
    wake(fiber);
    next(&fiber.stack_pointer, &fiber);
}

// ---- errors of a kernel

std::string at(Site site) { return site.file ? format(" (%s:%d)", site.file, site.line) : ""; }

void Runner::deadlock() {
    std::string who;
    unsigned in_warp = 0;
    for (Fiber& fiber : fibers) in_warp += fiber.state == State::IN_WARP;
    for (Warp& warp : warps)
        for (unsigned i = 0; i < warp.meetings && who.empty(); i++)
            if (warp.meeting[i].arrived) who = warp.meeting[i].operation + at(warp.meeting[i].site);
    std::string barrier = waiting ? at(barrier_site) : "";
    current_thread = &fibers[0];
    fault(LAUNCH_FAILED, format("deadlock: %u threads wait at __syncthreads%s, %u in %s", waiting, barrier.c_str(), in_warp,
                                who.empty() ? "operations of their warps" : who.c_str()).c_str(), {});
}

// Back to launch(), abandoning the fibers.
void Runner::stop() {
    tsan_switch(main_tsan);
    void* nowhere;
    vgpu_switch(&nowhere, main_stack);
    __builtin_unreachable();
}

// The source line of an address of the code: addr2line of the compiler's tools, if available.
std::string source_line(void* code) {
    Dl_info library;
    if (!dladdr(code, &library)) return "";
    unsigned long offset = static_cast<char*>(code) - static_cast<char*>(library.dli_fbase);
    FILE* pipe = popen(format("addr2line -e '%s' %#lx 2>/dev/null", library.dli_fname, offset).c_str(), "r");
    if (!pipe) return "";
    char line[1024] = "";
    bool found = fgets(line, sizeof line, pipe) && line[0] != '?';
    pclose(pipe);
    line[strcspn(line, " \n")] = 0;
    return found ? format(" (%s)", line) : "";
}

struct Signal {
    int number;
    uintptr_t address;
    void* code;
};
__thread Signal caught;

// Where a fiber continues after a signal, on the stack of the launching thread.
void after_signal() {
    if (caught.number == SIGFPE) fault(LAUNCH_FAILED, ("integer division by zero" + source_line(caught.code)).c_str(), {});
    if (caught.number != SIGSEGV && caught.number != SIGBUS) fault(LAUNCH_FAILED, ("trap" + source_line(caught.code)).c_str(), {});
    std::string where;
    char* address = reinterpret_cast<char*>(caught.address);
    char* stacks_end = runner->stacks + MAX_THREADS * (STACK + PAGE);
    if (address >= runner->dynamic_memory && address < runner->dynamic_end() + PAGE)
        where = format("byte %ld of dynamic shared memory, of which %zu were requested", address - runner->dynamic.begin, runner->dynamic.bytes);
    else if (address >= runner->stacks && address < stacks_end)
        where = "stack overflow";
    else
        where = describe_address(caught.address);
    fault(ILLEGAL_ADDRESS, format("illegal address %#lx, %s%s", caught.address, where.c_str(), source_line(caught.code).c_str()).c_str(), {});
}

struct sigaction former[NSIG];

void on_signal(int number, siginfo_t* info, void* context) {
    if (!runner || !current_thread) {
        // Not a kernel's fault: as if this handler were not installed.
        sigaction(number, &former[number], nullptr);
        return;
    }
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    caught = {number, reinterpret_cast<uintptr_t>(info->si_addr), reinterpret_cast<void*>(registers[REG_RIP])};
    registers[REG_RIP] = reinterpret_cast<greg_t>(&after_signal);
    registers[REG_RSP] = ((reinterpret_cast<greg_t>(runner->main_stack) - 1024) & ~greg_t(15)) - 8;
}

}  // namespace

void catch_signals() {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(number, &action, &former[number]);
}

void fault(int code, const char* what, Site site) {
    const uint3& block = runner->block.index;
    runner->error = code;
    runner->detail = format("kernel %s, block (%u, %u, %u), thread %u: %s%s", runner->kernel->name.c_str(), block.x, block.y, block.z,
                            current_thread->index.x, what, at(site).c_str());
    runner->stop();
}

// ---- failures of the compiler's checks in the kernels (-fsanitize=alignment,bounds)

struct CheckedPlace {
    const char* file;
    uint32_t line, column;
};
struct CheckedType {
    uint16_t kind, info;
    char name[];
};
struct BadPointer {
    CheckedPlace place;
    CheckedType* type;
    unsigned char alignment_log, access;
};
struct BadIndex {
    CheckedPlace place;
    CheckedType *array, *index;
};

extern "C" __attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1_abort(BadPointer* bad, uintptr_t pointer) {
    std::string what = format("%#lx is no address of a %s, which is aligned to %u bytes", pointer, bad->type->name, 1u << bad->alignment_log);
    fault(MISALIGNED_ADDRESS, what.c_str(), {bad->place.file, int(bad->place.line)});
}

extern "C" __attribute__((visibility("default"))) void __ubsan_handle_out_of_bounds_abort(BadIndex* bad, intptr_t index) {
    std::string what = format("index %d of an array %s", int(index), bad->array->name);
    fault(ILLEGAL_ADDRESS, what.c_str(), {bad->place.file, int(bad->place.line)});
}

// ---- barriers

void Runner::release_barrier() {
    for (Fiber& fiber : fibers)
        if (fiber.state == State::AT_BARRIER) wake(fiber);
    waiting = 0;
    barrier_parity ^= 1;
}

void barrier(Site site) {
    Runner& r = *runner;
    Fiber& fiber = self();
    if (r.waiting == 0) r.barrier_site = site;
    else if (r.barrier_site.line != site.line || r.barrier_site.file != site.file)
        fault(LAUNCH_FAILED, ("divergent __syncthreads: other threads wait" + at(r.barrier_site)).c_str(), site);
    if (r.alive < r.fibers.size()) fault(LAUNCH_FAILED, "__syncthreads after threads of the block have ended", site);
    char* name = &r.barrier[r.barrier_parity];
    tsan_release(name);
    if (++r.waiting == r.alive) {
        r.release_barrier();
        r.give_way(fiber);
    } else {
        r.wait(fiber, State::AT_BARRIER);
    }
    tsan_acquire(name);
}

// ---- operations of a warp

Meeting& Runner::meeting(Fiber& fiber, unsigned mask, Site site) {
    Warp& warp = warps[fiber.warp];
    for (unsigned i = 0; i < warp.meetings; i++)
        if (warp.meeting[i].mask == mask) return warp.meeting[i];
    // A mask with no waiting lanes can be replaced.
    for (unsigned i = 0; i < warp.meetings; i++)
        if (warp.meetings == warp.meeting.size() && !warp.meeting[i].arrived) {
            warp.meeting[i].mask = mask;
            return warp.meeting[i];
        }
    if (warp.meetings == warp.meeting.size()) fault(LAUNCH_FAILED, "more than four masks in one warp", site);
    Meeting& fresh = warp.meeting[warp.meetings++];
    fresh.mask = mask;
    fresh.arrived = fresh.parity = 0;
    return fresh;
}

// `put` fills the lane's slot, `finish` runs once over all slots.
template <class Put, class Finish> Slot& Runner::meet(unsigned mask, const char* operation, Site site, Put put, Finish finish) {
    Fiber& fiber = self();
    unsigned bit = 1u << fiber.lane;
    if (!(mask & bit)) fault(LAUNCH_FAILED, format("%s by a lane outside its mask %#x", operation, mask).c_str(), site);
    if (mask & warps[fiber.warp].ended) fault(LAUNCH_FAILED, format("%s waits for lanes that have ended", operation).c_str(), site);
    Meeting& meeting = this->meeting(fiber, mask, site);
    if (!meeting.arrived) {
        meeting.operation = operation;
        meeting.site = site;
    } else if (meeting.site.line != site.line || meeting.site.file != site.file) {
        fault(LAUNCH_FAILED, format("divergent %s: other lanes of the warp are in %s%s", operation, meeting.operation, at(meeting.site).c_str()).c_str(), site);
    }
    Slot* slots = meeting.slots[meeting.parity];
    put(slots[fiber.lane], meeting);
    meeting.arrived |= bit;
    if (meeting.arrived == mask) {
        finish(*reinterpret_cast<Slot(*)[WARP]>(slots), meeting);
        meeting.arrived = 0;
        meeting.parity ^= 1;
        Fiber* first = &fibers[fiber.warp * WARP];
        for (unsigned lane = 0; lane < WARP; lane++)
            if (lane != fiber.lane && (mask >> lane & 1)) wake(first[lane]);
        give_way(fiber);
    } else {
        wait(fiber, State::IN_WARP);
    }
    return slots[0];
}

// Orders only itself: the whole warp's reads precede whatever any of its lanes does next, as ldmatrix is one instruction of the
// warp, but earlier writes of its lanes need a __syncwarp.
void meet(unsigned mask, Slot& mine, void (*combine)(Slot (&slots)[32], Site site), const char* operation, Site site) {
    Meeting* joined;
    Slot* slots = &runner->meet(
        mask, operation, site,
        [&](Slot& slot, Meeting& meeting) {
            slot = mine;
            joined = &meeting;
        },
        [&](Slot(&slots)[WARP], Meeting& meeting) {
            combine(slots, site);
            tsan_release(&meeting.order);
        });
    tsan_acquire(&joined->order);
    mine = slots[current_thread->lane];
}

void sync_warp(unsigned mask, Site site) {
    Meeting* joined;
    runner->meet(
        mask, "__syncwarp", site,
        [&](Slot&, Meeting& meeting) {
            joined = &meeting;
            tsan_release(&meeting.order);
        },
        [](Slot(&)[WARP], Meeting&) {});
    tsan_acquire(&joined->order);
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned from, const char* operation, Site site) {
    if (!(mask >> from & 1)) fault(LAUNCH_FAILED, format("%s reads lane %u, which is outside its mask %#x", operation, from, mask).c_str(), site);
    Slot* slots = &runner->meet(
        mask, operation, site, [&](Slot& slot, Meeting&) { memcpy(slot.words, &value, 8); }, [](Slot(&)[WARP], Meeting&) {});
    memcpy(&value, slots[from].words, 8);
    return value;
}

// ---- asynchronous copies

void start_copy(const Copy& copy) {
    self().copies.push_back(copy);
    self().copies.back().group = self().committed;
}

void commit_copies() { self().committed++; }

const Copy* next_landing(unsigned groups) {
    Fiber& fiber = self();
    if (fiber.copies.empty() || fiber.copies.front().group + groups >= fiber.committed) return nullptr;
    fiber.landing = fiber.copies.front();
    fiber.copies.pop_front();
    return &fiber.landing;
}

void check_shared(const void* address, const char* operation, Site site) {
    bool known = runner->shared.bytes && !sanitized();
    if (known && !runner->shared.holds(address, 16) && !runner->dynamic.holds(address, 16))
        fault(ILLEGAL_ADDRESS, format("%s at %p, which is not in the block's shared memory", operation, address).c_str(), site);
    if (reinterpret_cast<uintptr_t>(address) % 16) fault(MISALIGNED_ADDRESS, format("%s at an address that is not 16-byte aligned", operation).c_str(), site);
}

// ---- launches

void Runner::run_block() {
    memset(shared.begin, 0xff, shared.bytes);
    memset(dynamic.begin, 0xff, dynamic.bytes);
    for (Fiber& fiber : fibers) {
        fiber.state = State::FRESH;
        fiber.committed = 0;
        fiber.copies.clear();
    }
    for (size_t i = 0; i < warps.size(); i++) {
        size_t lanes = std::min<size_t>(WARP, fibers.size() - i * WARP);
        warps[i].ended = lanes < WARP ? ~0u << lanes : 0;
        warps[i].meetings = 0;
    }
    ready.clear();
    started = waiting = stacks_used = 0;
    alive = fibers.size();
    if (seeded())
        for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[random_below(i + 1)]);
    tsan_release(&begin);
    vgpu_switch(&main_stack, new_stack());
    tsan_acquire(&end);
    current_thread = nullptr;
}

void Runner::launch(Kernel& launched, Grid grid, size_t dynamic_shared, const void* launch_arguments, uint64_t errors) {
    kernel = &launched;
    arguments = launch_arguments;
    error = SUCCESS;
    if (fibers.size() != kernel->threads) {
        if (fibers.size() < kernel->threads) fibers.resize(kernel->threads);
        else fibers.erase(fibers.begin() + kernel->threads, fibers.end());
        warps.resize((kernel->threads + WARP - 1) / WARP);
        order.resize(kernel->threads);
        std::iota(order.begin(), order.end(), 0);
    }
    for (unsigned i = 0; i < fibers.size(); i++) {
        Fiber& fiber = fibers[i];
        fiber.index = {i, 0, 0};
        fiber.lane = i % WARP;
        fiber.warp = i / WARP;
        fiber.block = &block;
        if (__tsan_create_fiber && i == tsan_fibers.size()) tsan_fibers.push_back(__tsan_create_fiber(0));
        if (__tsan_create_fiber) fiber.tsan = tsan_fibers[i];
    }
    if (__tsan_get_current_fiber) main_tsan = __tsan_get_current_fiber();
    shared = static_shared();
    dynamic = {dynamic_end() - (dynamic_shared + 15) / 16 * 16, dynamic_shared};
    if (errors) errors = errors * 0x9e3779b97f4a7c15 ^ std::hash<std::string>()(kernel->name);
    block = {{}, {kernel->threads, 1, 1}, {grid.x, grid.y, grid.z}, dynamic.begin, errors};

    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    std::vector<size_t> shuffled;
    if (seeded()) {
        shuffled.resize(blocks);
        std::iota(shuffled.begin(), shuffled.end(), 0);
        for (size_t i = blocks - 1; i > 0; i--) std::swap(shuffled[i], shuffled[random_below(i + 1)]);
    }
    for (size_t i = 0; i < blocks && !error; i++) {
        size_t at = seeded() ? shuffled[i] : i;
        block.index = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        run_block();
    }
    // The stacks of abandoned fibers are meaningless from here on.
    if (error && __asan_unpoison_memory_region)
        for (unsigned i = 0; i < MAX_THREADS; i++) __asan_unpoison_memory_region(stacks + i * (STACK + PAGE) + PAGE, STACK);
}

std::map<std::string, std::unique_ptr<Kernel>>& kernels() {
    static std::map<std::string, std::unique_ptr<Kernel>> registered;
    return registered;
}

bool add_kernel(const char* name, const char* file, size_t argument_bytes, unsigned threads, Body body) {
    auto kernel = std::make_unique<Kernel>();
    kernel->name = name;
    kernel->is_test = strstr(file, "tests/vgpu/");
    kernel->argument_bytes = argument_bytes;
    kernel->threads = threads;
    kernel->body = body;
    const char* fact = threads == 0 || threads > MAX_THREADS ? "a block has 1 to 1024 threads" : nullptr;
    if (!kernels().emplace(name, std::move(kernel)).second) fact = "another kernel, here or among the tests' own, has this name";
    if (fact) {
        fprintf(stderr, "vgpu: kernel %s of %s: %s\n", name, file, fact);
        abort();
    }
    return true;
}

void run_kernel(Device& device, Kernel& kernel, Grid grid, size_t dynamic_shared, const void* arguments, uint64_t errors) {
    static std::mutex pool_mutex, one_at_a_time;
    static std::vector<std::unique_ptr<Runner>> pool;
    std::unique_lock alone(one_at_a_time, std::defer_lock);
    if (sanitized()) alone.lock();
    std::unique_ptr<Runner> mine;
    {
        std::lock_guard lock(pool_mutex);
        if (!pool.empty()) {
            mine = std::move(pool.back());
            pool.pop_back();
        }
    }
    if (!mine) mine = std::make_unique<Runner>();
    runner = mine.get();
    runner->launch(kernel, grid, dynamic_shared, arguments, errors);
    runner = nullptr;
    kernel.launches++;
    for (size_t most = kernel.dynamic_shared; most < dynamic_shared && !kernel.dynamic_shared.compare_exchange_weak(most, dynamic_shared);) {}
    if (mine->error) break_context(device, mine->error, mine->detail);
    std::lock_guard lock(pool_mutex);
    pool.push_back(std::move(mine));
}

}  // namespace vgpu
