//! The classification head on the [CLS] rows: dense, ReLU (DistilBERT) or tanh (BERT's pooler), dropout, linear,
//! cross-entropy.

use super::config::Arch;
use super::encoder::HEAD_SITE;
use super::plan::Plan;
use crate::error::Result;
use crate::ops::*;

pub struct Head {
    /// None where the encoder has pruned its last layer to these rows already.
    first: Option<FirstRow>,
    dense: Linear,
    act: Act,
    drop: Dropout,
    classifier: Linear,
    xent: Xent,
}

impl Head {
    pub fn new(plan: &Plan, smoothing: f32) -> Head {
        let (dim, classes) = (plan.config.dim, plan.config.classes());
        let (h, d) = (&plan.head, &plan.backward);
        let last = plan.last();
        let pruned = plan.what_for.last_rows == Rows::Seqs;
        let rows = Rows::Seqs;
        let kind = match plan.config.arch {
            Arch::DistilBert => Activation::Relu,
            Arch::Bert => Activation::Tanh,
        };
        Head {
            first: (!pruned).then_some(FirstRow { x: last, y: h.first, dy: d.last_first, dx: d.hidden, add: false, dim }),
            dense: plan.linear(h.dense, [h.first, h.pre_act], [d.head, d.last_first], rows),
            act: Act { kind, x: h.pre_act, y: h.act, dy: d.head, width: dim, rows },
            drop: Dropout {
                x: h.act,
                dy: d.head,
                drop: DropSite { p: plan.config.classifier_dropout, site: HEAD_SITE },
                width: dim,
                rows,
            },
            classifier: plan.linear(h.classifier, [h.act, h.logits], [d.logits, d.head], rows),
            xent: Xent {
                logits: h.logits,
                weights: h.weights,
                loss: h.loss,
                dlogits: d.logits,
                status: plan.status,
                smoothing,
                classes,
            },
        }
    }

    /// To the logits.
    pub fn forward(&self, b: &mut dyn Backend) -> Result<()> {
        if let Some(first) = &self.first {
            b.first_row_fwd(first)?;
        }
        b.linear_fwd(&self.dense)?;
        b.act_fwd(&self.act)?;
        b.dropout_fwd(&self.drop)?;
        b.linear_fwd(&self.classifier)
    }

    /// The loss of each row of the logits.
    pub fn loss(&self, b: &mut dyn Backend) -> Result<()> {
        b.xent_fwd(&self.xent)
    }

    /// From the loss to the gradient of the last hidden state.
    pub fn backward(&self, b: &mut dyn Backend) -> Result<()> {
        b.xent_bwd(&self.xent)?;
        b.linear_bwd(&self.classifier)?;
        b.dropout_bwd(&self.drop)?;
        b.act_bwd(&self.act)?;
        b.linear_bwd(&self.dense)?;
        match &self.first {
            Some(first) => b.first_row_bwd(first),
            None => Ok(()),
        }
    }
}
