//! The classification head on the `[CLS]` rows: dense, ReLU (DistilBERT) or tanh (BERT's pooler), dropout, linear; and the loss.

use super::config::Arch;
use super::encoder::HEAD_SITE;
use super::plan::Plan;
use crate::ops::*;

/// From the last hidden states to the logits.
pub fn ops(plan: &Plan) -> Vec<Op> {
    let dim = plan.config.dim;
    let (h, d) = (&plan.head, &plan.backward);
    let rows = Rows::Cls;
    let kind = match plan.config.arch {
        Arch::DistilBert => ActivationKind::Relu,
        Arch::Bert => ActivationKind::Tanh,
    };
    let drop = DropSite { p: plan.config.classifier_dropout, site: HEAD_SITE };
    let first = GatherCls { x: plan.last_hidden(), y: h.first, dy: d.last_first, dx: d.hidden, add: false, dim };
    // The encoder may have pruned its last layer to these rows already.
    let pruned = plan.spec.last_rows == Rows::Cls;
    let first = (!pruned).then_some(Op::GatherCls(first));
    let rest = [
        Op::Linear(plan.linear(h.dense, [h.first, h.pre_act], [d.head, d.last_first], rows)),
        Op::Activation(Activation { kind, x: h.pre_act, y: h.act, dy: d.head, db: plan.grad(h.dense.b), drop, width: dim, rows }),
        Op::Linear(plan.linear(h.classifier, [h.act, h.logits], [d.logits, d.head], rows)),
    ];
    first.into_iter().chain(rest).collect()
}

/// The loss of the logits.
pub fn loss(plan: &Plan, smoothing: f32) -> Op {
    let (h, d) = (&plan.head, &plan.backward);
    Op::CrossEntropy(CrossEntropy {
        logits: h.logits,
        weights: h.weights,
        loss: h.loss,
        dlogits: d.logits,
        db: plan.grad(h.classifier.b),
        status: plan.status,
        smoothing,
        classes: plan.config.classes(),
    })
}
