// libcublasLt.so: D = alpha op(A) op(B) + beta C (+ bias over the columns), column-major, in the combinations that the engine
// uses: f32, bf16 or f16 factors, f32 sums, epilogues DEFAULT and BIAS. It is stricter than cuBLASLt where that leaves room: an
// algorithm needs a workspace, which is filled with NaN. Below EXACT it supports only the sizes that the heuristic was asked
// for; above, those that round up to the same multiple of SHAPE_CLASS, except some that it refuses by the seed. If sums may be
// split over k, it drops the last terms, as cuBLASLt was seen to do. The heuristic suggests up to CANDIDATES algorithms; number i
// adds its terms in i + 1 parts, so that each has bits of its own. A product takes time on the device's clock, less with the
// algorithm that VGPU_FASTEST names; the first use of an algorithm takes a millisecond more, as its kernel is loaded, and so do a few
// others.
#include "numbers.h"
#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

using namespace vgpu;

namespace {

// cublasStatus_t
enum Status : int { OK = 0, NOT_INITIALISED = 1, ALLOC_FAILED = 3, BAD_VALUE = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15 };
// cudaDataType_t, cublasComputeType_t, cublasLtEpilogue_t
enum Type : int { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum Compute : int { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum Epilogue : int { DEFAULT = 1, BIAS = 4 };
// cublasLtReductionScheme_t
enum Reduction : uint32_t { IN_PLACE = 1, IN_COMPUTE_TYPE = 2, IN_OUTPUT_TYPE = 4 };

constexpr size_t WORKSPACE = 64 * 1024;
constexpr size_t EXACT = 256, SHAPE_CLASS = 128;
constexpr int CANDIDATES = 8;

size_t round_up(size_t x, size_t unit) { return (x + unit - 1) / unit * unit; }

int unsupported(const char* what) { return refuse(UNSUPPORTED, format("cublasLt: %s", what)); }
int bad_value(const char* what) { return refuse(BAD_VALUE, format("cublasLt: %s", what)); }

size_t size_of(int type) { return type == R_32F ? 4 : 2; }

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;  // elements between columns

    size_t bytes() const { return ((columns - 1) * stride + rows) * size_of(type); }
};

struct Description {
    int compute;
    int transposed_a = 0, transposed_b = 0, epilogue = DEFAULT;
    const void* bias = nullptr;
    int bias_type = -1;  // D's
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = IN_PLACE | IN_COMPUTE_TYPE | IN_OUTPUT_TYPE;
    uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C and D
};

struct Hash {
    uint64_t value = 14695981039346656037u;

    Hash& mix(uint64_t x) {
        value = (value ^ x) * 1099511628211u ^ value >> 29;
        return *this;
    }
};

struct Handle {};
Handles<Handle> handles;
Handles<Layout> layouts;
Handles<Description> descriptions;
Handles<Preference> preferences;
// Submitted by this thread.
thread_local uint64_t products;

// A requested product. The layouts' strides are part of it.
struct Problem {
    Description description;
    Layout a, b, c, d;

    size_t m() const { return description.transposed_a ? a.columns : a.rows; }
    size_t k() const { return description.transposed_a ? a.rows : a.columns; }
    size_t n() const { return description.transposed_b ? b.rows : b.columns; }

    int check() const {
        if (!m() || !n() || !k() || (description.transposed_b ? b.columns : b.rows) != k()) return bad_value("the shapes of A and B disagree");
        if (d.rows != m() || d.columns != n() || c.rows != m() || c.columns != n()) return bad_value("the shape of C or D is not that of the product");
        if (c.type != d.type || c.stride != d.stride) return unsupported("C and D of different layouts");
        if (a.type != b.type || (d.type != R_32F && d.type != a.type)) return unsupported("this mix of types");
        if (description.compute == COMPUTE_32F_FAST_TF32 && a.type != R_32F) return unsupported("TF32 of a type other than f32");
        bool biased = description.epilogue == BIAS;
        if (biased && description.bias_type >= 0 && description.bias_type != d.type) return unsupported("a bias of another type than D");
        for (const Layout* matrix : {&a, &b, &c, &d}) {
            if (matrix->stride < static_cast<int64_t>(matrix->rows)) return bad_value("a leading dimension below the rows");
            if (matrix->stride * size_of(matrix->type) % 16) return unsupported("a leading dimension that is not a multiple of 16 bytes");
        }
        return OK;
    }

