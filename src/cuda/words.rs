//! The rows of the word table. A batch has few of a vocabulary's words, and the others have no gradient: an update passes over
//! them, and they catch up on all updates that they missed, with the same operations in the same order, before anything reads them.
//! So the numbers are those of updates of the whole table, but most of its bytes are not moved.
//!
//! Rows with a gradient have a tag, that of the current update; the gradient of the others is 0 and need not be in memory.

use std::cell::Cell;

use cudarc::driver::CudaStream;

use super::Cuda;
use super::arena::Memory;
use super::columns::tiles;
use super::kernels::{self, Ptr, RING};
use crate::error::Result;
use crate::ops::{AdamW, Arithmetic, View, Words as Table};

/// Bytes of the factors of an update.
pub const FACTORS: usize = 4 * size_of::<f32>();

/// The state of the table's rows.
pub struct Words {
    table: Table,
    /// A tag for each part of a row that a block of the backward pass handles.
    tiles: usize,
    /// The factors of the last updates, then the updates of each row, then the tags.
    memory: Memory,
    state: Cell<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// The tag of rows with a gradient.
    tag: i32,
    /// Updates so far, and how many of them every row has received.
    updates: i32,
    caught_up: i32,
    /// The rows of the batch have all updates.
    batch: bool,
    /// All rows have a tag.
    tagged: bool,
    /// Of the last update.
    optimizer: Option<Optimizer>,
}

#[derive(Clone, Copy, PartialEq)]
struct Optimizer {
    decayed: usize,
    beta1: f64,
    beta2: f64,
    eps: f64,
}

impl Words {
    /// `None` if rows do not begin at multiples of 16 bytes.
    pub fn new(stream: &CudaStream, table: Table, arithmetic: Arithmetic) -> Result<Option<Words>> {
        if !table.dim.is_multiple_of(4) {
            return Ok(None);
        }
        let tiles = tiles(table.dim, arithmetic.dtype());
        let memory = Memory::zeroed(stream, Words::bytes(&table, tiles))?;
        // In memory that is all zeros every row has a gradient, of zeros.
        let state = State { tagged: true, ..State::default() };
        Ok(Some(Words { table, tiles, memory, state: Cell::new(state) }))
    }

    fn bytes(table: &Table, tiles: usize) -> usize {
        RING * FACTORS + table.rows * (1 + tiles) * size_of::<i32>()
    }

    fn ring(&self) -> Ptr {
        self.memory.address
    }

    fn seen(&self) -> Ptr {
        self.ring() + (RING * FACTORS) as u64
    }

    fn tags(&self) -> Ptr {
        self.seen() + (self.table.rows * size_of::<i32>()) as u64
    }

    fn edit(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.state.get();
        f(&mut state);
        self.state.set(state);
    }

    /// Another batch is staged.
    pub fn stage(&self) {
        self.edit(|state| state.batch = false);
    }
}

/// Memory of the table of a layout.
pub fn bytes(table: &Table, arithmetic: Arithmetic) -> usize {
    Words::bytes(table, tiles(table.dim, arithmetic.dtype()))
}

/// Before a view is read or written other than by ops: if it has rows of the table, all of them catch up.
pub fn before(cuda: &Cuda, view: View) -> Result<()> {
    match cuda.words() {
        Some(words) if words.table.views().into_iter().any(|other| view.overlaps(other)) => settle(cuda, words),
        _ => Ok(()),
    }
}

/// All rows catch up, and those without a gradient get one of zeros.
fn settle(cuda: &Cuda, words: &Words) -> Result<()> {
    let State { updates, caught_up, tagged, .. } = words.state.get();
    if caught_up < updates || !tagged {
        launch(cuda, words, [0; 3], words.table.rows)?;
    }
    words.edit(|state| (state.caught_up, state.batch, state.tagged) = (updates, true, true));
    Ok(())
}

