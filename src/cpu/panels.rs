//! Matrix products whose operands are rounded to bf16, with sums in f32, by instructions that multiply pairs of bf16: `avx512` or
//! `amx`. Both operands are packed into blocks of such pairs. The order of summation of each element does not depend on the
//! number of threads.

use std::collections::HashMap;

use gemm_common::Parallelism;

use super::arena::UnsafeSlice;
use super::matrix::{Accumulate, Mat, for_each};
use super::real::Real;

/// Rows of `a`, or columns of `b`, of a block. It has twice as many terms.
pub const SIDE: usize = 16;
/// Terms packed at a time.
const TERMS: usize = 1024;
/// Rows and columns of the result per parallel task: as many as the caches have room for, or fewer, so that no thread is idle.
const TASKS: [(usize, usize); 3] = [(16 * SIDE, 24 * SIDE), (8 * SIDE, 12 * SIDE), (4 * SIDE, 6 * SIDE)];
/// Blocks that a task packs: consecutive ones of each panel, and panels.
const PACK: (usize, usize) = (8, 12);

/// Pairs of terms: the pair (2p, 2p + 1) of row i of `a` is element [i][p], that of column j of `b` is element [p][j]. The first
/// of a pair is in the lower half.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block(pub [[u32; SIDE]; SIDE]);

const EMPTY: Block = Block([[0; SIDE]; SIDE]);

/// The order of a block's elements: by pair as in `b`, or by row as in `a`.
#[derive(Clone, Copy, PartialEq)]
pub enum By {
    Pair,
    Row,
}

/// Rounded and packed operands, small enough for the caches, and the kernels that pack and multiply them.
pub struct Panels<T> {
    a: Vec<Block>,
    b: Vec<Block>,
    /// Constant second operands, by address and size.
    kept: HashMap<(usize, usize, usize), Vec<Block>>,
    kernels: Kernels<T>,
}

/// Fills a block with terms of a matrix, which has this many rows and columns from there on; what it lacks is 0.
///
/// # Safety
/// The machine has the instructions.
type Pack<T> = unsafe fn(&mut Block, Mat<T>, usize, usize, By);

/// Functions that pack and multiply panels. A panel is a row of blocks: consecutive terms of the same rows or columns.
#[derive(Clone, Copy)]
pub struct Kernels<T> {
    pub pack: Pack<T>,
    /// Multiplies panels of `a` with panels of `b`, each of this many terms, and stores the region of the result.
    pub multiply: fn(&[Block], &[Block], usize, Region<T>),
}

/// A part of the result: rows `stride` apart from `at`. Nothing else accesses its elements while it lives.
#[derive(Clone, Copy)]
pub struct Region<'a, T> {
    pub out: UnsafeSlice<'a, T>,
    pub at: usize,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub scale: T,
    /// A `Row` starts at the region's first column.
    pub onto: Accumulate<'a, T>,
}

impl<T: Real> Panels<T> {
    /// For this many rows of `a` and columns of `b` at a time, each a multiple of `SIDE`.
    pub fn new(kernels: Kernels<T>, rows: usize, columns: usize) -> Panels<T> {
        let panels = |columns: usize| vec![EMPTY; columns / SIDE * depth(TERMS)];
        Panels { a: panels(rows), b: panels(columns), kept: HashMap::new(), kernels }
    }