    // Everything except the sizes on which an algorithm depends.
    uint64_t key() const {
        Hash hash;
        for (int value : {description.compute, description.transposed_a, description.transposed_b, description.epilogue, description.bias_type}) hash.mix(value);
        for (const Layout* matrix : {&a, &b, &c, &d}) hash.mix(matrix->type).mix(matrix->stride);
        return hash.value;
    }
};

// cublasLtMatmulAlgo_t, the heuristic's result
struct Algorithm {
    uint64_t key;
    uint32_t alignment[4];
    uint64_t sizes[3];       // requested from the heuristic
    uint32_t splits, tile;  // parts of a sum over k, and the terms per step
    uint32_t number;         // its place among the suggestions, from 0
    uint32_t seal;           // of all the above

    uint32_t sealed() const {
        Hash hash;
        hash.mix(key).mix(splits).mix(tile).mix(number);
        for (uint64_t value : sizes) hash.mix(value);
        for (uint32_t value : alignment) hash.mix(value);
        return hash.value >> 32;
    }

    bool serves(const Problem& problem) const {
        if (seal != sealed() || key != problem.key()) return false;
        bool same = true;
        Hash hash;
        hash.mix(key).mix(seed());
        for (auto [asked, size] : {std::pair{sizes[0], problem.m()}, {sizes[1], problem.n()}, {sizes[2], problem.k()}}) {
            hash.mix(asked).mix(size);
            if (asked == size) continue;
            if (size <= EXACT || round_up(asked, SHAPE_CLASS) != round_up(size, SHAPE_CLASS)) return false;
            same = false;
        }
        return same || !seed() || hash.value >> 20 & 3;
    }

    // The number of terms of a sum that are computed. https://github.com/facebookexperimental/triton/pull/2767
    size_t computed(size_t k) const {
        size_t rest = k % tile;
        return splits > rest && k / tile % splits == 0 ? k - rest : k;
    }

