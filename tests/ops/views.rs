//! The tensors of an op: all of them, and those that it writes.

use warpfit::ops::*;

/// Destructures a struct into its views and its other fields, so that a new field is not overlooked.
macro_rules! views {
    ($op:ident: $Struct:ident { $($view:ident),* } $($other:ident)*) => {{
        let $Struct { $($view,)* $($other: _),* } = $op;
        vec![$((stringify!($view), $view)),*]
    }};
}

/// Every view of an op under the name of its field.
pub fn views(op: &mut Op) -> Vec<(&'static str, &mut View)> {
    match op {
        Op::Embed(op) => {
            views!(op: Embed { word, position, types, gamma, beta, x, y, stats, dy, dword, dposition, dtypes, dgamma, dbeta } pad drop eps dim)
        }
        Op::Linear(op) => views!(op: Linear { x, w, b, y, dy, dx, dw } add k n rows),
        Op::Attention(op) => {
            views!(op: Attention { q, k, v, y, lse, dy, dq, dk, dv, db } q_stride kv_stride heads head_dim drop q_rows)
        }
        Op::AddNorm(op) => {
            views!(op: AddNorm { x, skip, gamma, beta, y, stats, dy, dx, dgamma, dbeta, db } drop eps dim rows)
        }
        Op::Gelu(op) => views!(op: Gelu { x, y, dy, db } width rows),
        Op::GatherCls(op) => views!(op: GatherCls { x, y, dy, dx } add dim),
        Op::Classifier(op) => {
            views!(op: Classifier { x, y, w, b, logits, weights, loss, dlogits, dx, dw, db, dx_sum, status } activation drop smoothing dim classes)
        }
    }
}

/// The views that a pass of an op writes, except the status block.
pub fn written(op: &Op, pass: Pass) -> Vec<View> {
    match (op, pass) {
        (Op::Embed(op), Pass::Forward) => vec![op.x, op.y, op.stats],
        (Op::Embed(op), Pass::Backward) => vec![op.dy, op.dword, op.dposition, op.dtypes, op.dgamma, op.dbeta],
        (Op::Linear(op), Pass::Forward) => vec![op.y],
        (Op::Linear(op), Pass::Backward) => vec![op.dx, op.dw],
        (Op::Attention(op), Pass::Forward) => vec![op.y, op.lse],
        (Op::Attention(op), Pass::Backward) => vec![op.dq, op.dk, op.dv, op.db],
        (Op::AddNorm(op), Pass::Forward) => vec![op.x, op.y, op.stats],
        (Op::AddNorm(op), Pass::Backward) => vec![op.dy, op.dx, op.dgamma, op.dbeta, op.db],
        (Op::Gelu(op), Pass::Forward) => vec![op.y],
        (Op::Gelu(op), Pass::Backward) => vec![op.dy, op.db],
        (Op::GatherCls(op), Pass::Forward) => vec![op.y],
        (Op::GatherCls(op), Pass::Backward) => vec![op.dx],
        (Op::Classifier(op), Pass::Forward) => vec![op.y, op.logits, op.loss, op.dlogits, op.dx],
        (Op::Classifier(op), Pass::Backward) => vec![op.dw, op.db, op.dx_sum],
    }
}
