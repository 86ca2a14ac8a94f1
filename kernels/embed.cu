// Embedding tables: gather forward, sums over the rows of each token in a fixed order backward. And the [CLS] rows.
#include "gpu.cuh"

template <class T> struct EmbedFwd {
    const int* ids;        // (rows)
    const int* positions;  // (rows)
    const int* types;      // (rows)
    const float* word;     // (vocab, dim)
    const float* position; // (positions, dim)
    const float* type_table; // (types, dim) or null
    T* y;                  // (rows, dim)
    int rows;
    int dim;
};

// A block a row.
template <class T> __device__ void embed_fwd(const EmbedFwd<T>& a) {
    const int row = blockIdx.x;
    for (int c = threadIdx.x; c < a.dim; c += blockDim.x) {
        float x = a.word[size_t(a.ids[row]) * a.dim + c] + a.position[size_t(a.positions[row]) * a.dim + c];
        if (a.type_table) x += a.type_table[size_t(a.types[row]) * a.dim + c];
        a.y[size_t(row) * a.dim + c] = from_float<T>(x);
    }
}
KERNEL(embed_fwd_f32, embed_fwd<float>, EmbedFwd<float>, 128)
KERNEL(embed_fwd_bf16, embed_fwd<bf16>, EmbedFwd<bf16>, 128)
