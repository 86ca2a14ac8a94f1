//! The classification head on the `[CLS]` rows, and the loss: dense, ReLU (DistilBERT) or tanh (BERT's pooler), dropout, linear,
//! cross-entropy.

use super::config::Arch;
use super::encoder::HEAD_SITE;
use super::plan::Plan;
use crate::ops::*;

/// From the last hidden states to the logits and the loss.
pub fn ops(plan: &Plan, smoothing: f32) -> Vec<Op> {
    let dim = plan.config.dim;
    let (h, d) = (&plan.head, &plan.backward);
    let first = GatherCls { x: plan.last_hidden(), y: h.first, dy: d.last_first, dx: d.hidden, add: false, dim };
    // The encoder may have pruned its last layer to these rows already.
    let pruned = plan.spec.last_rows == Rows::Cls;
    let first = (!pruned).then_some(Op::GatherCls(first));
    let dense = plan.linear(h.dense, [h.first, h.pre_act], [d.head, d.last_first], Rows::Cls);
    let classifier = Classifier {
        activation: match plan.config.arch {
            Arch::DistilBert => Activation::Relu,
            Arch::Bert => Activation::Tanh,
        },
        x: h.pre_act,
        y: h.act,
        w: plan.view_in(h.classifier.w, plan.weights),
        b: h.classifier.b,
        logits: h.logits,
        weights: h.weights,
        loss: h.loss,
        dlogits: d.logits,
        dx: d.head,
        dw: plan.grad(h.classifier.w),
        db: plan.grad(h.classifier.b),
        dx_sum: plan.grad(h.dense.b),
        status: plan.status,
        drop: DropSite { p: plan.config.classifier_dropout, site: HEAD_SITE },
        smoothing,
        dim,
        classes: plan.config.classes(),
    };
    first.into_iter().chain([Op::Linear(dense), Op::Classifier(classifier)]).collect()
}
