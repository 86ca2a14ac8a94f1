// Cross-entropy with label smoothing and class weights, in f64 on a batch's few logits; see CrossEntropy in src/ops.rs. One
// warp per row.
#include "gpu.cuh"

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

template <class T> struct Xent {
    const float* logits;  // (seqs, classes)
    const float* weights; // (classes)
    const int* labels;    // (seqs)
    float* loss;          // (seqs)
    T* dlogits;           // (seqs, classes)
    float* db;            // (classes): column sums of dlogits, or null
    Status* status;
    double loss_normalizer;
    double smoothing;
    int seqs;
    int classes;
    int train;            // whether the loss is counted, and the gradients written
    int adds;             // whether to add to db
};

// d loss / d logit[c] = p[c] * (sum of all shares) - share[c].
template <class T> __device__ __forceinline__ void gradients(const Xent<T>& a, const LossRow& row, double scale, T* dlogits) {
    double shares = 0.0;
    for (int c = lane(); c < a.classes; c += 32) shares += row.share(c);
    shares = warp_sum(shares);
    for (int c = lane(); c < a.classes; c += 32) {
        const double dlogit = (exp(row.log_p(c)) * shares - row.share(c)) / a.loss_normalizer * scale;
        dlogits[c] = from_float<T>(float(dlogit));
    }
}

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;

// One warp per class.
template <class T> __device__ __forceinline__ void bias_gradient(const Xent<T>& a) {
    for (int c = warp(); c < a.classes; c += WARPS) {
        float sum = 0.0f;
        for (int seq = lane(); seq < a.seqs; seq += 32) sum += to_float(a.dlogits[size_t(seq) * a.classes + c]);
        sum = warp_sum(sum);
        if (lane() == 0) a.db[c] = a.adds ? a.db[c] + sum : sum;
    }
}

// A single block, so that the rows are summed in one order.
template <class T> __device__ void xent(const Xent<T>& a) {
    const double scale = loss_scale(*a.status);
    double total = 0.0;
    for (int seq = warp(); seq < a.seqs; seq += WARPS) {
        const LossRow row(a.logits + size_t(seq) * a.classes, a.weights, a.classes, a.labels[seq], a.smoothing);
        double loss = 0.0;
        for (int c = lane(); c < a.classes; c += 32) {
            const double share = row.share(c);
            // A class of weight 0 adds nothing, however unlikely.
            if (share > 0.0) loss -= share * row.log_p(c);
        }
        loss = warp_sum(loss);
        if (lane() == 0) {
            a.loss[seq] = float(loss);
            total += loss;
        }
        if (a.train) gradients(a, row, scale, a.dlogits + size_t(seq) * a.classes);
    }
    total = block_sum<THREADS>(total);
    if (!a.train) return;
    if (threadIdx.x == 0) a.status->loss += total / a.loss_normalizer;
    __syncthreads();
    if (a.db) bias_gradient(a);
}
// One block per multiprocessor: without that, nvcc spills registers to make room for more.
KERNEL(xent_f32, xent<float>, Xent<float>, 512, 0, 1)
KERNEL(xent_bf16, xent<bf16>, Xent<bf16>, 512, 0, 1)
KERNEL(xent_f16, xent<f16>, Xent<f16>, 512, 0, 1)