    /// To be called before a constant operand changes.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// Like [`Multiplier::product`](super::product::Multiplier::product), with the elements of `a` and `b` rounded to bf16, to
    /// nearest, ties to even. If `b` is constant, it stays packed.
    ///
    /// # Safety
    /// The same.
    pub unsafe fn product(
        &mut self,
        (out, at, stride): (UnsafeSlice<T>, usize, usize),
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        onto: Accumulate<T>,
        parallelism: Parallelism,
    ) {
        let Kernels { pack, multiply } = self.kernels;
        let [a_rows, b_columns] = [&self.a, &self.b].map(|panels| panels.len() / depth(TERMS) * SIDE);
        let panels = n.div_ceil(SIDE);
        let kept = b.constant.then(|| {
            let pack_all = || {
                let mut blocks = vec![EMPTY; panels * depth(k)];
                for k0 in (0..k).step_by(TERMS) {
                    let to = &mut blocks[panels * depth(k0)..];
                    fill(to, pack, b.from(k0, 0), (TERMS.min(k - k0), n), By::Pair, parallelism);
                }
                blocks
            };
            &*self.kept.entry((b.data.as_ptr().addr(), n, k)).or_insert_with(pack_all)
        });
        for k0 in (0..k).step_by(TERMS) {
            let terms = TERMS.min(k - k0);
            let depth = depth(terms);
            let onto = if k0 == 0 { onto } else { Accumulate::Itself };
            for n0 in (0..n).step_by(b_columns) {
                let columns = b_columns.min(n - n0);
                let b = match kept {
                    Some(blocks) => &blocks[panels * self::depth(k0) + n0 / SIDE * depth..],
                    None => fill(&mut self.b, pack, b.from(k0, n0), (terms, columns), By::Pair, parallelism),
                };
                for m0 in (0..m).step_by(a_rows) {
                    let rows = a_rows.min(m - m0);
                    let a = fill(&mut self.a, pack, a.from(m0, k0).t(), (terms, rows), By::Row, parallelism);
                    let (high, wide) = task(rows, columns, parallelism);
                    let down = rows.div_ceil(high);
                    for_each(parallelism, down * columns.div_ceil(wide), |task| {
                        let (i, j) = (task % down * high, task / down * wide);
                        let onto = match onto {
                            Accumulate::Row(row) => Accumulate::Row(&row[n0 + j..]),
                            other => other,
                        };
                        let at = at + (m0 + i) * stride + n0 + j;
                        let (rows, columns) = (high.min(rows - i), wide.min(columns - j));
                        let region = Region { out, at, stride, rows, columns, scale, onto };
                        multiply(&a[i / SIDE * depth..], &b[j / SIDE * depth..], terms, region);
                    });
                }
            }
        }
    }
}

/// Rows and columns per task of a product. The order of summation does not depend on them.
fn task(rows: usize, columns: usize, parallelism: Parallelism) -> (usize, usize) {
    let enough = match parallelism {
        Parallelism::None => 1,
        _ => 4 * rayon::current_num_threads(),
    };
    let suits = |&(high, wide): &(usize, usize)| rows.div_ceil(high) * columns.div_ceil(wide) >= enough;
    TASKS.into_iter().find(suits).unwrap_or(TASKS[TASKS.len() - 1])
}

/// Blocks in a panel of this many terms.
pub fn depth(terms: usize) -> usize {
    terms.div_ceil(2 * SIDE)
}

/// Packs the first `terms` rows and `columns` columns of `x` into consecutive panels.
fn fill<'a, T: Real>(
    panels: &'a mut [Block],
    pack: Pack<T>,
    x: Mat<T>,
    (terms, columns): (usize, usize),
    by: By,
    parallelism: Parallelism,
) -> &'a [Block] {
    let (depth, count) = (depth(terms), columns.div_ceil(SIDE));
    let panels = &mut panels[..count * depth];
    let all = UnsafeSlice::new(panels);
    let tasks = depth.div_ceil(PACK.0);
    for_each(parallelism, tasks * count.div_ceil(PACK.1), |task| {
        let (k, panel) = (task % tasks * PACK.0, task / tasks * PACK.1);
        let (down, across) = (k..depth.min(k + PACK.0), panel..count.min(panel + PACK.1));
        let fill = |k: usize, panel: usize| {
            let (term, column) = (2 * SIDE * k, SIDE * panel);
            // SAFETY: the block is this task's alone, and the machine has the instructions of its kernels.
            unsafe {
                let block = &mut all.row(panel * depth + k, 1)[0];
                pack(block, x.from(term, column), terms - term, columns - column, by);
            }
        };
        // In the order of the matrix in memory.
        if x.row == 1 {
            across.for_each(|panel| down.clone().for_each(|k| fill(k, panel)));
        } else {
            down.for_each(|k| across.clone().for_each(|panel| fill(k, panel)));
        }
    });
    panels
}
