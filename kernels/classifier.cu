// The classification head after its dense layer, and the loss; see Classifier in src/ops.rs. The forward pass does all that a row
// needs alone, with one block per row; the backward pass sums over rows. The loss is computed in f64, on a batch's few logits.
#include "gpu.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// NaN stays NaN; backward, as in PyTorch, dy passes where x is NaN.
struct Relu {
    static __device__ __forceinline__ float value(float x) { return x < 0.0f ? 0.0f : x; }
    static __device__ __forceinline__ float backward(float x, float dy) { return x <= 0.0f ? 0.0f : dy; }
};

struct Tanh {
    static __device__ __forceinline__ float value(float x) { return tanhf(x); }
    static __device__ __forceinline__ float backward(float x, float dy) {
        const float y = tanhf(x);
        return dy * (1.0f - y * y);
    }
};

template <class T> struct ClassifierFwd {
    const T* x;            // (seqs, dim)
    T* y;                  // (seqs, dim)
    const T* w;            // (classes, dim)
    const float* b;        // (classes)
    const float* weights;  // (classes)
    const int* labels;     // (seqs)
    const int* cu_seqlens; // (seqs + 1): the rows whose dropout masks these use
    float* logits;         // (seqs, classes)
    float* loss;           // (seqs)
    float* dlogits;        // (seqs, classes)
    T* dx;                 // (seqs, dim)
    const Status* status;
    double loss_normalizer;
    double smoothing;
    int classes;
    int dim;
    int activation;        // Activation in src/ops.rs
    int train;             // whether gradients are written
    Drop drop;
};

// A row's weighted log-softmax: a class c adds share * -log p to the loss, share = (1 - e) w[t] [c = t] + e / classes * w[c].
struct LossRow {
    const float* logits;
    const float* weights;
    int classes;
    int label;
    double smoothing;
    double lse; // log of the sum of all exp(logit)

    __device__ __forceinline__ LossRow(const float* logits, const float* weights, int classes, int label, double smoothing)
        : logits(logits), weights(weights), classes(classes), label(label), smoothing(smoothing) {
        float largest = -INFINITY;
        for (int c = lane(); c < classes; c += 32) largest = fmaxf(largest, logits[c]);
        largest = warp_max(largest);
        double sum = 0.0;
        for (int c = lane(); c < classes; c += 32) sum += exp(double(logits[c]) - largest);
        lse = largest + log(warp_sum(sum));
    }

    __device__ __forceinline__ double log_p(int c) const { return logits[c] - lse; }

    __device__ __forceinline__ double share(int c) const {
        return weights[c] * ((c == label ? 1.0 - smoothing : 0.0) + smoothing / classes);
    }
};

// By one warp.
template <class T> __device__ __forceinline__ void cross_entropy(const ClassifierFwd<T>& a, int seq) {
    const size_t first = size_t(seq) * a.classes;
    const LossRow row(a.logits + first, a.weights, a.classes, a.labels[seq], a.smoothing);
    double loss = 0.0, shares = 0.0;
    for (int c = lane(); c < a.classes; c += 32) {
        const double share = row.share(c);
        shares += share;
        // A class of weight 0 adds nothing, however unlikely.
        if (share > 0.0) loss -= share * row.log_p(c);
    }
    loss = warp_sum(loss);
    if (lane() == 0) a.loss[seq] = float(loss);
    if (!a.train) return;
    // d loss / d logit[c] = p[c] * (sum of all shares) - share[c].
    shares = warp_sum(shares);
    const double scale = loss_scale(*a.status) / a.loss_normalizer;
    for (int c = lane(); c < a.classes; c += 32) {
        a.dlogits[first + c] = float((exp(row.log_p(c)) * shares - row.share(c)) * scale);
    }
}

template <bool WHOLE, class F, class T> __device__ __forceinline__ void classify(const ClassifierFwd<T>& a) {
    constexpr int P = PACK<T>;
    const int seq = blockIdx.x, token_row = a.cu_seqlens[seq];
    const size_t first = size_t(seq) * a.dim;
    for (int c = threadIdx.x * P; c < a.dim; c += THREADS * P) {
        float y[P];
        load<WHOLE>(y, a.x + first + c, a.dim - c);
#pragma unroll
        for (int i = 0; i < P; i++) y[i] = F::value(y[i]);
        drop_columns(y, a.drop, c, token_row);
        store<WHOLE>(a.y + first + c, y, a.dim - c);
    }
    __syncthreads();
    for (int k = warp(); k < a.classes; k += WARPS) {
        float sum = 0.0f;
        for (int c = lane() * P; c < a.dim; c += 32 * P) {
            float y[P], w[P];
            load<WHOLE>(y, a.y + first + c, a.dim - c);
            load<WHOLE>(w, a.w + size_t(k) * a.dim + c, a.dim - c);
#pragma unroll
            for (int i = 0; i < P; i++) sum += y[i] * w[i];
        }
        sum = warp_sum(sum);
        if (lane() == 0) a.logits[size_t(seq) * a.classes + k] = sum + a.b[k];
    }
    __syncthreads();
    if (warp() == 0) cross_entropy(a, seq);
    if (!a.train) return;
    __syncthreads();
    for (int c = threadIdx.x * P; c < a.dim; c += THREADS * P) {
        float dx[P] = {}, x[P];
#pragma unroll 4
        for (int k = 0; k < a.classes; k++) {
            const float dlogit = a.dlogits[size_t(seq) * a.classes + k];
            float w[P];
            load<WHOLE>(w, a.w + size_t(k) * a.dim + c, a.dim - c);
#pragma unroll
            for (int i = 0; i < P; i++) dx[i] += dlogit * w[i];
        }
        drop_columns(dx, a.drop, c, token_row);
        load<WHOLE>(x, a.x + first + c, a.dim - c);
#pragma unroll
        for (int i = 0; i < P; i++) dx[i] = F::backward(x[i], dx[i]);
        store<WHOLE>(a.dx + first + c, dx, a.dim - c);
    }
}

