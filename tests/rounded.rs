//! A plain computation in bf16 or f16, as a yardstick: each op in f64 on the CPU, with tensors of 16 bits rounded when they are
//! written, and operands of linear layers and attention rounded when they are read. Supports the plans of a GPU, and those of a
//! CPU that only rounds products.

use half::{bf16, f16};
use warpfit::Result;
use warpfit::cpu::Cpu;
use warpfit::data::pack::PackedBatch;
use warpfit::ops::*;

use crate::fixtures::factor;
use crate::ops::cases::rounded;
use crate::ops::views::{views, written};

pub struct Rounded {
    cpu: Cpu<f64>,
    /// The type of rounded operands.
    dtype: DType,
    /// Size of the layout.
    bytes: usize,
    batch: PackedBatch,
    step: Step,
    fetched: [Vec<u8>; 2],
}

impl Rounded {
    pub fn new(dtype: DType) -> Rounded {
        Rounded {
            cpu: Cpu::poisoned(),
            dtype,
            bytes: 0,
            batch: PackedBatch::default(),
            step: Step::INFER,
            fetched: Default::default(),
        }
    }

    fn cpu(&mut self) -> &mut (dyn Backend + 'static) {
        &mut self.cpu
    }

    /// The place of a tensor on the CPU. Each type has a part of the arena to itself, stretched to elements of 8 bytes, so
    /// slices stay slices.
    fn place(&self, view: View) -> View {
        if view.is_none() {
            return view;
        }
        let (part, stretch, dtype) = match view.dtype {
            DType::Bf16 | DType::F16 => (0, 4, DType::F64),
            DType::F32 => (4, 2, DType::F64),
            DType::F64 => (6, 1, DType::F64),
            DType::I32 => (7, 1, DType::I32),
        };
        View { offset: part * self.bytes + stretch * view.offset, len: view.len, dtype }
    }

    fn round(&mut self, view: View) -> Result<()> {
        if view.dtype.size() == 2 { self.round_in_place(view) } else { Ok(()) }
    }

    fn round_in_place(&mut self, view: View) -> Result<()> {
        let place = self.place(view);
        let values = self.cpu().read(place)?.into_iter().map(|x| rounded(x, self.dtype)).collect::<Vec<_>>();
        self.cpu().write(place, &values)
    }

    /// Runs `f` on rounded operands, and restores them.
    fn on_rounded<const N: usize>(&mut self, operands: [View; N], f: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let places = operands.map(|view| self.place(view));
        let before: Vec<_> = places.iter().map(|&place| self.cpu().read(place)).collect::<Result<_>>()?;
        operands.iter().try_for_each(|&view| self.round_in_place(view))?;
        f(self)?;
        places.iter().zip(before).try_for_each(|(&place, before)| self.cpu().write(place, &before))
    }

