//! The transformer encoder and its head: configuration, parameters, memory plan, and the list of ops.

pub mod config;
mod encoder;
mod head;
pub mod infer;
pub mod names;
pub mod plan;

use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::model::infer::Wanted;
use crate::ops::{AdamW, Arithmetic, Backend, Cast, DType, GradNorm, Op, Status, Step, Tuner, Update, View};
use plan::{ModelSpec, Plan};

/// The constants of the loss and of the optimizer; see [`crate::ops`] for their maths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    pub label_smoothing: f32,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Gradients are clipped to this norm; 0 disables clipping.
    pub max_grad_norm: f64,
}

impl Default for Hyperparameters {
    /// The defaults of Hugging Face's TrainingArguments.
    fn default() -> Hyperparameters {
        Hyperparameters { label_smoothing: 0.0, weight_decay: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, max_grad_norm: 1.0 }
    }
}

/// The exponent of the loss scale at the start of training in f16, and the updates after which it grows: those of
/// `torch.amp.GradScaler`.
const FIRST_SCALE: f64 = 16.0;
const GROWTH: u32 = 2000;

/// A classifier laid out on a backend: weights, and the ops of a step.
pub struct Model {
    pub plan: Plan,
    /// The encoder, and the head with the loss.
    ops: Vec<Op>,
    /// Number of ops up to the last hidden states.
    encoder: usize,
    grad_norm: GradNorm,
    adamw: AdamW,
    /// Copies the parameters to the type that products read, if it differs.
    copy: Option<Cast>,
    /// The parameters have changed since the last copy.
    copy_is_old: bool,
    backend: Box<dyn Backend>,
}

impl Model {
    /// Plans the model and allocates its memory on `backend`. The weights must be set before the first step.
    ///
    /// # Errors
    /// There is too little memory, or the allocation fails.
    pub fn new(config: &config::Config, spec: ModelSpec, hyper: Hyperparameters, mut backend: Box<dyn Backend>) -> Result<Model> {
        let plan = Plan::new(config, spec);
        if let Some(available) = backend.available(&plan.layout)? {
            plan.check_fits(available)?;
        }
        backend.reserve(&plan.layout)?;
        backend.zero(plan.params)?;
        if spec.train {
            [plan.grads, plan.m, plan.v].into_iter().try_for_each(|view| backend.zero(view))?;
        }
        let scales = spec.arithmetic == Arithmetic::F16;
        let status = Status { scale: if scales { FIRST_SCALE } else { 0.0 }, ..Status::default() };
        backend.write(plan.status, &status.to_array())?;
        let adamw = AdamW {
            params: plan.params,
            copy: if plan.weights == plan.params { View::NONE } else { plan.weights },
            grads: plan.grads,
            m: plan.m,
            v: plan.v,
            status: plan.status,
            decayed: plan.decayed,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
            max_norm: hyper.max_grad_norm,
            growth: if scales { GROWTH } else { 0 },
        };
        let encoder = encoder::ops(&plan);
        let mut model = Model {
            encoder: encoder.len(),
            ops: [encoder, head::ops(&plan, hyper.label_smoothing)].concat(),
            grad_norm: GradNorm { grads: plan.grads, status: plan.status },
            adamw,
            copy: (plan.weights != plan.params).then_some(Cast { x: plan.params, y: plan.weights }),
            copy_is_old: true,
            plan,
            backend,
        };
        model.set_class_weights(&vec![1.0; config.classes()])?;
        Ok(model)
    }

    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The ops of a step, run forwards and then backwards.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Forward and backward of one micro-batch; its gradients are added to those of the update's previous micro-batches.
    pub fn accumulate(&mut self, batch: &PackedBatch, step: &Step) -> Result<()> {
        self.renew_copy()?;
        let b = self.backend.as_mut();
        b.stage(batch, step)?;
        b.forward_all(&self.ops)?;
        self.ops.iter().rev().try_for_each(|op| b.backward(op))
    }

    /// The choice of the device's algorithms, if it has one.
    pub fn tuner(&mut self) -> Option<&mut dyn Tuner> {
        self.backend.tuner()
    }