    // Nanoseconds of a product on the device's clock.
    uint64_t duration(const Problem& problem) const {
        static const uint64_t fastest = environment_number("VGPU_FASTEST");
        static std::mutex mutex;
        static std::set<std::pair<uint64_t, uint32_t>> loaded;
        static uint64_t runs;
        static const uint64_t least = environment_number("VGPU_PRODUCT_NS");
        uint64_t ideal = (least ? least : 20000) + problem.m() * problem.n() * problem.k() / 100;
        uint64_t usual = number == fastest ? ideal : ideal * (20 + number) / 10;
        std::lock_guard lock(mutex);
        if (loaded.insert({key, number}).second) return usual + 1000000;
        return runs++ % 997 == 996 ? usual + 1000000 : usual;
    }
};
static_assert(sizeof(Algorithm) == 64);
struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

struct Operands {
    const void *a, *b, *c;
    void* d;
    float alpha, beta;
};

// ---- the product: packed panels of floats, 16 rows of A by 6 columns of B at a time

constexpr size_t ROWS = 16, COLUMNS = 6, BLOCK_K = 256, BLOCK_M = 256;

// Elements in memory.
struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };
float widened(float x) { return x; }
float widened(Bf16 x) { return from_bf16(x.bits); }
float widened(F16 x) { return from_f16(x.bits); }
void narrow(float& to, float x) { to = x; }
void narrow(Bf16& to, float x) { to.bits = to_bf16(x); }
void narrow(F16& to, float x) { to.bits = to_f16(x); }

// To nearest, ties away from zero, like operands of tensor cores.
float rounded_to_tf32(float x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    if (x - x == 0) word = (word + 0x1000) & 0xffffe000;
    memcpy(&x, &word, 4);
    return x;
}

// Element (i, p) of a factor: i counts rows of op(A) or columns of op(B), p the terms of the sums.
template <class Element> struct Factor {
    const Element* data;
    size_t step_i, step_p;
    bool tf32;

    float at(size_t i, size_t p) const {
        const float x = widened(data[i * step_i + p * step_p]);
        return tf32 ? rounded_to_tf32(x) : x;
    }
};

// Panels of `width` rows, term by term; zeros after the last row.
template <class Element> void pack(float* packed, Factor<Element> factor, size_t i0, size_t i1, size_t p0, size_t p1, size_t width) {
    for (size_t i = i0; i < i1; i += width, packed += width * (p1 - p0))
        for (size_t lane = 0; lane < width; lane++)
            for (size_t p = p0; p < p1; p++) packed[(p - p0) * width + lane] = i + lane < i1 ? factor.at(i + lane, p) : 0.0f;
}

typedef float Vector __attribute__((vector_size(32)));

// sums (16 x 6, column-major) += a b
__attribute__((target_clones("arch=x86-64-v3", "default"))) void multiply_panels(const float* a, const float* b, size_t terms, float* sums, size_t stride) {
    Vector total[COLUMNS][2];
#pragma GCC unroll 6
    for (size_t j = 0; j < COLUMNS; j++) memcpy(total[j], sums + j * stride, sizeof total[j]);
    for (size_t p = 0; p < terms; p++, a += ROWS, b += COLUMNS) {
        Vector low, high;
        memcpy(&low, a, sizeof low);
        memcpy(&high, a + 8, sizeof high);
#pragma GCC unroll 6
        for (size_t j = 0; j < COLUMNS; j++) {
            total[j][0] += low * b[j];
            total[j][1] += high * b[j];
        }
    }
#pragma GCC unroll 6
    for (size_t j = 0; j < COLUMNS; j++) memcpy(sums + j * stride, total[j], sizeof total[j]);
}

// The sums of terms `first` to `last`.
template <class Element> std::vector<float> multiply(const Problem& problem, size_t first, size_t last, const Operands& operands) {
    size_t m = problem.m(), n = problem.n(), stride = round_up(m, ROWS);
    bool tf32 = problem.description.compute == COMPUTE_32F_FAST_TF32;
    size_t a_stride = problem.a.stride, b_stride = problem.b.stride;
    bool ta = problem.description.transposed_a, tb = problem.description.transposed_b;
    Factor<Element> a{static_cast<const Element*>(operands.a), ta ? a_stride : 1, ta ? 1 : a_stride, tf32};
    Factor<Element> b{static_cast<const Element*>(operands.b), tb ? 1 : b_stride, tb ? b_stride : 1, tf32};
    std::vector<float> sums(stride * round_up(n, COLUMNS)), packed_a(BLOCK_M * BLOCK_K), packed_b(round_up(n, COLUMNS) * BLOCK_K);
    for (size_t p = first; p < last; p += BLOCK_K) {
        size_t terms = std::min(BLOCK_K, last - p);
        pack(packed_b.data(), b, 0, n, p, p + terms, COLUMNS);
        for (size_t i0 = 0; i0 < m; i0 += BLOCK_M) {
            size_t i1 = std::min(i0 + BLOCK_M, m);
            pack(packed_a.data(), a, i0, i1, p, p + terms, ROWS);
            for (size_t j = 0; j < n; j += COLUMNS)
                for (size_t i = i0; i < i1; i += ROWS)
                    multiply_panels(&packed_a[(i - i0) * terms], &packed_b[j * terms], terms, &sums[j * stride + i], stride);
        }
    }
    return sums;
}

template <class Element> void store(const Problem& problem, const std::vector<float>& sums, const Operands& operands) {
    size_t m = problem.m(), stride = round_up(m, ROWS);
    auto d = static_cast<Element*>(operands.d);
    auto c = static_cast<const Element*>(operands.c);
    auto bias = static_cast<const Element*>(problem.description.epilogue == BIAS ? problem.description.bias : nullptr);
    for (size_t j = 0; j < problem.n(); j++)
        for (size_t i = 0; i < m; i++) {
            size_t at = j * problem.d.stride + i;
            float x = operands.alpha * sums[j * stride + i];
            if (operands.beta != 0) x += operands.beta * widened(c[at]);
            if (bias) x += widened(bias[i]);
            narrow(d[at], x);
        }
}

// Calls f with an element of a type.
template <class F> auto with(int type, F f) { return type == R_32F ? f(float()) : type == R_16BF ? f(Bf16()) : f(F16()); }

void run(const Problem& problem, const Algorithm& algorithm, const Operands& operands) {
    size_t terms = algorithm.computed(problem.k()), parts = algorithm.number + 1;
    std::vector<float> sums;
    for (size_t part = 0; part < parts; part++) {
        size_t first = terms * part / parts, last = terms * (part + 1) / parts;
        std::vector<float> more = with(problem.a.type, [&](auto x) { return multiply<decltype(x)>(problem, first, last, operands); });
        if (part == 0) sums = std::move(more);
        else std::transform(sums.begin(), sums.end(), more.begin(), sums.begin(), std::plus<float>());
    }
    with(problem.d.type, [&](auto x) { store<decltype(x)>(problem, sums, operands); });
}

// ---- memory accessed by a product

struct Span {
    const char* name;
    uint64_t begin;
    size_t bytes;