    /// Attention by its definition, one query after the other; operands of products are rounded.
    fn attn(&mut self, op: &Attention, backward: bool) -> Result<()> {
        let (heads, d, dim) = (op.heads, op.head_dim, op.heads * op.head_dim);
        let scale = 1.0 / (d as f64).sqrt();
        let exact = |rounded: &mut Self, view: View| {
            let place = rounded.place(view);
            rounded.cpu().read(place)
        };
        let dtype = self.dtype;
        let round = |values: Vec<f64>| values.into_iter().map(|x| rounded(x, dtype)).collect::<Vec<_>>();
        let [q, k, v] = [op.q, op.k, op.v].map(|view| exact(self, view).map(round));
        let (q, k, v) = (q?, k?, v?);
        let (mut y, mut lse) = (exact(self, op.y)?, exact(self, op.lse)?);
        let [dy, mut dq, mut dk, mut dv] = match backward {
            true => [exact(self, op.dy)?, exact(self, op.dq)?, vec![0.0; k.len()], vec![0.0; v.len()]],
            false => Default::default(),
        };
        let rounded_dy = round(dy.clone());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let add = |to: &mut [f64], x: &[f64], factor: f64| to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
        for (seq, ends) in self.batch.cu_seqlens.windows(2).enumerate() {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let queries = if op.q_rows == Rows::Tokens { start..end } else { seq..seq + 1 };
            for (row, head) in queries.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
                let column = head * d;
                let [q_at, y_at] = [row * op.q_stride, row * dim].map(|at| at + column..at + column + d);
                let kv_at = |key: usize| key * op.kv_stride + column..key * op.kv_stride + column + d;
                let scores: Vec<f64> = (start..end).map(|key| scale * dot(&q[q_at.clone()], &k[kv_at(key)])).collect();
                let lse = &mut lse[row * heads + head];
                if !backward {
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    *lse = largest + scores.iter().map(|s| (s - largest).exp()).sum::<f64>().ln();
                    y[y_at.clone()].fill(0.0);
                } else {
                    dq[q_at.clone()].fill(0.0);
                }
                let delta = if backward { dot(&dy[y_at.clone()], &y[y_at.clone()]) } else { 0.0 };
                for (key, s) in (start..end).zip(scores) {
                    let dropout_row = (start + row - queries.start) * heads + head;
                    let factor = factor(&self.step, op.drop, dropout_row as u32, (key - start) as u32);
                    let p = (s - *lse).exp();
                    let dropped = rounded(p * factor, dtype);
                    if !backward {
                        add(&mut y[y_at.clone()], &v[kv_at(key)], dropped);
                        continue;
                    }
                    let dp = dot(&rounded_dy[y_at.clone()], &v[kv_at(key)]);
                    let ds = scale * rounded(p * (dp * factor - delta), dtype);
                    add(&mut dq[q_at.clone()], &k[kv_at(key)], ds);
                    add(&mut dk[kv_at(key)], &q[q_at.clone()], ds);
                    add(&mut dv[kv_at(key)], &rounded_dy[y_at.clone()], dropped);
                }
            }
        }
        let written = match backward {
            true => vec![(op.dq, dq, op.q_stride, dim), (op.dk, dk, op.kv_stride, dim), (op.dv, dv, op.kv_stride, dim)],
            false => vec![(op.y, y, dim, dim), (op.lse, lse, heads, heads)],
        };
        // The three gradients may be interleaved.
        for (view, values, stride, width) in written {
            let mut all = exact(self, view)?;
            for (all, values) in all.chunks_mut(stride).zip(values.chunks(stride)) {
                all[..width].copy_from_slice(&values[..width]);
            }
            let place = self.place(view);
            self.cpu().write(place, &all)?;
            self.round(view)?;
        }
        if !backward || op.db.is_none() {
            return Ok(());
        }
        let tokens = (op.kv_stride, Rows::Tokens);
        let parts = [(op.dq, (op.q_stride, op.q_rows)), (op.dk, tokens), (op.dv, tokens)];
        parts
            .into_iter()
            .enumerate()
            .try_for_each(|(i, (d, (stride, rows)))| self.add_bias(op.db.slice(i * dim, dim), d, rows, stride))
    }

    fn placed(&self, op: &Op) -> Op {
        let mut placed = *op;
        views(&mut placed).into_iter().for_each(|(_, view)| *view = self.place(*view));
        placed
    }

    /// The op in f64, with its results rounded.
    fn plain(&mut self, op: &Op, pass: Pass) -> Result<()> {
        let placed = self.placed(op);
        self.cpu().run(&placed, pass)?;
        written(op, pass).into_iter().try_for_each(|view| self.round(view))
    }

    fn linear(&mut self, op: &Linear, pass: Pass) -> Result<()> {
        if pass == Pass::Forward {
            let placed = self.placed(&Op::Linear(*op));
            self.on_rounded([op.x, op.w], |rounded| rounded.cpu.forward(&placed))?;
            return self.round(op.y);
        }
        let placed = self.placed(&Op::Linear(*op));
        // Those of the logits are not rounded where activations are.
        let dy = if op.x.dtype == op.dy.dtype { op.dy } else { op.x };
        self.on_rounded([op.x, op.w, dy], |rounded| rounded.cpu.backward(&placed))?;
        [op.dx, op.dw].into_iter().try_for_each(|view| self.round(view))
    }

    /// Its linear layer.
    fn last_layer(op: &Classifier) -> Linear {
        let Classifier { y, w, b, logits, dlogits, dx, dw, dim, classes, .. } = *op;
        Linear { x: y, w, b, y: logits, dy: dlogits, dx, dw, add: false, k: dim, n: classes, rows: Rows::Cls }
    }

    /// `values` (seqs, dim) times the factors of dropout.
    fn drop_first(&self, op: &Classifier, values: &mut [f64]) {
        for (i, x) in values.iter_mut().take(self.batch.seqs() * op.dim).enumerate() {
            *x *= factor(&self.step, op.drop, self.batch.cu_seqlens[i / op.dim] as u32, (i % op.dim) as u32);
        }
    }

    /// The logits are those of the stored `y`.
    fn classifier(&mut self, op: &Classifier) -> Result<()> {
        let [x, y, logits] = [op.x, op.y, op.logits].map(|view| self.place(view));
        let mut values = self.cpu().read(x)?;
        values.iter_mut().for_each(|x| match op.activation {
            Activation::Relu if *x < 0.0 => *x = 0.0,
            Activation::Relu => (),
            Activation::Tanh => *x = x.tanh(),
        });
        self.drop_first(op, &mut values);
        self.cpu().write(y, &values)?;
        self.round(op.y)?;
        self.linear(&Self::last_layer(op), Pass::Forward)?;
        let [loss, weights, dlogits] = [op.loss, op.weights, op.dlogits].map(|view| self.place(view));
        let (logits, weights) = (self.cpu().read(logits)?, self.cpu().read(weights)?);
        let place = self.place(op.status);
        let scale = Status::from_slice(&self.cpu().read(place)?).loss_scale() / self.step.loss_normalizer;
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (logits, &label) in logits.chunks(op.classes).zip(&self.batch.labels) {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
            let smoothing = f64::from(op.smoothing);
            let target = |c: usize| if c == label as usize { 1.0 - smoothing } else { 0.0 };
            let shares: Vec<f64> =
                weights.iter().enumerate().map(|(c, w)| w * (target(c) + smoothing / op.classes as f64)).collect();
            let of_class = |(x, share): (&f64, &f64)| if *share > 0.0 { share * (lse - x) } else { 0.0 };
            losses.push(logits.iter().zip(&shares).map(of_class).sum());
            let sum: f64 = shares.iter().sum();
            gradients.extend(logits.iter().zip(&shares).map(|(x, share)| ((x - lse).exp() * sum - share) * scale));
        }
        self.cpu().write(loss, &losses)?;
        if self.step.train { self.cpu().write(dlogits, &gradients) } else { Ok(()) }
    }

    /// All gradients but that of the logits, from the stored ones.
    fn classifier_bwd(&mut self, op: &Classifier) -> Result<()> {
        self.linear(&Self::last_layer(op), Pass::Backward)?;
        let [x, dx, loss, status] = [op.x, op.dx, op.loss, op.status].map(|view| self.place(view));
        let (values, mut gradients) = (self.cpu().read(x)?, self.cpu().read(dx)?);
        self.drop_first(op, &mut gradients);
        gradients.iter_mut().zip(values).for_each(|(dx, x)| match op.activation {
            Activation::Relu if x <= 0.0 => *dx = 0.0,
            Activation::Relu => (),
            Activation::Tanh => *dx *= 1.0 - x.tanh().powi(2),
        });
        self.cpu().write(dx, &gradients)?;
        self.round(op.dx)?;
        self.add_bias(op.db, op.dlogits, Rows::Cls, op.classes)?;
        self.add_bias(op.dx_sum, op.dx, Rows::Cls, op.dim)?;
        let losses: f64 = self.cpu().read(loss)?.iter().take(self.batch.seqs()).sum();
        let mut block = self.cpu().read(status)?;
        block[0] += losses / self.step.loss_normalizer;
        self.cpu().write(status, &block)
    }

    /// `db += column sums of d` as stored, whose rows begin `stride` apart.
    fn add_bias(&mut self, db: View, d: View, rows: Rows, stride: usize) -> Result<()> {
        let rows = match rows {
            Rows::Tokens => self.batch.tokens(),
            Rows::Cls => self.batch.seqs(),
        };
        let (place, d) = (self.place(db), self.place(d));
        let d = self.cpu().read(d)?;
        let mut sums = if self.step.adds() { self.cpu().read(place)? } else { vec![0.0; db.len] };
        for row in d.chunks(stride).take(rows) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        self.cpu().write(place, &sums)
    }

    /// The norm is that of the stored sum.
    fn embed(&mut self, op: &Embed) -> Result<()> {
        let placed = self.placed(&Op::Embed(*op));
        self.cpu.forward(&placed)?;
        self.round(op.x)?;
        let Op::Embed(sum) = placed else { unreachable!() };
        self.cpu.forward(&Op::AddNorm(sum.norm()))?;
        self.drop_tokens(op.y, op)?;
        self.round(op.y)
    }

    /// The tables sum the stored gradient of the norm's input.
    fn embed_bwd(&mut self, op: &Embed) -> Result<()> {
        let Op::Embed(placed) = self.placed(&Op::Embed(*op)) else { unreachable!() };
        self.drop_tokens(op.dy, op)?;
        self.cpu.backward(&Op::AddNorm(placed.norm()))?;
        self.round(op.dy)?;
        let dx = self.cpu().read(placed.dy)?;
        let PackedBatch { ids, positions, types, .. } = self.batch.clone();
        for (table, rows) in [(placed.dword, ids), (placed.dposition, positions), (placed.dtypes, types)] {
            if table.is_none() {
                continue;
            }
            let mut sums = if self.step.adds() { self.cpu().read(table)? } else { vec![0.0; table.len] };
            for (dx, row) in dx.chunks(op.dim).zip(rows) {
                if table != placed.dword || op.pad != Some(row as usize) {
                    sums[row as usize * op.dim..][..op.dim].iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
                }
            }
            self.cpu().write(table, &sums)?;
        }
        Ok(())
    }

    /// `x` (tokens, dim) becomes `dropout(x)`.
    fn drop_tokens(&mut self, x: View, op: &Embed) -> Result<()> {
        let (place, step) = (self.place(x), self.step);
        let mut values = self.cpu().read(place)?;
        for (i, x) in values.iter_mut().take(self.batch.tokens() * op.dim).enumerate() {
            *x *= factor(&step, op.drop, (i / op.dim) as u32, (i % op.dim) as u32);
        }
        self.cpu().write(place, &values)
    }

    /// Two ops: the norm is that of the stored sum.
    fn add_norm(&mut self, op: &AddNorm) -> Result<()> {
        let placed = self.placed(&Op::AddNorm(*op));
        self.cpu.forward(&placed)?;
        self.round(op.x)?;
        let Op::AddNorm(sum) = placed else { unreachable!() };
        self.cpu.forward(&Op::AddNorm(AddNorm { skip: View::NONE, drop: DropSite::NONE, ..sum }))?;
        self.round(op.y)
    }
}