template <class F, class T> __device__ __forceinline__ void classify_by(const ClassifierFwd<T>& a) {
    a.dim % PACK<T> == 0 ? classify<true, F>(a) : classify<false, F>(a);
}

template <class T> __device__ void classifier_fwd(const ClassifierFwd<T>& a) {
    a.activation == 0 ? classify_by<Relu>(a) : classify_by<Tanh>(a);
}
KERNEL(classifier_fwd_f32, classifier_fwd<float>, ClassifierFwd<float>, 256)
KERNEL(classifier_fwd_bf16, classifier_fwd<bf16>, ClassifierFwd<bf16>, 256)
KERNEL(classifier_fwd_f16, classifier_fwd<f16>, ClassifierFwd<f16>, 256)

template <class T> struct ClassifierBwd {
    const T* y;           // (seqs, dim)
    const T* dx;          // (seqs, dim)
    const float* dlogits; // (seqs, classes)
    const float* loss;    // (seqs)
    float* dw;            // (classes, dim)
    float* db;            // (classes)
    float* dx_sum;        // (dim)
    Status* status;
    double loss_normalizer;
    int seqs;
    int classes;
    int dim;
    int adds;             // whether to add to the gradients of parameters
};

// sum += a warp's rows of y, times the gradients of logit k; or, for k = classes, its rows of dx.
template <bool WHOLE, class T>
__device__ __forceinline__ void weigh_rows(float (&sum)[PACK<T>], const ClassifierBwd<T>& a, int k, int column) {
    const T* rows = k == a.classes ? a.dx : a.y;
#pragma unroll 2
    for (int seq = warp(); seq < a.seqs; seq += WARPS) {
        const float factor = k == a.classes ? 1.0f : a.dlogits[size_t(seq) * a.classes + k];
        float x[PACK<T>];
        load<WHOLE>(x, rows + size_t(seq) * a.dim + column, a.dim - column);
#pragma unroll
        for (int i = 0; i < PACK<T>; i++) sum[i] += factor * x[i];
    }
}

// By one warp per class; the update's loss by that of the one more.
template <class T> __device__ __forceinline__ void sum_logits(const ClassifierBwd<T>& a) {
    const int k = blockIdx.x;
    if (k == a.classes) {
        double sum = 0.0;
        for (int seq = lane(); seq < a.seqs; seq += 32) sum += a.loss[seq];
        sum = warp_sum(sum);
        if (lane() == 0) a.status->loss += sum / a.loss_normalizer;
        return;
    }
    float sum = 0.0f;
    for (int seq = lane(); seq < a.seqs; seq += 32) sum += a.dlogits[size_t(seq) * a.classes + k];
    sum = warp_sum(sum);
    if (lane() == 0) a.db[k] = a.adds ? a.db[k] + sum : sum;
}

// One block per 32 packs of columns and class, for dw; and one more "class", for dx_sum.
template <class T> __device__ void classifier_bwd(const ClassifierBwd<T>& a) {
    constexpr int P = PACK<T>, COLUMNS = 32 * P;
    const int k = blockIdx.x, start = blockIdx.y * COLUMNS, column = start + lane() * P;
    if (start == 0 && warp() == 0) sum_logits(a);
    float sum[P] = {};
    if (column < a.dim) a.dim % P == 0 ? weigh_rows<true>(sum, a, k, column) : weigh_rows<false>(sum, a, k, column);
    __shared__ float parts[WARPS][COLUMNS];
#pragma unroll
    for (int i = 0; i < P; i++) parts[warp()][lane() * P + i] = sum[i];
    __syncthreads();
    const int c = start + threadIdx.x;
    if (threadIdx.x >= COLUMNS || c >= a.dim) return;
    float total = 0.0f;
#pragma unroll
    for (int part = 0; part < WARPS; part++) total += parts[part][threadIdx.x];
    float& out = k == a.classes ? a.dx_sum[c] : a.dw[size_t(k) * a.dim + c];
    out = a.adds ? out + total : total;
}
KERNEL(classifier_bwd_f32, classifier_bwd<float>, ClassifierBwd<float>, 256)
KERNEL(classifier_bwd_bf16, classifier_bwd<bf16>, ClassifierBwd<bf16>, 256)
KERNEL(classifier_bwd_f16, classifier_bwd<f16>, ClassifierBwd<f16>, 256)
