//! The encoder as a list of ops. Post-norm, like DistilBERT (Sanh et al., arXiv 1910.01108) and BERT (Devlin et al.,
//! arXiv 1810.04805).

use super::config::{Arch, Config};
use super::plan::{self, Affine, Plan};
use crate::ops::*;

/// The dropout sites: four per layer from 0, then these.
const EMBED_SITE: u32 = u32::MAX;
pub(super) const HEAD_SITE: u32 = u32::MAX - 1;

/// From token ids to the last hidden states (of `[CLS]` alone if the plan prunes).
pub fn ops(plan: &Plan) -> Vec<Op> {
    let Config { dim, norm_eps: eps, dropout: p, pad_token_id: pad, .. } = plan.config;
    let (e, d) = (&plan.embeddings, &plan.backward);
    let embed = Embed {
        word: e.word,
        position: e.position,
        types: e.types,
        gamma: e.norm.w,
        beta: e.norm.b,
        x: e.sum,
        y: e.out,
        stats: e.stats,
        dy: d.hidden,
        dword: plan.grad(e.word),
        dposition: plan.grad(e.position),
        dtypes: plan.grad(e.types),
        dgamma: plan.grad(e.norm.w),
        dbeta: plan.grad(e.norm.b),
        pad,
        drop: DropSite { p, site: EMBED_SITE },
        eps,
        dim,
    };
    let layers = plan.layers.iter().enumerate().flat_map(|(l, layer)| ops_of_layer(plan, layer, l));
    [Op::Embed(embed)].into_iter().chain(layers).collect()
}

fn ops_of_layer(plan: &Plan, layer: &plan::Layer, l: usize) -> Vec<Op> {
    let Config { arch, dim, heads, ffn, norm_eps: eps, dropout, attention_dropout, .. } = plan.config;
    let rows = layer.rows;
    let pruned = rows == Rows::Cls;
    let d = &plan.backward;
    // The gradient passed from layer to layer; that of a pruned layer's output has fewer rows.
    let dh = if pruned { d.last_first } else { d.hidden };
    let site = |place: u32, p: f32| DropSite { p, site: 4 * l as u32 + place };
    // BERT applies dropout to the output of both dense blocks, DistilBERT only to that of the second.
    let attn_out_p = if arch == Arch::Bert { dropout } else { 0.0 };

    // The gradient of a linear's output equals that of the sum it is added to, unless there is dropout in between.
    let branch = |p: f32| if p > 0.0 { d.branch } else { dh };

    // Adds the gradient of a linear's input to the gradient from the residual.
    let adding = |linear: Linear| Linear { add: true, ..linear };
    let norm = |x: View, bias: View, skip: View, weights: Affine, y: View, stats: View, drop: DropSite| AddNorm {
        x,
        skip,
        gamma: weights.w,
        beta: weights.b,
        y,
        stats,
        dy: dh,
        dx: branch(drop.p),
        dgamma: plan.grad(weights.w),
        dbeta: plan.grad(weights.b),
        db: plan.grad(bias),
        drop,
        eps,
        dim,
        rows,
    };

    // Key and value follow the query in each row of `projected`; a pruned layer has only key and value there.
    let (kv_stride, kv_at) = if pruned { (2 * dim, 0) } else { (3 * dim, dim) };
    let columns = |view: View, start: usize| if view.is_none() { view } else { view.from(start) };
    let split = Affine { w: layer.qkv.w.slice(0, dim * dim), b: layer.qkv.b.slice(0, dim) };
    let split_kv = Affine { w: layer.qkv.w.from(dim * dim), b: layer.qkv.b.from(dim) };
    let (t, s) = (Rows::Tokens, Rows::Cls);
    // One product computes query, key and value of every token; in a pruned layer, one computes key and value of every token,
    // and another the query of [CLS] alone. In the backward pass the last op of the list overwrites the gradient of the input,
    // and the others add to it.
    let project = if pruned {
        let dkv = if d.projected.is_none() { View::NONE } else { d.projected.slice(0, layer.projected.len) };
        let first = GatherCls { x: layer.input, y: layer.first, dy: dh, dx: d.hidden, add: true, dim };
        let kv = plan.linear(split_kv, [layer.input, layer.projected], [dkv, d.hidden], t);
        let q = adding(plan.linear(split, [layer.first, layer.query], [d.last_query, dh], s));
        vec![Op::GatherCls(first), Op::Linear(kv), Op::Linear(q)]
    } else {
        vec![Op::Linear(adding(plan.linear(layer.qkv, [layer.input, layer.projected], [d.projected, dh], t)))]
    };
    let attn = Attention {
        q: if pruned { layer.query } else { layer.projected },
        k: layer.projected.from(kv_at),
        v: layer.projected.from(kv_at + dim),
        y: layer.context,
        lse: layer.lse,
        dy: d.context,
        dq: if pruned { d.last_query } else { d.projected },
        dk: columns(d.projected, kv_at),
        dv: columns(d.projected, kv_at + dim),
        db: plan.grad(layer.qkv.b),
        q_stride: if pruned { dim } else { 3 * dim },
        kv_stride,
        heads,
        head_dim: dim / heads,
        drop: site(0, attention_dropout),
        q_rows: rows,
    };
    let output = plan.linear(layer.output, [layer.context, layer.attn_sum], [branch(attn_out_p), d.context], rows);
    let skip = if pruned { layer.first } else { layer.input };
    let attn_norm =
        norm(layer.attn_sum, layer.output.b, skip, layer.attn_norm, layer.attn_out, layer.attn_stats, site(1, attn_out_p));
    let up = adding(plan.linear(layer.up, [layer.attn_out, layer.pre_act], [d.ffn, dh], rows));
    let gelu = Gelu { x: layer.pre_act, y: layer.act, dy: d.ffn, db: plan.grad(layer.up.b), width: ffn, rows };
    let down = plan.linear(layer.down, [layer.act, layer.ffn_sum], [branch(dropout), d.ffn], rows);
    let ffn_norm =
        norm(layer.ffn_sum, layer.down.b, layer.attn_out, layer.ffn_norm, layer.out, layer.ffn_stats, site(2, dropout));
    let rest = [
        Op::Attention(attn),
        Op::Linear(output),
        Op::AddNorm(attn_norm),
        Op::Linear(up),
        Op::Gelu(gelu),
        Op::Linear(down),
        Op::AddNorm(ffn_norm),
    ];
    project.into_iter().chain(rest).collect()
}
