//! Packing: the sequences of a batch laid end to end without padding, and the gather lists by which the embedding's backward
//! pass sums rows in a fixed order.

/// Rows of a tile of attention on a GPU.
pub const TILE: usize = 64;

/// `rows` tokens of `seqs` sequences. Sequence `b` is rows `cu_seqlens[b] .. cu_seqlens[b + 1]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    /// Token ids, (rows).
    pub ids: Vec<i32>,
    /// Position of each token in its sequence, (rows).
    pub positions: Vec<i32>,
    /// Token types (segments), (rows).
    pub types: Vec<i32>,
    /// Start of each sequence, and the end of the last, (seqs + 1).
    pub cu_seqlens: Vec<i32>,
    /// Class of each sequence, (seqs); 0 if it has none.
    pub labels: Vec<i32>,
    /// All rows, ordered by token id and then by row, (rows).
    pub rows_by_token: Vec<i32>,
    /// Start of each distinct token in `rows_by_token`, and the end of the last, (distinct tokens + 1).
    pub token_starts: Vec<i32>,
    /// (sequence, first row within it) of every tile of [`TILE`] rows, those of the longest sequences first, so that the longest
    /// work starts first, (tiles, 2).
    pub tiles: Vec<i32>,
    /// Tokens in the longest sequence.
    pub max_seqlen: usize,
}

impl PackedBatch {
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub fn seqs(&self) -> usize {
        self.labels.len()
    }

    /// All arrays, in the order of [`Inputs`](crate::ops::Inputs).
    pub fn arrays(&self) -> [&[i32]; 8] {
        [
            &self.ids,
            &self.positions,
            &self.types,
            &self.cu_seqlens,
            &self.labels,
            &self.tiles,
            &self.rows_by_token,
            &self.token_starts,
        ]
    }

    /// Packs sequences of (ids, token types, label). An empty list of types means all zero.
    ///
    /// # Panics
    /// If a sequence is empty: the tokenizer always adds `[CLS]` and `[SEP]`.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [i32], &'a [i32], u32)>) -> PackedBatch {
        let mut batch = PackedBatch { cu_seqlens: vec![0], ..Default::default() };
        for (ids, types, label) in sequences {
            assert!(!ids.is_empty(), "a sequence without tokens cannot be packed");
            batch.ids.extend(ids);
            batch.positions.extend(0..ids.len() as i32);
            batch.types.extend(types);
            batch.types.resize(batch.ids.len(), 0);
            batch.cu_seqlens.push(batch.ids.len() as i32);
            batch.labels.push(label as i32);
            batch.max_seqlen = batch.max_seqlen.max(ids.len());
        }
        batch.rows_by_token = (0..batch.ids.len() as i32).collect();
        batch.rows_by_token.sort_by_key(|&row| batch.ids[row as usize]);
        let token = |i: usize| batch.ids[batch.rows_by_token[i] as usize];
        batch.token_starts = (0..batch.ids.len()).filter(|&i| i == 0 || token(i) != token(i - 1)).map(|i| i as i32).collect();
        batch.token_starts.push(batch.ids.len() as i32);
        batch.tiles = batch.tiles();
        batch
    }

    fn tiles(&self) -> Vec<i32> {
        let length = |seq: usize| (self.cu_seqlens[seq + 1] - self.cu_seqlens[seq]) as usize;
        let mut order: Vec<usize> = (0..self.seqs()).collect();
        order.sort_by_key(|&seq| std::cmp::Reverse(length(seq)));
        order.into_iter().flat_map(|seq| (0..length(seq)).step_by(TILE).flat_map(move |row| [seq as i32, row as i32])).collect()
    }
}