    bool overlaps(const Span& other) const { return begin < other.begin + other.bytes && other.begin < begin + bytes; }
};

void run_checked(Device& device, const Problem& problem, const Algorithm& algorithm, const Operands& operands, void* workspace) {
    auto span = [](const char* name, const void* begin, size_t bytes) { return Span{name, reinterpret_cast<uint64_t>(begin), bytes}; };
    std::vector<Span> outputs = {span("D", operands.d, problem.d.bytes()), span("the workspace", workspace, WORKSPACE)};
    std::vector<Span> inputs = {span("A", operands.a, problem.a.bytes()), span("B", operands.b, problem.b.bytes())};
    if (problem.description.epilogue == BIAS) inputs.push_back(span("the bias", problem.description.bias, problem.m() * size_of(problem.d.type)));
    if (operands.beta != 0 && operands.c != operands.d) inputs.push_back(span("C", operands.c, problem.c.bytes()));
    for (const auto& spans : {inputs, outputs})
        for (const Span& used : spans)
            if (!allocated(device, used.begin, used.bytes))
                return break_context(device, ILLEGAL_ADDRESS, format("cublasLt: %s, %zu bytes from %s", used.name, used.bytes, describe_address(used.begin).c_str()));
    std::vector<std::pair<Span, Span>> apart = {{outputs[0], outputs[1]}};
    for (const Span& input : inputs)
        for (const Span& output : outputs) apart.emplace_back(input, output);
    for (auto& [one, other] : apart)
        if (one.overlaps(other)) return break_context(device, LAUNCH_FAILED, format("cublasLt: %s lies over %s", one.name, other.name));
    memset(workspace, 0xff, WORKSPACE);
    run(problem, algorithm, operands);
    device.clock += algorithm.duration(problem);
}

int find_problem(void* description, void* a, void* b, void* c, void* d, Problem* problem) {
    auto found = descriptions.find(description);
    auto layout_a = layouts.find(a), layout_b = layouts.find(b), layout_c = layouts.find(c), layout_d = layouts.find(d);
    if (!found || !layout_a || !layout_b || !layout_c || !layout_d) return bad_value("a description or layout that does not exist");
    *problem = {*found, *layout_a, *layout_b, *layout_c, *layout_d};
    return problem->check();
}

template <class T> bool take(T& value, const void* buffer, size_t bytes) {
    if (bytes != sizeof value) return false;
    memcpy(&value, buffer, bytes);
    return true;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int cublasLtCreate(void** handle) {
    if (!current_device() || current_device()->error) return NOT_INITIALISED;
    *handle = handles.add(std::make_shared<Handle>());
    return OK;
}

int cublasLtDestroy(void* handle) { return handles.remove(handle) ? OK : NOT_INITIALISED; }

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (type != R_32F && type != R_16BF && type != R_16F) return unsupported("a type that is neither f32, bf16 nor f16");
    if (!rows || !columns) return bad_value("an empty matrix");
    *layout = layouts.add(std::make_shared<Layout>(Layout{type, rows, columns, stride}));
    return OK;
}

int cublasLtMatrixLayoutDestroy(void* layout) { return layouts.remove(layout) ? OK : BAD_VALUE; }

int cublasLtMatmulDescCreate(void** description, int compute, int scale_type) {
    if (scale_type != R_32F || (compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32)) return unsupported("this compute type");
    *description = descriptions.add(std::make_shared<Description>(Description{compute}));
    return OK;
}

int cublasLtMatmulDescDestroy(void* description) { return descriptions.remove(description) ? OK : BAD_VALUE; }

int cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* buffer, size_t bytes) {
    auto description = descriptions.find(handle);
    if (!description) return bad_value("a description that does not exist");
    int pointer_mode = 0;
    bool taken = false;
    switch (attribute) {
        case 2: taken = take(pointer_mode, buffer, bytes) && pointer_mode == 0; break;
        case 3: taken = take(description->transposed_a, buffer, bytes) && description->transposed_a <= 1; break;
        case 4: taken = take(description->transposed_b, buffer, bytes) && description->transposed_b <= 1; break;
        case 7: taken = take(description->epilogue, buffer, bytes) && (description->epilogue == DEFAULT || description->epilogue == BIAS); break;
        case 8: taken = take(description->bias, buffer, bytes); break;
        case 26: taken = take(description->bias_type, buffer, bytes); break;
    }
    return taken ? OK : refuse(BAD_VALUE, format("cublasLt: matmul attribute %d, or its value, is not known here", attribute));
}

int cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = preferences.add(std::make_shared<Preference>());
    return OK;
}

int cublasLtMatmulPreferenceDestroy(void* preference) { return preferences.remove(preference) ? OK : BAD_VALUE; }

int cublasLtMatmulPreferenceSetAttribute(void* handle, int attribute, const void* buffer, size_t bytes) {
    auto preference = preferences.find(handle);
    if (!preference) return bad_value("a preference that does not exist");
    bool taken = false;
    switch (attribute) {
        case 1: taken = take(preference->workspace, buffer, bytes); break;
        case 3: taken = take(preference->reductions, buffer, bytes); break;
        case 5: case 6: case 7: case 8: taken = take(preference->alignment[attribute - 5], buffer, bytes); break;
    }
    return taken ? OK : refuse(BAD_VALUE, format("cublasLt: preference %d, or its value, is not known here", attribute));
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void* c, void* d, void* preference_handle, int wanted,
                                   HeuristicResult* results, int* count) {
    if (!handles.find(handle)) return NOT_INITIALISED;
    auto preference = preferences.find(preference_handle);
    if (!preference || wanted < 1) return bad_value("no preference, or no results wanted");
    *count = 0;
    Problem problem;
    if (int status = find_problem(description, a, b, c, d, &problem)) return status;
    if (injected("no_products")) return UNSUPPORTED;
    if (preference->workspace < WORKSPACE) return unsupported("every algorithm here needs 64 KiB of workspace");
    if (preference->reductions & IN_PLACE) return unsupported("partial sums added in an undetermined order");
    if (preference->reductions & IN_OUTPUT_TYPE) return unsupported("partial sums rounded to the type of D");
    uint64_t sizes[] = {problem.m(), problem.n(), problem.k()};
    uint64_t choice = Hash().mix(problem.key()).mix(seed()).mix(sizes[2]).value >> 20;
    static const int first = environment_number("VGPU_FIRST");
    for (int place = 0; place < std::min(wanted, CANDIDATES); place++) {
        const int i = (first + place) % CANDIDATES;
        Algorithm algorithm{};
        algorithm.key = problem.key();
        std::copy_n(sizes, 3, algorithm.sizes);
        algorithm.tile = 32 << ((choice + i) & 1);
        algorithm.splits = preference->reductions & IN_COMPUTE_TYPE ? 2 + ((choice >> 1) + i) % 15 : 0;
        std::copy_n(preference->alignment, 4, algorithm.alignment);
        algorithm.number = i;
        algorithm.seal = algorithm.sealed();
        results[(*count)++] = {algorithm, WORKSPACE, OK, 1, {}};
    }
    return OK;
}

