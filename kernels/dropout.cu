// Dropout in place, the same forward and backward: masks from Philox, never stored. Reads and writes each element once.
#include "gpu.cuh"

constexpr int WARPS = 8;

template <class T> struct Dropout {
    T* x;                  // (rows, width)
    const int* token_rows; // (rows): the rows whose masks these use, or null if they are the same
    int rows;
    int width;
    Drop drop;
};

template <bool WHOLE, class T> __device__ __forceinline__ void drop_row(const Dropout<T>& a, int row) {
    constexpr int P = PACK<T>;
    const unsigned token_row = a.token_rows ? a.token_rows[row] : row;
    for (int c = lane() * P; c < a.width; c += 32 * P) {
        T* p = a.x + size_t(row) * a.width + c;
        float x[P];
        load<WHOLE>(x, p, a.width - c);
        drop_columns(x, a.drop, c, token_row);
        store<WHOLE>(p, x, a.width - c);
    }
}

// One warp per row.
template <class T> __device__ void dropout(const Dropout<T>& a) {
    const int row = blockIdx.x * WARPS + warp();
    if (row >= a.rows) return;
    a.width % PACK<T> == 0 ? drop_row<true>(a, row) : drop_row<false>(a, row);
}
KERNEL(dropout_f32, dropout<float>, Dropout<float>, 256)
KERNEL(dropout_bf16, dropout<bf16>, Dropout<bf16>, 256)
KERNEL(dropout_f16, dropout<f16>, Dropout<f16>, 256)
