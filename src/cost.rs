//! Lower bounds of an op's work: every byte that it must read or write once, and the multiplications and additions of its
//! products, in the first micro-batch of an update. Divided by a measured time they are a share of the memory's or the arithmetic's
//! ceiling.

use crate::data::pack::PackedBatch;
use crate::ops::*;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: usize,
    /// Operations of matrix products: a multiplication and an addition are 2. Elementwise work does not count.
    pub flops: usize,
}

/// The sizes of a batch on which costs depend.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub tokens: usize,
    pub seqs: usize,
    pub max_seqlen: usize,
    /// Distinct tokens.
    pub distinct: usize,
    /// (query, key) pairs of all sequences.
    pub pairs: usize,
    /// Elements of the word table without a gradient, if the backend passes over them; else 0.
    pub passed: usize,
}

impl From<&PackedBatch> for Size {
    fn from(batch: &PackedBatch) -> Size {
        let lengths = batch.cu_seqlens.windows(2).map(|seq| (seq[1] - seq[0]) as usize);
        Size {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            max_seqlen: batch.max_seqlen,
            distinct: batch.token_starts.len() - 1,
            pairs: lengths.map(|length| length * length).sum(),
            passed: 0,
        }
    }
}

impl Size {
    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Cls => self.seqs,
        }
    }
}

/// Bytes of `len` elements of the type of `view`; 0 for an absent view.
fn bytes(view: View, len: usize) -> usize {
    if view.is_none() { 0 } else { len * view.dtype.size() }
}

fn moves(bytes: usize) -> Cost {
    Cost { bytes, flops: 0 }
}

impl Op {
    /// The cost on a batch of this size.
    pub fn cost(&self, pass: Pass, size: &Size) -> Cost {
        match (self, pass) {
            (Op::Embed(op), Pass::Forward) => {
                let rows = size.distinct + size.max_seqlen;
                moves(bytes(op.word, rows * op.dim) + 2 * bytes(op.x, size.tokens * op.dim) + 12 * size.tokens)
            }
            (Op::Embed(op), Pass::Backward) => {
                // The tables are zeroed, and then the rows of the batch's tokens read and written; or these are written alone.
                let zeroed = op.dposition.bytes() + op.dtypes.bytes() + bytes(op.dword, op.dword.len - size.passed);
                let rows = 2 * size.max_seqlen + if size.passed == 0 { 2 * size.distinct } else { 0 };
                // x and dy are read, dx is written, and read for the tables.
                moves(zeroed + bytes(op.dword, rows * op.dim) + 4 * bytes(op.dy, size.tokens * op.dim) + 12 * size.tokens)
            }
            (Op::Linear(op), Pass::Forward) => {
                let (rows, Linear { k, n, .. }) = (size.rows(op.rows), *op);
                let bytes = bytes(op.x, rows * k) + bytes(op.w, n * k) + bytes(op.b, n) + bytes(op.y, rows * n);
                Cost { bytes, flops: 2 * rows * k * n }
            }
            (Op::Linear(op), Pass::Backward) => {
                let (rows, Linear { k, n, .. }) = (size.rows(op.rows), *op);
                let read = bytes(op.x, rows * k) + bytes(op.w, n * k) + bytes(op.dy, rows * n);
                let dx = bytes(op.dx, rows * k) * if op.add { 2 } else { 1 };
                Cost { bytes: read + dx + bytes(op.dw, n * k), flops: 4 * rows * k * n }
            }
            (Op::Attention(op), pass) => attn(op, pass, size),
            (Op::AddNorm(op), Pass::Forward) => {
                let len = size.rows(op.rows) * op.dim;
                // The sum is written only if it differs from the input.
                let sum = if op.skip.is_none() && op.drop.p == 0.0 { 0 } else { bytes(op.x, len) };
                moves(2 * bytes(op.x, len) + bytes(op.skip, len) + sum)
            }
            (Op::AddNorm(op), Pass::Backward) => {
                let len = size.rows(op.rows) * op.dim;
                let dropped = if op.dx == op.dy { 0 } else { bytes(op.dx, len) };
                moves(bytes(op.x, len) + 2 * bytes(op.dy, len) + dropped)
            }
            (Op::Gelu(op), Pass::Forward) => moves(2 * bytes(op.x, size.rows(op.rows) * op.width)),
            (Op::Gelu(op), Pass::Backward) => moves(3 * bytes(op.x, size.rows(op.rows) * op.width)),
            (Op::GatherCls(op), Pass::Forward) => moves(2 * bytes(op.x, size.seqs * op.dim)),
            (Op::GatherCls(op), Pass::Backward) => {
                let written = if op.add { 2 * size.seqs } else { size.tokens };
                moves(bytes(op.dx, written * op.dim) + bytes(op.dy, size.seqs * op.dim))
            }
            (Op::Classifier(op), Pass::Forward) => {
                let (len, logits) = (size.seqs * op.dim, size.seqs * op.classes);
                let parameters = bytes(op.w, op.classes * op.dim) + bytes(op.b, op.classes);
                let rows = 2 * bytes(op.x, len) + bytes(op.logits, logits) + bytes(op.loss, size.seqs) + 4 * size.seqs;
                let gradients = bytes(op.dlogits, logits) + bytes(op.dx, len);
                let products = if op.dx.is_none() { 1 } else { 2 };
                Cost { bytes: parameters + rows + gradients, flops: products * 2 * len * op.classes }
            }
            (Op::Classifier(op), Pass::Backward) => {
                let (len, logits) = (size.seqs * op.dim, size.seqs * op.classes);
                let read = bytes(op.y, len) + bytes(op.dx, len) + bytes(op.dlogits, logits) + bytes(op.loss, size.seqs);
                Cost { bytes: read + op.dw.bytes() + op.db.bytes() + op.dx_sum.bytes(), flops: 2 * len * op.classes }
            }
        }
    }
}

fn attn(op: &Attention, pass: Pass, size: &Size) -> Cost {
    let (rows, dim) = (size.rows(op.q_rows), op.heads * op.head_dim);
    let pairs = dim * if op.q_rows == Rows::Tokens { size.pairs } else { size.tokens };
    let (q, kv, lse) = (bytes(op.q, rows * dim), bytes(op.k, size.tokens * dim), bytes(op.lse, rows * op.heads));
    match pass {
        Pass::Forward => Cost { bytes: q + 2 * kv + bytes(op.y, rows * dim) + lse, flops: 4 * pairs },
        Pass::Backward => Cost { bytes: 4 * q + lse + 4 * kv, flops: 10 * pairs },
    }
}

impl Cast {
    pub fn cost(&self) -> Cost {
        moves(self.x.bytes() + self.y.bytes())
    }
}

impl GradNorm {
    pub fn cost(&self, size: &Size) -> Cost {
        moves(bytes(self.grads, self.grads.len - size.passed))
    }
}

impl AdamW {
    pub fn cost(&self, size: &Size) -> Cost {
        // The gradients are read; parameters and moments are read and written.
        let len = self.params.len - size.passed;
        moves((1 + 2 * 3) * bytes(self.params, len) + bytes(self.copy, len))
    }
}