int cublasLtMatmulAlgoCheck(void* handle, void* description, void* a, void* b, void* c, void* d, const Algorithm* algorithm, HeuristicResult* result) {
    if (!handles.find(handle)) return NOT_INITIALISED;
    Problem problem;
    if (int status = find_problem(description, a, b, c, d, &problem)) return status;
    if (injected("refused_algorithms") || !algorithm->serves(problem)) return UNSUPPORTED;
    *result = {*algorithm, WORKSPACE, OK, 1, {}};
    return OK;
}

// 13.0.2, or VGPU_CUBLASLT.
size_t cublasLtGetVersion() {
    uint64_t other = environment_number("VGPU_CUBLASLT");
    return other ? other : 130002;
}

int cublasLtMatmul(void* handle, void* description, const float* alpha, const void* a, void* layout_a, const void* b, void* layout_b,
                   const float* beta, const void* c, void* layout_c, void* d, void* layout_d, const Algorithm* algorithm, void* workspace,
                   size_t workspace_bytes, void* stream) {
    if (!handles.find(handle)) return NOT_INITIALISED;
    if (!current_device() || current_device()->error) return EXECUTION_FAILED;
    Problem problem;
    if (int status = find_problem(description, layout_a, layout_b, layout_c, layout_d, &problem)) return status;
    if (injected("cublaslt_memory")) return refuse(ALLOC_FAILED, "cublasLt: no memory for a kernel that is loaded on first use");
    if (current_device()->left_behind) return refuse(EXECUTION_FAILED, "cublasLt: its kernels belong to a destroyed context");
    if (!algorithm) return bad_value("no algorithm; ask the heuristic for one");
    if (!algorithm->serves(problem)) return UNSUPPORTED;  // without a message: the engine requests another
    const void* bias = problem.description.epilogue == BIAS ? problem.description.bias : nullptr;
    if (problem.description.epilogue == BIAS && !bias) return bad_value("a bias that is null");
    const void* pointers[] = {a, b, c, d, bias};
    for (int i = 0; i < 5; i++)
        if (reinterpret_cast<uintptr_t>(pointers[i]) % std::max(16u, i < 4 ? algorithm->alignment[i] : 0))
            return unsupported("a pointer that is not aligned to 16 bytes, or to what the preference promised");
    if (workspace_bytes < WORKSPACE || reinterpret_cast<uintptr_t>(workspace) % 256) return unsupported("a workspace that is too small or not aligned to 256 bytes");
    Operands operands{a, b, c, d, *alpha, *beta};
    trace("cublasLtMatmul %zu %zu 1 128\n", round_up(problem.d.rows, 128) / 128, round_up(problem.d.columns, 128) / 128);
    current_device()->kernels_loaded = true;
    products++;
    int error = submit(stream, {[=, algorithm = *algorithm](Device& device) { run_checked(device, problem, algorithm, operands, workspace); }});
    return error ? EXECUTION_FAILED : OK;
}

uint64_t vgpu_products() { return products; }

}  // extern "C"
#pragma GCC visibility pop