    /// Times the algorithms of a batch's products, in this many micro-batches of an update, or in the forward pass alone if there are
    /// none. Changes activations and gradients, and nothing that an update or an evaluation begins with.
    pub fn time_algorithms(&mut self, batch: &PackedBatch, micro_batches: u32) -> Result<()> {
        let status = self.status()?;
        let set_timing = |model: &mut Model, on| model.tuner().expect("the device has algorithms").set_timing(on);
        set_timing(self, true);
        let step = |micro| Step { micro, train: true, loss_normalizer: batch.seqs() as f64, ..Step::INFER };
        let timed = match micro_batches {
            0 => self.infer(batch, Wanted::LOSSES).map(|_| ()),
            _ => (0..micro_batches).try_for_each(|micro| self.accumulate(batch, &step(micro))),
        };
        set_timing(self, false);
        timed?;
        self.set_status(&status)
    }

    /// Updates the parameters from the accumulated gradients.
    pub fn update(&mut self, update: &Update) -> Result<()> {
        self.backend.grad_norm(&self.grad_norm)?;
        self.backend.adamw(&self.adamw, update)
    }

    /// One weight per class in the loss; all 1 by default.
    pub fn set_class_weights(&mut self, weights: &[f64]) -> Result<()> {
        self.write(self.plan.head.weights, weights)
    }

    /// Whether the loss scale is dynamic, so that skipped updates are no failure.
    pub fn scales_loss(&self) -> bool {
        self.adamw.growth > 0
    }

    pub fn status(&mut self) -> Result<Status> {
        Ok(Status::from_slice(&self.read(self.plan.status)?))
    }

    pub fn set_status(&mut self, status: &Status) -> Result<()> {
        self.backend.write(self.plan.status, &status.to_array())
    }

    /// Reads the status block and resets its summed loss.
    pub fn take_status(&mut self) -> Result<Status> {
        let status = self.status()?;
        self.set_status(&Status { loss_sum: 0.0, ..status })?;
        Ok(status)
    }

    /// The elements of a view, of any type.
    pub fn read(&mut self, view: View) -> Result<Vec<f64>> {
        self.backend.read(view)
    }

    /// Sets the first elements of a view of floats.
    pub fn write(&mut self, view: View, values: &[f64]) -> Result<()> {
        self.copy_is_old = true;
        self.backend.write(view, values)
    }

    /// Updates the copy that products read; AdamW itself does so after an update.
    fn renew_copy(&mut self) -> Result<()> {
        if let (Some(cast), true) = (&self.copy, self.copy_is_old) {
            self.backend.cast(cast)?;
            self.copy_is_old = false;
        }
        Ok(())
    }

    /// Fills `out` with the elements of a view of floats, in the type of checkpoints.
    pub fn read_f32(&mut self, view: View, out: &mut [f32]) -> Result<()> {
        match view.dtype {
            DType::F32 => self.backend.download(view, bytemuck::cast_slice_mut(out)),
            _ => {
                let values = self.read(view)?;
                out.iter_mut().zip(values).for_each(|(out, x)| *out = x as f32);
                Ok(())
            }
        }
    }

    /// Sets all elements of a view of floats.
    pub fn write_f32(&mut self, view: View, values: &[f32]) -> Result<()> {
        assert_eq!(view.len, values.len(), "{view:?}");
        self.copy_is_old = true;
        match view.dtype {
            DType::F32 => self.backend.upload(view, bytemuck::cast_slice(values)),
            _ => self.write(view, &values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()),
        }
    }

    /// The parameters, or another flat view of their layout (gradients, moments), in Hugging Face's order.
    pub fn read_all(&mut self, flat: View) -> Result<Vec<Vec<f32>>> {
        let views: Vec<View> = self.plan.slots.iter().map(|slot| self.plan.view_in(slot.view, flat)).collect();
        let read = |view: View| {
            let mut values = vec![0.0; view.len];
            self.read_f32(view, &mut values).map(|()| values)
        };
        views.into_iter().map(read).collect()
    }

    /// Sets all of them; one list per parameter.
    pub fn write_all(&mut self, flat: View, values: &[Vec<f32>]) -> Result<()> {
        let views: Vec<View> = self.plan.slots.iter().map(|slot| self.plan.view_in(slot.view, flat)).collect();
        views.into_iter().zip(values).try_for_each(|(view, values)| self.write_f32(view, values))
    }
}
