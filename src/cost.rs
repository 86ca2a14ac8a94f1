//! What an op moves and computes at the least: every byte that it must read or write once, and the multiplications and
//! additions of its products. A time divided into these is a share of the memory's or the arithmetic's ceiling.

use crate::data::pack::PackedBatch;
use crate::ops::*;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Read and written, in bytes.
    pub bytes: usize,
    /// Of matrix products: a multiplication and an addition are 2. Elementwise work does not count.
    pub flops: usize,
}

/// The sizes of a batch that costs depend on.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub tokens: usize,
    pub seqs: usize,
    pub longest: usize,
    /// Distinct tokens.
    pub distinct: usize,
    /// (query, key) pairs of all sequences.
    pub pairs: usize,
}

impl From<&PackedBatch> for Size {
    fn from(batch: &PackedBatch) -> Size {
        let lengths = batch.cu_seqlens.windows(2).map(|seq| (seq[1] - seq[0]) as usize);
        Size {
            tokens: batch.rows(),
            seqs: batch.seqs(),
            longest: batch.longest,
            distinct: batch.token_starts.len() - 1,
            pairs: lengths.map(|length| length * length).sum(),
        }
    }
}

impl Size {
    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Seqs => self.seqs,
        }
    }
}

/// The cost of an op, forward and backward.
pub trait Costs {
    fn forward(&self, size: &Size) -> Cost;
    fn backward(&self, size: &Size) -> Cost;
}

/// Bytes of `len` elements of the type of `view`; none where there is no view.
fn bytes(view: View, len: usize) -> usize {
    if view.is_none() { 0 } else { len * view.dtype.size() }
}

fn moves(bytes: usize) -> Cost {
    Cost { bytes, flops: 0 }
}

impl Costs for Embed {
    fn forward(&self, size: &Size) -> Cost {
        let rows = size.distinct + size.longest;
        moves(bytes(self.word, rows * self.dim) + bytes(self.y, size.tokens * self.dim) + 12 * size.tokens)
    }

    fn backward(&self, size: &Size) -> Cost {
        let rows = 2 * (size.distinct + size.longest);
        moves(bytes(self.dword, rows * self.dim) + bytes(self.dy, size.tokens * self.dim) + 12 * size.tokens)
    }
}

impl Costs for Linear {
    fn forward(&self, size: &Size) -> Cost {
        let (rows, Linear { k, n, .. }) = (size.rows(self.rows), *self);
        let bytes = bytes(self.x, rows * k) + bytes(self.w, n * k) + bytes(self.b, n) + bytes(self.y, rows * n);
        Cost { bytes, flops: 2 * rows * k * n }
    }

    fn backward(&self, size: &Size) -> Cost {
        let (rows, Linear { k, n, .. }) = (size.rows(self.rows), *self);
        let read = bytes(self.x, rows * k) + bytes(self.w, n * k) + bytes(self.dy, rows * n);
        let dx = bytes(self.dx, rows * k) * if self.add { 2 } else { 1 };
        let parameters = 2 * (bytes(self.dw, n * k) + bytes(self.db, n));
        Cost { bytes: read + dx + parameters, flops: 4 * rows * k * n }
    }
}

impl Attn {
    fn pairs(&self, size: &Size) -> usize {
        let pairs = if self.q_rows == Rows::Tokens { size.pairs } else { size.tokens };
        pairs * self.heads * self.head_dim
    }
}

impl Costs for Attn {
    fn forward(&self, size: &Size) -> Cost {
        let (rows, dim) = (size.rows(self.q_rows), self.heads * self.head_dim);
        let read = bytes(self.q, rows * dim) + 2 * bytes(self.k, size.tokens * dim);
        let bytes = read + bytes(self.y, rows * dim) + bytes(self.lse, rows * self.heads);
        Cost { bytes, flops: 4 * self.pairs(size) }
    }

    fn backward(&self, size: &Size) -> Cost {
        let (rows, dim) = (size.rows(self.q_rows), self.heads * self.head_dim);
        let queries = 4 * bytes(self.q, rows * dim) + bytes(self.lse, rows * self.heads);
        Cost { bytes: queries + 4 * bytes(self.k, size.tokens * dim), flops: 10 * self.pairs(size) }
    }
}

impl Costs for AddNorm {
    fn forward(&self, size: &Size) -> Cost {
        let len = size.rows(self.rows) * self.dim;
        // The sum is written where it is not what came in.
        let sum = if self.skip.is_none() && self.drop.p == 0.0 { 0 } else { bytes(self.x, len) };
        moves(2 * bytes(self.x, len) + bytes(self.skip, len) + sum)
    }

    fn backward(&self, size: &Size) -> Cost {
        let len = size.rows(self.rows) * self.dim;
        let dropped = if self.dx == self.dy { 0 } else { bytes(self.dx, len) };
        moves(bytes(self.x, len) + 2 * bytes(self.dy, len) + dropped)
    }
}

impl Costs for Act {
    fn forward(&self, size: &Size) -> Cost {
        moves(2 * bytes(self.x, size.rows(self.rows) * self.width))
    }

    fn backward(&self, size: &Size) -> Cost {
        moves(3 * bytes(self.x, size.rows(self.rows) * self.width))
    }
}

impl Costs for Dropout {
    fn forward(&self, size: &Size) -> Cost {
        moves(2 * bytes(self.x, size.rows(self.rows) * self.width))
    }

    fn backward(&self, size: &Size) -> Cost {
        self.forward(size)
    }
}

impl Costs for FirstRow {
    fn forward(&self, size: &Size) -> Cost {
        moves(2 * bytes(self.x, size.seqs * self.dim))
    }

    fn backward(&self, size: &Size) -> Cost {
        let written = if self.add { 2 * size.seqs } else { size.tokens };
        moves(bytes(self.dx, written * self.dim) + bytes(self.dy, size.seqs * self.dim))
    }
}

impl Costs for Xent {
    fn forward(&self, size: &Size) -> Cost {
        moves(bytes(self.logits, size.seqs * self.classes) + bytes(self.loss, size.seqs) + 4 * size.seqs)
    }

    fn backward(&self, size: &Size) -> Cost {
        let len = size.seqs * self.classes;
        moves(bytes(self.logits, len) + bytes(self.dlogits, len) + 4 * size.seqs)
    }
}

impl Costs for Cast {
    fn forward(&self, _: &Size) -> Cost {
        moves(self.x.bytes() + self.y.bytes())
    }

    fn backward(&self, _: &Size) -> Cost {
        Cost::default()
    }
}

impl Costs for GradNorm {
    fn forward(&self, _: &Size) -> Cost {
        moves(self.grads.bytes())
    }

    fn backward(&self, _: &Size) -> Cost {
        Cost::default()
    }
}

impl Costs for AdamW {
    fn forward(&self, _: &Size) -> Cost {
        // Each of the four is read and written.
        moves(2 * 4 * self.params.bytes() + bytes(self.copy, self.params.len))
    }

    fn backward(&self, _: &Size) -> Cost {
        Cost::default()
    }
}