impl Backend for Rounded {
    fn name(&self) -> String {
        format!("CPU, rounding to {:?}", self.dtype)
    }

    fn available(&self, _layout: &Layout) -> Result<Option<usize>> {
        Ok(None)
    }

    fn workspace(&self, layout: &Layout) -> usize {
        self.cpu.workspace(layout)
    }

    fn reserve(&mut self, layout: &Layout) -> Result<()> {
        self.bytes = layout.bytes;
        let batch = self.place(layout.batch);
        self.cpu.reserve(&Layout { bytes: 8 * layout.bytes, arithmetic: Arithmetic::F64, batch, ..*layout })
    }

    fn upload(&mut self, dst: View, src: &[u8]) -> Result<()> {
        let place = self.place(dst);
        let values: Vec<f64> = match dst.dtype {
            DType::I32 | DType::F64 => return self.cpu.upload(place, src),
            DType::F32 => bytemuck::cast_slice::<u8, f32>(src).iter().map(|&x| x.into()).collect(),
            DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(src).iter().map(|&x| x.into()).collect(),
            DType::F16 => bytemuck::cast_slice::<u8, f16>(src).iter().map(|&x| x.into()).collect(),
        };
        self.cpu().write(place, &values)
    }

    fn download(&mut self, src: View, dst: &mut [u8]) -> Result<()> {
        let place = self.place(src);
        if src.dtype.size() == place.dtype.size() {
            return self.cpu.download(place, dst);
        }
        let values = self.cpu().read(place.slice(0, dst.len() / src.dtype.size()))?.into_iter();
        match src.dtype {
            DType::F32 => dst.copy_from_slice(bytemuck::cast_slice(&values.map(|x| x as f32).collect::<Vec<_>>())),
            DType::F16 => dst.copy_from_slice(bytemuck::cast_slice(&values.map(|x| f16::from_f32(x as f32)).collect::<Vec<_>>())),
            _ => dst.copy_from_slice(bytemuck::cast_slice(&values.map(|x| bf16::from_f32(x as f32)).collect::<Vec<_>>())),
        }
        Ok(())
    }