/// The rows of the batch catch up.
pub fn catch_up(cuda: &Cuda) -> Result<()> {
    let Some(words) = cuda.words() else { return Ok(()) };
    let State { updates, caught_up, batch, .. } = words.state.get();
    if caught_up < updates && !batch {
        let inputs = cuda.inputs();
        let of_batch = [inputs.ids, inputs.rows_by_token, inputs.token_starts].map(|view| cuda.at(view));
        launch(cuda, words, of_batch, cuda.distinct)?;
    }
    words.edit(|state| state.batch = true);
    Ok(())
}

fn launch(cuda: &Cuda, words: &Words, [ids, rows_by_token, token_starts]: [Ptr; 3], rows: usize) -> Result<()> {
    let (State { tag, updates, optimizer, .. }, table) = (words.state.get(), &words.table);
    let decays = |decayed: usize| {
        assert!(decayed == 0 || decayed >= table.params.len, "part of the word table has weight decay");
        i32::from(decayed > 0)
    };
    // Before the first update there is nothing to catch up on.
    let Optimizer { decayed, beta1, beta2, eps } =
        optimizer.unwrap_or(Optimizer { decayed: 0, beta1: 0.0, beta2: 0.0, eps: 0.0 });
    let arguments = kernels::CatchUp {
        params: cuda.at(table.params),
        copy: cuda.at(table.copy),
        grads: cuda.at(table.grads),
        m: cuda.at(table.m),
        v: cuda.at(table.v),
        ring: words.ring(),
        tags: words.tags(),
        seen: words.seen(),
        ids,
        rows_by_token,
        token_starts,
        tag,
        tiles: words.tiles as i32,
        dim: table.dim as i32,
        updates,
        decays: decays(decayed),
        beta1: beta1 as f32,
        one_minus_beta1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        eps: eps as f32,
    };
    // NONE is of type F32.
    cuda.launch(cuda.kernels().catch_up.of(table.copy.dtype), [rows, 1, 1], &arguments)
}

/// The tags for the gradients of the batch's words, and the one that they get: the first micro-batch overwrites all gradients.
pub fn begin_gradients(cuda: &Cuda) -> Option<(Ptr, i32)> {
    let words = cuda.words()?;
    words.edit(|state| {
        if !cuda.step.adds() {
            (state.tag, state.tagged) = (state.tag + 1, false);
        }
    });
    Some((words.tags(), words.state.get().tag))
}

/// What kernels need to pass over rows without a gradient. The default passes over none.
#[derive(Clone, Copy, Default)]
pub struct Passed {
    pub tags: Ptr,
    pub seen: Ptr,
    pub tag: i32,
    pub tiles: i32,
    pub rows: i32,
    pub dim: i32,
    pub number: i32,
    /// The place of the update's factors.
    pub factors: Option<Ptr>,
}

/// For the norm of these gradients.
pub fn passed(cuda: &Cuda, grads: View) -> Passed {
    match cuda.words() {
        Some(words) if words.table.grads.offset == grads.offset => {
            let (State { tag, updates, .. }, table) = (words.state.get(), &words.table);
            Passed {
                tags: words.tags(),
                seen: words.seen(),
                tag,
                tiles: words.tiles as i32,
                rows: table.rows as i32,
                dim: table.dim as i32,
                number: updates + 1,
                factors: Some(words.ring() + (updates as usize % RING * FACTORS) as u64),
            }
        }
        _ => Passed::default(),
    }
}

/// For an update.
pub fn update(cuda: &Cuda, op: &AdamW) -> Result<Passed> {
    let optimizer = Optimizer { decayed: op.decayed, beta1: op.beta1, beta2: op.beta2, eps: op.eps };
    if let Some(words) = cuda.words() {
        let State { updates, caught_up, optimizer: last, .. } = words.state.get();
        if updates - caught_up == RING as i32 || last.is_some_and(|last| last != optimizer) {
            settle(cuda, words)?;
        }
    }
    let passed = passed(cuda, op.grads);
    if let Some(words) = cuda.words().filter(|_| passed.rows > 0) {
        words.edit(|state| (state.updates, state.batch, state.optimizer) = (state.updates + 1, false, Some(optimizer)));
    }
    Ok(passed)
}
