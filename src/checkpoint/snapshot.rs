//! The numbers of a checkpoint in host memory: copied from the device in one go, so that they can be written while training goes on.

use std::path::Path;

use super::weights::{self, Weights};
use crate::error::Result;
use crate::model::Model;
use crate::model::plan::{Plan, Slot};
use crate::ops::View;

/// A copy of flat views of a model: parameters, moments, gradients.
pub struct Snapshot {
    pub plan: Plan,
    views: Vec<View>,
    /// The elements of `views`, end to end.
    values: Vec<f32>,
}

impl Snapshot {
    /// Reserves memory for a number of views. As in the CPU's arena, the system provides each page on first touch.
    pub fn new(plan: &Plan, views: usize) -> Snapshot {
        Snapshot { plan: plan.clone(), views: Vec::new(), values: vec![0.0; views * plan.params.len] }
    }

    /// The memory that [`Snapshot::new`] reserves.
    pub fn bytes(plan: &Plan, views: usize) -> usize {
        views * plan.params.len * size_of::<f32>()
    }

    /// Replaces the copy by one of these views as they are now.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// If there are more views than memory was reserved for.
    pub fn take(&mut self, model: &mut Model, views: &[View]) -> Result<()> {
        let len = self.plan.params.len;
        self.views = views.to_vec();
        views.iter().zip(0..).try_for_each(|(&view, i)| model.read_f32(view, &mut self.values[i * len..][..len]))
    }

    /// Writes one or more of the views, each tensor under the prefix of its view and its parameter's name.
    ///
    /// # Errors
    /// Those of [`weights::write`].
    ///
    /// # Panics
    /// If one of the views was not copied.
    pub fn write(&self, path: &Path, views: &[(&str, View)]) -> Result<()> {
        let tensor = |prefix, view, slot: &Slot| {
            (format!("{prefix}{}", slot.param.name), slot.param.shape.clone(), self.tensor(view, slot))
        };
        let tensors = views.iter().flat_map(|&(prefix, view)| self.plan.slots.iter().map(move |slot| tensor(prefix, view, slot)));
        weights::write(path, &tensors.collect::<Vec<_>>())
    }

    fn tensor(&self, flat: View, slot: &Slot) -> &[f32] {
        let at = self.views.iter().position(|&view| view == flat).expect("the view was copied");
        let view = self.plan.view_in(slot.view, flat);
        let start = at * self.plan.params.len + (view.offset - flat.offset) / view.dtype.size();
        &self.values[start..][..view.len]
    }
}

/// Reads the output of [`Snapshot::write`] into a model.
///
/// # Errors
/// A tensor that is missing, has another shape or is not finite.
pub fn read_tensors(path: &Path, model: &mut Model, views: &[(&str, View)]) -> Result<()> {
    let weights = Weights::open(path)?;
    for &(prefix, view) in views {
        for slot in model.plan.slots.clone() {
            let values = weights.f32(&format!("{prefix}{}", slot.param.name), &slot.param.shape)?;
            model.write_f32(model.plan.view_in(slot.view, view), &values)?;
        }
    }
    Ok(())
}