    fn fetch(&mut self, slot: usize, views: &[View]) -> Result<()> {
        self.fetched[slot].clear();
        for &view in views {
            let mut bytes = vec![0; view.bytes()];
            self.download(view, &mut bytes)?;
            self.fetched[slot].extend(bytes);
        }
        Ok(())
    }

    fn collect(&mut self, slot: usize) -> Result<Vec<u8>> {
        Ok(self.fetched[slot].clone())
    }

    fn zero(&mut self, dst: View) -> Result<()> {
        self.cpu.zero(self.place(dst))
    }

    fn stage(&mut self, batch: &PackedBatch, step: &Step) -> Result<()> {
        (self.batch, self.step) = (batch.clone(), *step);
        self.cpu.stage(batch, step)
    }

    fn forward(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(op) => self.embed(op),
            Op::Linear(op) => self.linear(op, Pass::Forward),
            Op::Attention(op) => self.attn(op, false),
            Op::AddNorm(op) => self.add_norm(op),
            Op::Classifier(op) => self.classifier(op),
            _ => self.plain(op, Pass::Forward),
        }
    }

    fn backward(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(op) => self.embed_bwd(op),
            Op::Linear(op) => self.linear(op, Pass::Backward),
            Op::Attention(op) => self.attn(op, true),
            Op::AddNorm(op) => {
                self.plain(&Op::AddNorm(AddNorm { db: View::NONE, ..*op }), Pass::Backward)?;
                self.add_bias(op.db, op.dx, op.rows, op.dim)
            }
            Op::Gelu(op) => {
                self.plain(&Op::Gelu(Gelu { db: View::NONE, ..*op }), Pass::Backward)?;
                self.add_bias(op.db, op.dy, op.rows, op.width)
            }
            Op::Classifier(op) => self.classifier_bwd(op),
            _ => self.plain(op, Pass::Backward),
        }
    }

    fn cast(&mut self, op: &Cast) -> Result<()> {
        self.cpu.cast(&Cast { x: self.place(op.x), y: self.place(op.y) })?;
        self.round(op.y)
    }

    fn grad_norm(&mut self, op: &GradNorm) -> Result<()> {
        self.cpu.grad_norm(&GradNorm { grads: self.place(op.grads), status: self.place(op.status) })
    }

    fn adamw(&mut self, op: &AdamW, update: &Update) -> Result<()> {
        let place = |view| self.place(view);
        let placed = AdamW {
            params: place(op.params),
            grads: place(op.grads),
            m: place(op.m),
            v: place(op.v),
            status: place(op.status),
            ..*op
        };
        self.cpu.adamw(&placed, update)?;
        if op.copy.is_none() {
            return Ok(());
        }
        self.cast(&Cast { x: op.params, y: op.copy })
    }
}
