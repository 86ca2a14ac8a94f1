#!/usr/bin/env python3
"""Shows that the tests can fail: breaks the engine or the server in one place at a time, in a copy of the sources, and runs
the test that must notice; if it does not, all tests of the ops, the model and the server. A break of a kernel is compiled
into the virtual GPU only, for the same test binary. Exits 1 if a break goes unnoticed, or is not caught by the test named.

    tests/mutants.py [WORD...]     only the breaks whose row has one of the words
    tests/mutants.py --table       only checks that each break has its place in the sources
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# File, text (which occurs once), replacement, and a test that must fail; with "thread: ", under ThreadSanitizer; with "amx: ",
# or other instructions, by these.
MUTANTS = [
    ("src/cpu/embed.rs", "rows.iter().for_each(|&r| add_to(out, row(dy, r, dim)))", "rows.iter().skip(1).for_each(|&r| add_to(out, row(dy, r, dim)))", "ops::gradients"),
    ("src/cpu/embed.rs", "dropout::apply(cpu, op.drop, op.dy, Rows::Tokens, dim);", "", "ops::gradients"),
    ("src/cpu/embed.rs", "if Some(token) != op.pad {", "if true {", "ops::gradients"),
    ("src/cpu/embed.rs", ".take(cpu.max_seqlen)", ".take(cpu.max_seqlen - 1)", "ops::gradients"),
    ("src/cpu/embed.rs", "if types[r] == t as i32", "if types[r] <= t as i32", "ops::gradients"),
    ("src/cpu/embed.rs", "if !op.add {", "if op.add {", "ops::gradients"),
    ("src/cpu/linear.rs", "onto(op.add)", "onto(false)", "ops::gradients"),
    ("src/cpu/linear.rs", "onto(cpu.step.adds())", "onto(false)", "model::accumulation_equals_one_batch"),
    ("src/cpu/linear.rs", "onto(cpu.step.adds())", "onto(true)", "model::the_first_micro_batch_overwrites_every_gradient"),
    ("src/cpu/mod.rs", "if !self.step.adds() {", "if false {", "ops::cpu::the_first_micro_batch_overwrites"),
    ("src/cpu/mod.rs", "add_columns([db], rows, ", "add_columns([db], rows - 1, ", "ops::gradients_of_biases"),
    ("src/cpu/mod.rs", "layout.arithmetic == Arithmetic::Bf16Products", "false", "device::the_cpu_rounds_products_to_bf16_and_has_no_tf32"),
    ("src/cpu/panels.rs", "x.from(term, column)", "x.from(term, 0)", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/avx512.rs", "(&a[i / SIDE * depth..][..depth], i % SIDE)", "(&a[i / SIDE * depth..][..depth], 0)", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/avx512.rs", "row[j..][..columns]", "row[..columns]", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/avx512.rs", "if order == by { pairs }", "if true { pairs }", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/amx.rs", "\"tileloadd tmm5, [{a1} + {row}]\"", "\"tileloadd tmm5, [{a0} + {row}]\"", "amx: ops::bf16_on_the_cpu"),
    ("src/cpu/panels.rs", "&blocks[panels * self::depth(k0) + n0 / SIDE * depth..]", "&blocks[n0 / SIDE * depth..]", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/panels.rs", "self.kept.clear();", "", "avx512bf16: ops::weights_that_change"),
    ("src/cpu/dots.rs", "(i + r).min(m - 1) * self.a.row", "i * self.a.row", "ops::f32_on_the_cpu"),
    ("src/cpu/dots.rs", "if whole < terms {", "if false {", "ops::f32_on_the_cpu"),
    ("src/cpu/amx.rs", "            \"add {b1}, 1024\",\n", "", "amx: ops::bf16_on_the_cpu"),
    ("src/cpu/avx512.rs", "transmute(_mm512_cvtne2ps_pbh(high, low))", "transmute([low, high].map(|x| transmute::<__m512, [[u16; 2]; 16]>(x).map(|x| x[1])))", "avx512bf16: model::golden_bf16_training"),
    ("src/cpu/linear.rs", "*dy *= cdf + x * density;", "*dy *= cdf;", "ops::gradients"),
    ("src/cpu/classifier.rs", "if x <= T::zero() {", "if x <= T::one() {", "ops::gradients"),
    ("src/cpu/classifier.rs", "if x < T::zero() { T::zero() } else { x }", "if x > T::zero() { x } else { T::zero() }", "ops::nan_propagates_only_where_it_must"),
    ("src/cpu/norm.rs", "- g_mean - (z - mean) * rstd * gn_mean", "- g_mean", "ops::gradients"),
    ("src/cpu/norm.rs", "*dgamma += dy * ((z - mean) * rstd);", "*dgamma += dy * z;", "ops::gradients"),
    ("src/cpu/norm.rs", "token_row(task * grain + r)", "token_row(task * grain)", "ops::gradients"),
    ("src/cpu/attention.rs", "*ds = prob * (*ds * factor - delta);", "*ds = prob * (*ds - delta);", "model::numerical_gradients"),
    ("src/cpu/attention.rs", "*p = prob * factor;", "*p = prob;", "ops::gradients"),
    ("src/cpu/attention.rs", "(ds, q), scale, onto", "(ds, q), T::one(), onto", "ops::gradients"),
    ("src/cpu/attention.rs", "(p, dy_block), T::one(), onto", "(p, dy_block), T::one(), Accumulate::Nothing", "ops::gradients"),
    ("src/cpu/attention.rs", "dropout + ((row - from) * heads) as u32", "dropout + (row - from) as u32", "ops::cpu::dropout_masks_match_the_definition"),
    ("src/cpu/attention.rs", "*y /= total", "*y *= T::one()", "ops::gradients"),
    ("src/cpu/attention.rs", "lse[0] = largest + total.ln();", "lse[0] = largest;", "ops::gradients"),
    ("src/cpu/dropout.rs", "(start + l) as u32 * step", "(start + l) as u32", "ops::cpu::dropout_masks_match_the_definition"),
    ("src/cpu/avx512.rs", "numbers(2 * p + 1)", "numbers(2 * p)", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/avx512.rs", "_mm512_mul_ps(scale, sums)", "sums", "avx512bf16: ops::bf16_on_the_cpu"),
    ("src/cpu/dropout.rs", "factors[8 * l + 2 * w + half] =", "factors[8 * l + 2 * w + 1 - half] =", "ops::cpu::dropout_masks_match_the_definition"),
    ("src/cpu/mod.rs", "Rows::Cls => starts[r] as u32,", "Rows::Cls => r as u32,", "model::pruned_equals_unpruned"),
    ("src/random.rs", "[micro], [0]];", "[0], [0]];", "ops::dropout_is_random"),
    ("src/cpu/classifier.rs", "(p * shares - share)", "(p - share)", "ops::gradients"),
    ("src/cpu/classifier.rs", ".sum::<f64>() / cpu.step.loss_normalizer;", ".sum::<f64>();", "ops::cpu::the_loss_is_counted_in_training_only"),
    ("src/cpu/classifier.rs", "dropout::apply(cpu, op.drop, op.dx, Rows::Cls, dim);", "", "ops::gradients"),
    ("src/cpu/classifier.rs", "*dx *= T::one() - y * y;", "*dx *= T::one() - y;", "ops::gradients"),
    ("src/cpu/classifier.rs", "cpu.add_bias(op.dx_sum, op.dx, seqs, dim);", "", "ops::gradients_of_biases"),
    ("src/cpu/adamw.rs", "partials.iter().sum", "partials.iter().skip(1).sum", "ops::cpu::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("src/cpu/adamw.rs", "grads.par_chunks(CHUNK)", "grads.par_chunks(grads.len().div_ceil(rayon::current_num_threads()))", "ops::same_bits_on_any_number_of_threads"),
    ("src/cpu/adamw.rs", "one_minus_beta2 * grad * grad", "one_minus_beta2 * g * g", "ops::cpu::adamw_matches_the_definition"),
    ("src/cpu/adamw.rs", "(op.decayed..len, 0.0)", "(op.decayed..len, op.weight_decay)", "ops::cpu::adamw_matches_the_definition"),
    ("src/cpu/adamw.rs", "&& s.scale >= 0.0;", ";", "ops::cpu::adamw_gives_up_below_a_loss_scale_of_1"),
    ("src/cpu/adamw.rs", "T::of(clip / loss_scale)", "T::of(clip)", "ops::cpu::adamw_matches_the_definition"),
    ("src/cpu/adamw.rs", "number as f64 - s.skipped", "number as f64", "ops::cpu::adamw_matches_the_definition"),
    ("src/cpu/classifier.rs", "/ cpu.step.loss_normalizer * scale)", "/ cpu.step.loss_normalizer)", "ops::cpu::the_loss_scale_multiplies_gradients"),
    ("src/cpu/adamw.rs", "loss.is_finite() && s.grad_norm.is_finite()", "loss.is_finite()", "model::non_finite_updates_are_skipped"),
    ("src/model/encoder.rs", "dy: d.context,", "dy: d.projected.slice(0, d.context.len),", "model::tensors_of_an_op_are_disjoint"),
    ("src/model/plan.rs", "out: if train || pruned {", "out: if pruned {", "model::activations_are_written_once"),
    ("src/serve/queue.rs", "Semaphore::new(places)", "Semaphore::new(places + 1)", "serve::a_full_queue_refuses_at_once_and_recovers"),
    ("src/serve/queue.rs", "        Some(batch).filter(|batch| !batch.is_empty())", "        batch.reverse();\n        Some(batch).filter(|batch| !batch.is_empty())", "serve::waiting_requests_form_one_batch_in_order"),
    ("src/serve/queue.rs", "answer, .. } in batch {", "answer, .. } in batch.into_iter().rev() {", "serve::waiting_requests_form_one_batch_in_order"),
    ("src/serve/queue.rs", "if entry.answer.is_closed() {", "if false {", "serve::disconnected_clients_are_not_computed"),
    ("src/serve/queue.rs", "tokens + entry.rows.ids.len() > self.max_tokens", "tokens > self.max_tokens", "serve::waiting_requests_form_one_batch_in_order"),
    ("src/serve/queue.rs", "outputs.resize(rows.rows(), entry.output);", "outputs.resize(rows.rows(), batch[0].output);", "serve::waiting_requests_form_one_batch_in_order"),
    ("src/serve/queue.rs", "Err(_) if batch.len() > 1 =>", "Err(_) if batch.is_empty() =>", "serve::a_text_that_breaks_the_model_fails_alone"),
    ("src/serve/queue.rs", "self.well.store(computed.is_ok(), ", "self.well.store(true, ", "serve::responses_of_cuda_match_the_cpu"),
    ("src/serve/queue.rs", "self.metrics.queue_size.dec();", "", "serve::bad_requests_get_their_status_and_the_server_survives"),
    ("src/infer/mod.rs", "Rows::Cls => row..row + 1,", "Rows::Cls => 0..1,", "serve::scores_and_vectors_for_many_clients_at_once"),
    ("src/infer/mod.rs", "logits[row * classes..]", "logits[..]", "serve::the_scores_of_predict"),
    ("src/serve/api/mod.rs", "    let router = router.route_layer(middleware::from_fn_with_state(service.clone(), check_key));\n", "", "serve::keys_and_origins"),
    ("src/serve/api/request.rs", "if declared > limit as u64 {", "if declared > u64::MAX - 1 {", "serve::bodies_that_are_too_large_are_refused"),
    ("src/serve/api/request.rs", "if size > limit {", "if size > limit + 1 {", "serve::bodies_that_are_too_large_are_refused"),
    ("src/serve/api/request.rs", "n if n > most =>", "n if n > most + 1 =>", "serve::bad_requests_get_their_status_and_the_server_survives"),
    ("src/serve/api/compute.rs", "cut && !truncate", "cut && false", "serve::bad_requests_get_their_status_and_the_server_survives"),
    ("src/serve/api/request.rs", "tokio::time::timeout(service.patience, read)", "tokio::time::timeout(60 * service.patience, read)", "serve::slow_clients_delay_no_others_and_are_disconnected"),
    ("src/serve/api/tei.rs", "(Some(true), None) => Function::None,", "", "serve::the_scores_of_predict"),
    ("src/serve/api/tei.rs", "normalize: request.normalize.unwrap_or(true)", "normalize: true", "serve::the_vectors_of_embed"),
    ("src/serve/api/compute.rs", "metrics.requests.with_label_values(&[method]).inc();", "", "serve::bad_requests_get_their_status_and_the_server_survives"),
    ("src/serve/api/mod.rs", "service.metrics.failures.with_label_values(&[error_type]).inc();", "", "serve::bad_requests_get_their_status_and_the_server_survives"),
    ("src/serve/api/tei.rs", "label.score = sigmoid(label.score)", "label.score = label.score.tanh()", "serve::the_protocols_of_hugging_face_and_sagemaker"),
    ("src/serve/api/request.rs", "if object.contains_key(&key) {", "if false {", "serve::options_are_heard_or_refused_by_name"),
    ("src/data/tokenize.rs", ".unwrap_or(&row);", ".filter(|_| false).unwrap_or(&row);", "serve::the_protocol_of_openai"),
    ("src/serve/api/openai.rs", "starts_with(\"/v1/\")", "starts_with(\"/v2/\")", "serve::keys_and_origins"),
    ("src/serve/api/compute.rs", "texts: rows.rows(),", "texts: rows.rows() + 1,", "serve::every_request_has_its_line_in_the_log"),
    ("src/serve/mod.rs", ", value_delimiter = ','", "", "serve::flags_are_taken_from_the_environment"),
    ("src/serve/mod.rs", "open.shutdown().await;", "", "serve::requests_before_the_signal_are_answered"),
    ("src/infer/predictions.rs", "logits[b].total_cmp(&logits[a])", "logits[a].total_cmp(&logits[b])", "serve::waiting_requests_form_one_batch_in_order"),
    ("kernels/gpu.cuh", "for (int step = 16; step > 0; step /= 2) x += ", "for (int step = 8; step > 0; step /= 2) x += ", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "if (lane() == 0) parts[warp()] = x;\n    __syncthreads();", "if (lane() == 0) parts[warp()] = x;", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "const int at = start + i * step, r = at < end ? row(at) : -1;", "const int at = start + i * step, r = at <= end ? row(at) : -1;", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "unsigned(b >> 32) ^ c.y ^ k0", "unsigned(b >> 32) ^ c.y", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/gpu.cuh", "return warp_sum(lane() < THREADS / 32 ? parts[lane()] : T(0));", "return warp_sum(parts[lane()]);", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "k1 += 0xBB67AE85u;", "", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/gpu.cuh", "draw < drop.threshold ?", "draw >= drop.threshold ?", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/gpu.cuh", "N == 4 && column % 8 != 0", "false", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/gpu.cuh", "make_uint4(block, row, drop.site, 0)", "make_uint4(row, block, drop.site, 0)", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/gpu.cuh", "if (i < count) p[i] = ", "if (i <= count) p[i] = ", "ops::f32_on_cuda"),
    ("kernels/mma.cuh", "vgpu::load_fragments<true>(r, p, {file, line});", "vgpu::load_fragments<false>(r, p, {file, line});", "ops::bf16_on_cuda"),
    ("kernels/embed.cu", "store(parts[warp()] + lane() * P, sum);\n    __syncthreads();\n    float* const sums", "store(parts[warp()] + lane() * P, sum);\n    float* const sums", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "a.types[row] == type ? row : -1", "row", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "a.adds[i] ? out[column] + total : total", "total", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "a.adds[i] ? out[column] + total : total", "out[column] + total", "ops::cuda::the_first_micro_batch_overwrites"),
    ("kernels/columns.cu", "chunk < a.chunks[i]; chunk += WARPS", "chunk < a.chunks[i] - 1; chunk += WARPS", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "min(int(blockIdx.y + 1) * a.chunk, a.rows)", "int(blockIdx.y + 1) * a.chunk", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "blockIdx.y * a.chunk + warp(), end, WARPS", "blockIdx.y * a.chunk + warp(), a.rows, WARPS", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "(size_t(type) * gridDim.y + blockIdx.y) * a.dim", "blockIdx.y * a.dim", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "if (block >= a.ends[i + step - 1]) i += step;", "if (block > a.ends[i + step - 1]) i += step;", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "chunk < a.chunks[i]; chunk += WARPS", "chunk < a.chunks[i]; chunk += a.chunks[i]", "ops::f32_on_cuda"),
    ("src/train/state.rs", "\"validation_data\": data.validation.as_ref().map(|data| hash(data)),", "", "train::a_resumed_run_equals_an_uninterrupted_run"),
    ("src/model/infer.rs", "let slot = number % 2;", "let slot = 0;", "model::many_batches_are_inferred_as_one_by_one"),
    ("src/model/infer.rs", "            self.submit(&batch, wanted, slot)?;\n            if let Some((batch, wanted, slot)) = last.replace((batch, wanted, slot)) {\n                each(&batch, self.collect(&batch, wanted, slot)?)?;\n            }", "            if let Some((batch, wanted, slot)) = last.take() {\n                each(&batch, self.collect(&batch, wanted, slot)?)?;\n            }\n            self.submit(&batch, wanted, slot)?;\n            last = Some((batch, wanted, slot));", "model::a_gpu_has_work_while_results_are_read"),
    ("src/cuda/arena.rs", "        self.arrived.synchronize().map_err(failed(\"results\"))?;\n", "", "model::many_batches_are_inferred_as_one_by_one"),
    ("src/cuda/columns.rs", "Pending { bytes, ..Pending::NONE }", "Pending::NONE", "model::sums_that_wait_change_no_bit"),
    ("src/cuda/columns.rs", "self.count < MOST_OUTS && !self.outs.outs[..self.count].contains(&out)", "self.count < MOST_OUTS", "model::sums_that_wait_change_no_bit"),
    ("src/cuda/mod.rs", "        columns::flush(self)?;\n        adamw::grad_norm", "        adamw::grad_norm", "model::golden_adamw_on_cuda"),
    ("kernels/adamw.cu", "if (at < a.table && a.tags[at / a.dim * a.tiles] != a.tag) continue;", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "is_last = atomicInc(a.arrived, gridDim.x - 1) == gridDim.x - 1;", "is_last = blockIdx.x == gridDim.x - 1;", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("kernels/adamw.cu", "atomicInc(a.arrived, gridDim.x - 1)", "atomicInc(a.arrived, gridDim.x)", "model::golden_adamw_on_cuda"),
    ("kernels/adamw.cu", "    __syncwarp();\n    if (lane() != 0) return;", "    if (lane() != 0) return;", "thread: ops::every_kernel_has_a_case"),
    ("kernels/adamw.cu", "a.factors->decay = a.decay;", "a.factors->decay = 1.0f;", "ops::cuda::adamw_matches_the_definition"),
    ("kernels/adamw.cu", "if (is_word && (row >= a.rows || a.tags[row * a.tiles] != a.tag)) return;", "if (is_word && row >= a.rows) return;", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "if (is_word && lane() == 0) a.seen[row] = a.number;", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "a.eps > 0.0f && m == 0.0f && v == 0.0f;", "a.eps > 0.0f && m == 0.0f;", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "            p = __fmul_rn(p, decay);\n", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "for (int update = seen; update < a.updates; update++)", "for (int update = seen + 1; update < a.updates; update++)", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "a.ring[update % RING]", "a.ring[a.updates - 1]", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "        if (factors.grad < 0.0f) continue;\n", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "if (a.copy) a.copy[at] = from_float<T>(p);", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "if (!has_gradient) a.grads[at] = 0.0f;", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "if (threadIdx.x == 0) a.seen[row] = a.updates;", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "if (!has_gradient && threadIdx.x < a.tiles) a.tags[row * a.tiles + threadIdx.x] = a.tag;", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/adamw.cu", "threadIdx.x < a.tiles) a.tags", "threadIdx.x < 1) a.tags", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/mod.rs", "        overlap::before(self, op)?;\n", "", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("src/cuda/mod.rs", "        overlap::finish(self)?;\n        columns::flush(self)?;\n        words::before", "        columns::flush(self)?;\n        words::before", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("src/cuda/overlap.rs", "begins.record(cuda.stream()).and_then(|()| stream.wait(begins))", "begins.record(cuda.stream())", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("src/cuda/overlap.rs", "Op::Embed(op) => [op.position, op.types],\n        _ =>", "_ =>", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("src/cuda/overlap.rs", "pending.set(Some([op.params, op.copy].map(part)));", "pending.set(Some([op.params, op.params].map(part)));", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("kernels/adamw.cu", "if (!is_word && at >= a.gap) at += a.after_gap - a.gap;", "if (!is_word && at > a.gap) at += a.after_gap - a.gap;", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("kernels/embed.cu", "size_t(token) * gridDim.y + blockIdx.y", "size_t(token) * gridDim.y", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/embed.cu", "    if (tag && threadIdx.x == 0) *tag = a.tag;\n", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("kernels/embed.cu", "const bool adds = !tag || *tag == a.tag;", "const bool adds = !tag;", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "(state.tag, state.tagged) = (state.tag + 1, false);", "state.tagged = false;", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "if updates - caught_up == RING as i32 || ", "if ", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "if caught_up < updates && !batch {", "if caught_up < updates && !batch && cuda.step.train {", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "self.edit(|state| state.batch = false);", "", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "if caught_up < updates || !tagged {", "if caught_up < updates {", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/words.rs", "if caught_up < updates && !batch {", "if !batch {", "updates::rows_without_a_gradient_are_not_touched"),
    ("src/cuda/words.rs", "words.table.views().into_iter().any(|other| view.overlaps(other))", "true", "updates::rows_without_a_gradient_are_not_touched"),
    ("src/cuda/mod.rs", "        self.settle(dst)?;\n        // SAFETY", "        columns::flush(self)?;\n        // SAFETY", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/mod.rs", "        self.settle(src)?;\n", "        columns::flush(self)?;\n", "updates::updates_of_few_rows_have_the_bits_of_updates_of_all"),
    ("src/cuda/mod.rs", "(self.tokens, ops.len())", "(self.tokens, 0)", "model::passes_of_one_text_are_recorded_and_replayed"),
    ("src/cuda/mod.rs", "(self.tokens, ops.len())", "(0, ops.len())", "model::passes_of_one_text_are_recorded_and_replayed"),
    ("src/cuda/mod.rs", "if self.seqs > 1 || self.arena().layout.words.is_some() {", "if true {", "model::passes_of_one_text_are_recorded_and_replayed"),
    ("src/cuda/embed.rs", "let chunks = cuda.tokens.div_ceil(chunk);", "let chunks = (cuda.tokens / chunk).max(1);", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "[tiles, chunks, types]", "[tiles, 1, types]", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "(t * chunks * op.dim", "(t * op.dim", "ops::f32_on_cuda"),
    ("src/cuda/columns.rs", "(i * chunks * width * size_of::<f32>()) as u64", "(i * width * size_of::<f32>()) as u64", "ops::f32_on_cuda"),
    ("src/cuda/columns.rs", "width.div_ceil(32 * 16 / dtype.size())", "width / (32 * 16 / dtype.size())", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "load<WHOLE>(x, type + c, a.dim - c);\n        add(sum, x);", "load<WHOLE>(x, type + c, a.dim - c);", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "drop_columns(y, a.drop, c, row);", "", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/embed.cu", "    if (token == a.pad) return;\n", "", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "const int warps = min(end - start, WARPS);", "const int warps = min(end - start, WARPS) - 1;", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "store(parts[warp()] + lane() * P, sum);\n    __syncthreads();\n    // The other", "store(parts[warp()] + lane() * P, sum);\n    // The other", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "out = (adds ? out : 0.0f) + total;", "out = total;", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "row < a.cu_seqlens[seq + 1]", "row <= a.cu_seqlens[seq + 1]", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "            add(x, dy);\n", "", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "const int warps = min(end - start, WARPS);", "const int warps = min(end - start, WARPS - 1);", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "if (position >= a.max_seqlen || ", "if (position + 1 >= a.max_seqlen || ", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "        cuda.fill(op.dx.slice(0, cuda.tokens * op.dim))?;\n", "", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "op.pad.map_or(-1, |pad| pad as i32)", "-1", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "if !op.add {", "if op.add {", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "pad: op.pad.map_or(-1, |pad| pad as i32)", "pad: 0", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "positions: cuda.at(inputs.positions),", "positions: cuda.at(inputs.types),", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "dx[i] *= cdf + x[i] * density;", "dx[i] *= cdf;", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "return x < 0.0f ? 0.0f : x;", "return x > 0.0f ? x : 0.0f;", "ops::cuda::nan_and_infinity_match_f64"),
    ("kernels/linear.cu", "start + BLOCK <= len ?", "start < len ?", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "if (s.add) sum +=", "if (false) sum +=", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "p < s.k; p += 32", "p < s.k - 1; p += 32", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "static_cast<const Out*>(s.bias)[i]", "static_cast<const Out*>(s.bias)[j % s.m]", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "if (element >= size_t(s.m) * s.n) return;", "if (element > size_t(s.m) * s.n) return;", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "d = from_float<Out>(sum);", "d = from_float<Out>(to_float(from_float<bf16>(sum)));", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "float sum = 0.0f;\n#pragma unroll 4\n    for (int p = lane(); p < s.k; p += 32) sum +=", "float sum = 0.0f;\n    for (int p = lane(); p < s.k / 32 * 32; p += 32) sum +=", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "return x < 0.0f ? 0.0f : x;", "return fmaxf(x, 0.0f);", "ops::cuda::nan_and_infinity_match_f64"),
    ("src/cuda/classifier.rs", "activation: op.activation as i32,", "activation: 0,", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "sum[i] += dx[i];", "sum[i] = dx[i];", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "if transposed { (ld as i32, 1) } else { (1, ld as i32) }", "if transposed { (1, ld as i32) } else { (1, ld as i32) }", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "constexpr int GELU_PACKS = 2;", "constexpr int GELU_PACKS = 1;", "ops::f32_on_cuda"),
    ("src/cuda/linear.rs", "ldd: n,", "ldd: k,", "ops::f32_on_cuda"),
    ("src/cuda/linear.rs", "        add: cuda.step.adds(),\n        ..input", "        add: false,\n        ..input", "ops::f32_on_cuda"),
    ("src/cuda/linear.rs", "        add: op.add,\n", "        add: false,\n", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "p.input == DType::F32 && cuda.arena().layout.arithmetic == Arithmetic::Tf32", "p.input == DType::F32", "ops::f32_on_cuda"),
    ("src/cuda/linear.rs", "        transpose_b: true,\n        n,\n        k: rows,", "        transpose_b: true,\n        n,\n        k: n,", "ops::f32_on_cuda"),
    ("src/cuda/linear.rs", "bias: cuda.at(op.b),", "bias: 0,", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "        Err(e) if is_refusal(&e) => {\n            if !cuda", "        Err(e) if is_refusal(&e) && false => {\n            if !cuda", "device::cublaslt_without_products"),
    ("src/cuda/tune.rs", " && first.0 >= SHORT", "", "tune::short_products_keep_the_first_algorithm"),
    ("src/cuda/kernels.rs", "? >= 90;", "? >= 0;", "device::kernels_that_start_in_turn"),
    ("src/cuda/kernels.rs", " && !serial;", ";", "device::kernels_that_start_in_turn"),
    ("src/cuda/arena.rs", "            (now, next) = (next, now);\n", "", "ops::cuda::large_download"),
    ("kernels/classifier.cu", "a.adds ? a.db[k] + sum : sum", "sum", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "a.adds ? out + total : total", "total", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "part < WARPS; part++", "part < WARPS - 1; part++", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "k == a.classes ? a.dx : a.y", "a.y", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "drop_columns(dx, a.drop, c, token_row);", "", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "token_row = a.cu_seqlens[seq]", "token_row = seq", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/classifier.cu", "a.dim % PACK<T> == 0 ? classify<true, F>(a)", "true ? classify<true, F>(a)", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "sum + a.b[k]", "sum", "ops::f32_on_cuda"),
    ("src/cuda/overlap.rs", "        Op::Classifier(op) => [op.w, View::NONE],\n", "", "updates::updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once"),
    ("src/cuda/linear.rs", "output: op.dw.dtype,", "", "ops::bf16_on_cuda"),
    ("kernels/linear.cu", "a.width % PACK<T> == 0 ? gelu_columns<true>(a, column)", "true ? gelu_columns<true>(a, column)", "ops::f32_on_cuda"),
    ("kernels/norm.cuh", "squares += (z[pack][i] - mean) * (z[pack][i] - mean);", "squares += z[pack][i] * z[pack][i];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "(g[r][i] - mean_g - n[r][i] * mean_gn)", "(g[r][i] - mean_g)", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "dbeta[i] += g[r][i];", "dbeta[i] += g[r][i] * gamma[i];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "turn ^= 1) {", "turn ^= 0) {", "thread: ops::every_kernel_has_a_case"),
    ("kernels/norm.cu", "dbias[i] += g[r][i];", "dbias[i] += n[r][i];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "dbias += to_float(dx[row * a.dim + c]);", "dbias += to_float(a.dy[row * a.dim + c]);", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "p[i + j] = key + i + j < keys ? score : -INFINITY;", "p[i + j] = score;", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "        total *= shrink;\n", "", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "out[pack][i] *= shrink;", "out[pack][i] *= 1.0f;", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "y += parts[g * WIDEST + c] * shrink;", "y += parts[g * WIDEST + c];", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "next == -INFINITY ? 0.0f : next", "next", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "of_q = exists ? p * (dp * kept[i + j] - delta) * a.scale : 0.0f;", "of_q = exists ? p * (dp - delta) * a.scale : 0.0f;", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "const float of_dy = p * kept[i + j]", "const float of_dy = p", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "a.sums[2 * matrix + row] = sum.y", "a.sums[2 * matrix + row] = sum.x", "ops::f32_on_cuda"),
    ("kernels/attention_cls.cu", "drop_columns(p, a.drop, key, unsigned(start) * a.heads + head);", "drop_columns(p, a.drop, key, unsigned(seq) * a.heads + head);", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "if (row_of<D>(i) < valid) sum[e] +=", "if (row_of<D>(i) < 16) sum[e] +=", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "for (int step = 4; step < 32; step *= 2) sum[e]", "for (int step = 8; step < 32; step *= 2) sum[e]", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "return zero_sums(own_sums(a, 0), a.head_dim);", "return;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "return zero_sums(own_sums(a, 1), a.head_dim);", "return;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "(which * blocks + block) * a.heads + blockIdx.x", "(block + which) * a.heads + blockIdx.x", "ops::f32_on_cuda"),
    ("src/cuda/attention.rs", "first > 0 || cuda.step.adds()", "cuda.step.adds()", "ops::sixty_six_thousand_short_texts_on_cuda"),
    ("kernels/norm.cu", "if (lane() == 0) parts[turn][r][warp()] = sums;\n        }\n        fetch(start + GROUP);\n        __syncthreads();", "if (lane() == 0) parts[turn][r][warp()] = sums;\n        }", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "if (a.skip || a.drop.threshold) store", "if (a.skip) store", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "if (start + r >= end || !mine) continue;\n            const size_t row = start + r;\n            float2", "if (!mine) continue;\n            const size_t row = start + r;\n            float2", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "store<false>(a.partials + size_t(gridDim.x + blockIdx.x) * a.dim + c, dbeta, a.dim - c);", "store<false>(a.partials + size_t(gridDim.x + blockIdx.x) * a.dim + c, dgamma, a.dim - c);", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "n[i] = (n[i] - a.stats[2 * row]) * a.stats[2 * row + 1];", "n[i] = n[i] - a.stats[2 * row];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "if (DROPS_Y) drop_columns(g[r], a.drop, c, start + r);", "", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "if (DROPS_Y) drop_columns(dy, a.drop, c, row);", "", "ops::f32_on_cuda"),
    ("src/cuda/norm.rs", "dx: if op.dx == op.dy { 0 } else { cuda.at(op.dx) },", "dx: 0,", "ops::f32_on_cuda"),
    ("src/cuda/norm.rs", "columns::add(cuda, partials, chunks, op.dim, &outs, cuda.step.adds())", "Ok(())", "ops::f32_on_cuda"),
    ("src/cuda/norm.rs", "[op.dgamma, op.dbeta, op.db]", "[op.dbeta, op.dgamma, op.db]", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "key + column_of(j) < seq.tokens ? p[i][j] * a.scale : -INFINITY;", "p[i][j] * a.scale;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "            total[i] *= shrink;\n", "", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "a.lse[size_t(seq.start + first + r) * a.heads + head] = largest[i] + logf(total[i]);", "a.lse[size_t(seq.start + first + r) * a.heads + head] = largest[i];", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "ds[i][j] = p[i][j] * (ds[i][j] * factor - delta[i]);", "ds[i][j] = p[i][j] * ds[i][j] * factor;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "accumulate<D>(dk, ds, buffer, q);", "accumulate<D>(dk, p, buffer, q);", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "row + column_of(lane() / 8) * heads);", "row + lane() % 8 * heads);", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "buffer[row_of<D>(i) * P_STRIDE<D> + column_of(j)] = p[i][j];\n    __syncwarp();", "buffer[row_of<D>(i) * P_STRIDE<D> + column_of(j)] = p[i][j];", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "p[m][n][e] = -INFINITY;", "p[m][n][e] = 0.0f;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "return exchange<2>(exchange<1>(bits, 1), 2);", "return bits;", "ops::cuda_bf16::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "row + (g + t % 2 * 8) * heads)", "row + g * heads)", "ops::cuda_bf16::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "const float shrink = exp2_approx((largest[m][h] - next) * scale)", "const float shrink = exp2_approx((largest[m][h] - next) * a.scale)", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "ds[0][n][e] = prob * (ds[0][n][e] * (keep ? a.drop.scale : 0.0f) - delta[e % 2]);", "ds[0][n][e] = prob * ds[0][n][e] * (keep ? a.drop.scale : 0.0f);", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "p[0][n][e] = keep ? prob : 0.0f;", "p[0][n][e] = prob;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "    __syncwarp();\n#pragma unroll\n    for (int i = 0; i < R<D>; i++)\n#pragma unroll\n        for (int j = 0; j < N<D>; j++) buffer", "#pragma unroll\n    for (int i = 0; i < R<D>; i++)\n#pragma unroll\n        for (int j = 0; j < N<D>; j++) buffer", "thread: ops::f32_on_cuda"),
    ("kernels/attention.cu", "r < valid && c < head_dim ? to_float", "c < head_dim ? to_float", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "for (int e = 0; e < 4; e++) out[i][b][e] *= shrink;", "for (int e = 1; e < 4; e++) out[i][b][e] *= shrink;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "push_kept(bits, drop, block + lane() % 4, row + row_of<D>(i) * heads);", "push_kept(bits, drop, block, row + row_of<D>(i) * heads);", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "exchange<2>(exchange<1>(exchange<16>(bits >> (16 - 2 * R<D>), 1), 2), 4)", "exchange<2>(exchange<1>(exchange<16>(bits >> (16 - 2 * R<D>), 1), 4), 2)", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "(0x10000u - drop.threshold)", "(0x10000u + drop.threshold)", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "(word & addend) | (sum & (word | addend))", "sum", "ops::cuda::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "ds[i][j] = p[i][j] * (ds[i][j] * factor - delta[i]);", "ds[i][j] = p[i][j] * (ds[i][j] - delta[i]);", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "const float delta = there ? a.delta[(row + c) * a.heads + head] : 0.0f;", "const float delta = there ? a.delta[row + c] : 0.0f;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "store_rows<D>(a.dk + key, a.kv_stride, valid, a.head_dim, dk, a.scale);", "store_rows<D>(a.dk + key, a.kv_stride, valid, a.head_dim, dk, 1.0f);", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "store_fragments<D>(a.dq + first * a.q_stride + column, a.q_stride, valid,", "store_fragments<D>(a.dq + first * a.q_stride + column, dim, valid,", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "float out[M][D / 8][4] = {}, largest[M][2], total[M][2] = {};\n#pragma unroll\n    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INFINITY;\n    for (int key = 0, stage = 0; key < seq.tokens; key += TILE) {\n        cp_async_wait<0>();", "float out[M][D / 8][4] = {}, largest[M][2], total[M][2] = {};\n#pragma unroll\n    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INFINITY;\n    for (int key = 0, stage = 0; key < seq.tokens; key += TILE) {\n        cp_async_wait<1>();", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "cp_async_wait<0>();\n        __syncthreads();\n        stage ^= 1;\n        if (query + TILE", "cp_async_wait<0>();\n        stage ^= 1;\n        if (query + TILE", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "statistics[stage][threadIdx.x] = fetched;", "statistics[0][threadIdx.x] = fetched;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "fetched = fetch(query + TILE);", "", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "if (key + 8 * n + lane() % 4 * 2 + e % 2 >= seq.tokens) p[m][n][e] = -INFINITY;", "if (key + 8 * n + lane() % 4 * 2 + e % 2 > seq.tokens) p[m][n][e] = -INFINITY;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "row + (8 * (n + g / 4) + 2 * t + g % 2) * heads);", "row + (8 * (n + g / 4) + 2 * t) * heads);", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "row + (g + t % 2 * 8) * heads);", "row + (g + t % 2 * 8));", "ops::cuda_bf16::dropout_masks_match_the_definition"),
    ("kernels/attention.cu", "if (seq.tile % (2 * TILE) != 0) return;", "if (seq.tile != 0) return;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "rows + (row + lane() % 16) * PITCH<D> + 16 * c + lane() / 16 * 8", "rows + (row + lane() % 16) * PITCH<D> + 16 * c", "ops::bf16_on_cuda"),
    ("src/cuda/kernels.rs", "sharedMemBytes: self.shared", "sharedMemBytes: self.shared / 9 * 8", "ops::bf16_on_cuda"),
    ("src/cuda/tune.rs", "if best.0 <= GAIN * first.0 && first.0 >= SHORT { best } else { first }", "first", "tune::the_fastest_algorithms_are_recorded_and_used_by_later_runs"),
    ("src/cuda/tune.rs", "times[MEASUREMENTS / 2]", "times.iter().sum::<f32>()", "tune::the_fastest_algorithms_are_recorded_and_used_by_later_runs"),
    ("src/cuda/tune.rs", "if *timing && ", "if ", "tune::the_fastest_algorithms_are_recorded_and_used_by_later_runs"),
    ("src/cuda/tune.rs", "if gemm.supports(&record.algorithm, p, exact)? ", "", "tune::an_algorithm_that_the_library_refuses_is_not_used"),
    ("src/cuda/tune.rs", "if device != self.device() {", "if false {", "tune::a_file_that_does_not_apply_is_reported_and_not_used"),
    ("src/cuda/tune.rs", "if text(&device, &records).1 != checksum {", "if false {", "tune::a_file_that_does_not_apply_is_reported_and_not_used"),
    ("src/cuda/gemm.rs", "(bucket, rows.is_multiple_of(SPLITTABLE))", "(bucket, false)", "tune::sizes_of_batches"),
    ("src/model/mod.rs", "        timed?;\n        self.set_status(&status)", "        timed", "tune::every_product_of_a_run_is_timed_and_timing_leaves_no_trace"),
    ("src/train/tune.rs", "accumulation.min(2) as u32", "1", "tune::every_product_of_a_run_is_timed_and_timing_leaves_no_trace"),
    ("src/train/tune.rs", "if !sizes.contains_key(&class) {", "if false {", "tune::every_product_of_a_run_is_timed_and_timing_leaves_no_trace"),
    ("src/train/setup.rs", "if resumes { None } else {", "if false { None } else {", "tune::a_resumed_run_keeps_the_algorithms_of_its_checkpoint"),
    ("src/train/resume.rs", "if state.step < self.schedule.total && !state.processor.is_empty() && state.processor != processor {", "if false {", "cli::runs::a_run_resumes_with_the_settings_of_its_folder"),
    ("src/train/resume.rs", "        tune::resume(&mut self.model, folder)?;\n", "", "tune::a_resumed_run_keeps_the_algorithms_of_its_checkpoint"),
    ("src/cuda/gemm.rs", "p.k.is_multiple_of(SPLITTABLE)", "true", "products::weight_gradients_of_ones_are_exact"),
    ("src/cuda/gemm.rs", "if rows <= EXACT { rows } else", "if false { rows } else", "products::every_number_of_rows"),
    ("src/cuda/gemm.rs", "&& shape != exact => {", "&& false => {", "products::every_number_of_rows"),
    ("src/cuda/gemm.rs", "{ CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE }", "{ CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE }", "products::every_number_of_rows"),
    ("src/cuda/device.rs", "open.insert(index, gpu.clone());", "", "virtual_gpu::a_gpu_whose_last_backend_was_dropped_opens_again"),
    ("src/cuda/norm.rs", "CHUNKS.min(SUMS / bytes)", "CHUNKS", "virtual_gpu::launches_of_large_batches"),
    ("src/cuda/linear.rs", "CHUNKS.min(SUMS / bytes)", "CHUNKS", "virtual_gpu::launches_of_large_batches"),
    ("src/cuda/attention.rs", "add_bias(cuda, op, sums, launched, 0..3, first)?;", "add_bias(cuda, op, sums, launched, 0..2, first)?;", "ops::f32_on_cuda"),
    ("src/cuda/attention.rs", "lse: (4 * first * op.heads) as u64,", "lse: 0,", "ops::sixty_six_thousand_short_texts_on_cuda"),
    ("src/cuda/attention.rs", "delta: cuda.scratch(cuda.tokens * op.heads * size_of::<f32>())?,", "delta: cuda.at(op.lse),", "ops::f32_on_cuda"),
    ("src/cuda/attention.rs", "(1.0 / (op.head_dim as f64).sqrt()) as f32", "(1.0 / op.head_dim as f64) as f32", "ops::f32_on_cuda"),
    ("src/cuda/attention.rs", "if width <= 64 { 1 } else { 2 }", "1", "ops::f32_on_cuda"),
    ("src/cuda/kernels.rs", "sharedMemBytes: self.shared", "sharedMemBytes: self.shared / 2", "ops::bf16_on_cuda"),
    ("kernels/classifier.cu", "if (share > 0.0) loss -=", "loss -=", "ops::cuda::nan_and_infinity_match_f64"),
    ("kernels/classifier.cu", "a.status->loss += sum / a.loss_normalizer;", "a.status->loss += sum;", "ops::cuda::the_loss_is_counted_in_training_only"),
    ("kernels/classifier.cu", "(exp(row.log_p(c)) * shares - row.share(c))", "(exp(row.log_p(c)) - row.share(c))", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "if (share > 0.0) loss -= share * row.log_p(c);", "if (share > 0.0 && c < 2) loss -= share * row.log_p(c);", "ops::f32_on_cuda"),
    ("kernels/classifier.cu", "largest = warp_max(largest);", "largest = 0.0f;", "ops::cuda::the_loss_at_the_edges"),
    ("kernels/classifier.cu", "    if (!a.train) return;\n    // d loss", "    // d loss", "ops::cuda::the_loss_is_counted_in_training_only"),
    ("kernels/classifier.cu", "loss_scale(*a.status) / a.loss_normalizer", "loss_scale(*a.status)", "ops::f32_on_cuda"),
    ("src/cuda/classifier.rs", "train: cuda.step.train.into(),", "train: 1,", "ops::cuda::the_loss_is_counted_in_training_only"),
    ("kernels/adamw.cu", "fabs(loss) < INFINITY && fabs(s.grad_norm) < INFINITY", "fabs(loss) < INFINITY", "ops::cuda::adamw_skips_non_finite_updates"),
    ("kernels/adamw.cu", "&& s.scale >= 0.0;", ";", "ops::cuda::adamw_gives_up_below_a_loss_scale_of_1"),
    ("kernels/adamw.cu", "fmax(s.scale - 1.0, -1.0)", "s.scale - 1.0", "ops::cuda::adamw_gives_up_below_a_loss_scale_of_1"),
    ("kernels/adamw.cu", "s.good = usable ? s.good + 1.0 : 0.0;", "s.good += 1.0;", "ops::cuda::adamw_skips_non_finite_updates"),
    ("kernels/adamw.cu", "s.good == a.growth", "s.good > a.growth", "ops::cuda::adamw_matches_the_definition"),
    ("kernels/adamw.cu", "float(clip / scale)", "float(clip)", "ops::cuda::adamw_matches_the_definition"),
    ("kernels/adamw.cu", "a.number - s.skipped", "a.number", "ops::cuda::adamw_matches_the_definition"),
    ("kernels/adamw.cu", "sqrt(sum) / loss_scale(*a.status)", "sqrt(sum)", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("kernels/classifier.cu", "loss_scale(*a.status) / a.loss_normalizer", "1.0 / a.loss_normalizer", "ops::cuda::the_loss_scale_multiplies_gradients"),
    ("src/cuda/attention.rs", "if op.y.dtype.size() == 2 =>", "if op.y.dtype == DType::Bf16 =>", "ops::every_kernel_has_a_case"),
    ("src/cuda/gemm.rs", "DType::F16 => sys::cudaDataType_t::CUDA_R_16F,", "DType::F16 => sys::cudaDataType_t::CUDA_R_16BF,", "ops::f16_on_cuda"),
    ("src/model/mod.rs", "const FIRST_SCALE: f64 = 16.0;", "const FIRST_SCALE: f64 = 0.0;", "model::overflow_in_f16_halves_the_loss_scale_and_nothing_else"),
    ("src/model/mod.rs", "const GROWTH: u32 = 2000;", "const GROWTH: u32 = 1000;", "model::overflow_in_f16_halves_the_loss_scale_and_nothing_else"),
    ("src/train/epochs.rs", "|| status.scale < 0.0", "", "train::a_run_in_f16_ends_once_the_loss_scale_is_below_1"),
    ("src/train/epochs.rs", "self.state.skipped += newly;", "", "train::updates_that_overflow_f16_are_skipped_and_a_resumed_run_goes_on_alike"),
    ("src/train/resume.rs", "to = x.unwrap_or(f64::NAN))", "to = x.unwrap_or(0.0).min(16.0))", "train::updates_that_overflow_f16_are_skipped_and_a_resumed_run_goes_on_alike"),
    ("src/train/saver.rs", "is_some_and(JoinHandle::is_finished)", "is_some()", "cli::saving::training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits"),
    ("src/train/epochs.rs", "self.save(false)?;\n        self.saver.wait()?;", "self.save(false)?;", "cli::saving::an_interrupted_run_that_cannot_be_saved_is_not_reported_as_saved"),
    ("src/train/epochs.rs", "self.saver.check()?;", "", "cli::saving::a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before_it"),
    ("src/device.rs", "Precision::Auto | Precision::Fp16 if major < 8 => (Precision::Fp16, Arithmetic::F16)", "Precision::Auto | Precision::Fp16 if major < 8 => (Precision::Fp32, Arithmetic::F32)", "device::a_gpu_of_compute_capability_7_5_trains_in_fp32_and_fp16_and_refuses_bf16"),
    ("kernels/adamw.cu", "at + i < a.decayed", "at + i <= a.decayed", "ops::f32_on_cuda"),
    ("kernels/adamw.cu", "if (rest < end)", "if (rest < end - 1)", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("src/cuda/embed.rs", "if !cuda.step.adds() {", "if false {", "ops::cuda::the_first_micro_batch_overwrites"),
    ("kernels/adamw.cu", "if (a.copy) store<WHOLE>(a.copy + at, p, count);", "if (a.copy) store<WHOLE>(a.copy + at, m, count);", "ops::bf16_on_cuda"),
    ("kernels/adamw.cu", "sum += double(g[i]) * g[i];", "sum += g[i] * g[i];", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("kernels/adamw.cu", "at + i < a.decayed ? factors.decay : 1.0f", "at < a.decayed ? factors.decay : 1.0f", "ops::cuda::adamw_matches_the_definition"),
    ("kernels/adamw.cu", "if (at < end) adamw_pack<false>", "if (at + 4 < end) adamw_pack<false>", "ops::cuda::adamw_matches_the_definition"),
    ("src/cuda/adamw.rs", "decay: (1.0 - learning_rate * op.weight_decay) as f32,", "decay: (1.0 - op.weight_decay) as f32,", "ops::f32_on_cuda"),
    ("src/cuda/adamw.rs", "copy: cuda.at(op.copy),", "copy: 0,", "ops::bf16_on_cuda"),
    ("src/cuda/adamw.rs", "len: len(op.grads.len),", "len: len(op.grads.len - 1),", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("src/cuda/arena.rs", "        copied.synchronize().map_err(failed(\"batch\"))?;\n", "", "train::golden_trainer_runs_on_cuda"),
    ("src/data/pack.rs", ".step_by(TILE)", ".step_by(2 * TILE)", "ops::f32_on_cuda"),
    ("src/cuda/arena.rs", "copied.record(stream).map_err(failed(\"batch\"))?;", "", "ops::cuda::staging_needs_no_wait"),
    ("src/cuda/kernels.rs", "blockDimX: self.threads", "blockDimX: self.threads / 2", "ops::f32_on_cuda"),
    ("src/cuda/mod.rs", "if self.step.train { (drop.threshold()", "if true { (drop.threshold()", "ops::cuda::dropout_off_is_the_identity"),
    ("src/cuda/mod.rs", "Rows::Cls => self.at(self.inputs().cu_seqlens),", "Rows::Cls => 0,", "ops::cuda::dropout_masks_match_the_definition"),
    ("src/cuda/mod.rs", "step_key(self.step.seed, self.step.update, self.step.micro)", "step_key(self.step.seed, self.step.update, 0)", "ops::cuda::dropout_masks_match_the_definition"),
    ("src/cuda/mod.rs", "self.step = *step;", "", "ops::cuda::dropout_masks_match_the_definition"),
    ("src/cuda/mod.rs", "self.distinct = batch.token_starts.len() - 1;", "self.distinct = batch.token_starts.len() - 2;", "ops::f32_on_cuda"),
]


INSTRUCTIONS = ["avx512bf16", "amx"]
QUIET = {"capture_output": True, "text": True}
# Seeds of the order of threads on the virtual GPU.
ORDERS = ["0", "1", "2"]


def build(copy):
    """Builds the test binary and the virtual GPU, and returns their paths; None if the copy does not build."""
    command = ["cargo", "test", "--release", "--test", "tests", "--no-run", "--message-format", "json"]
    made = subprocess.run(command, cwd=copy, **QUIET)
    if made.returncode:
        return None
    messages = [json.loads(line) for line in made.stdout.splitlines()]
    [binary] = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "tests"]
    [emulator] = [Path(m["out_dir"]) for m in messages if m["reason"] == "build-script-executed" and "vgpu" in m["package_id"]]
    return binary, emulator


def failing(binary, emulator, order, *tests):
    """The names of the tests that fail."""
    environment = {**os.environ, "VGPU_DIR": str(emulator), "VGPU_SEED": order, "RUST_BACKTRACE": "0"}
    *options, last = tests
    instructions, _, last = last.rpartition(": ")
    if instructions:
        environment["WARPFIT_CPU"] = instructions
    try:
        run = subprocess.run([binary, "--format=pretty", *options, last], env=environment, timeout=900, **QUIET)
    except subprocess.TimeoutExpired:
        return ["(no end)"]
    failed = re.findall(r"^test (\S+) \.\.\. FAILED$", run.stdout, re.M)
    return failed or (["(crash)"] if run.returncode else [])


def judge(binary, emulator, test):
    if any(failing(binary, emulator, order, "--exact", test) for order in ORDERS):
        return "caught", [test]
    failed = failing(binary, emulator, "0", "ops::", "model::", "serve::")
    return (f"caught, but not by {test}" if failed else "SURVIVED"), failed


def kernel_mutant(copy, binary, emulator, file, new_source, test):
    """Judges a break under kernels/."""
    flags = re.search(r'const KERNELS: &str = "(.*?)";', (copy / "tests/vgpu/build.rs").read_text(), re.S)[1]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(copy / "kernels", folder / "kernels")
        (folder / file).write_text(new_source)
        stems = [path.stem for path in (folder / "kernels").glob("*.cu") if file.endswith(".cuh") or file.endswith(path.name)]
        for stem in stems:
            command = ["c++", *flags.replace("\\\n", " ").split(), f"-I{copy}/tests/vgpu/emulator", f"-I{folder}/kernels", "-w"]
            command += ["-c", folder / f"kernels/{stem}.cu", "-o", folder / f"{stem}.o"]
            if subprocess.run(command, **QUIET).returncode:
                return "does not build", []
        sources = [*(copy / "kernels").glob("*.cu"), *(copy / "tests/vgpu").glob("*.cu")]
        objects = [(folder if path.stem in stems else emulator) / f"{path.stem}.o" for path in sources]
        for library in ["libcuda.so", "libcublasLt.so"]:
            (folder / library).symlink_to(emulator / library)
        link = ["c++", "-shared", "-Wl,-soname,libvgpu_kernels.so", "-o", folder / "libvgpu_kernels.so", *objects]
        subprocess.run([*link, emulator / "libcuda.so"], check=True)
        return judge(binary, folder, test)


def races(copy, test):
    """Whether ThreadSanitizer detects a race."""
    run = subprocess.run(["tests/vgpu/sanitize.sh", "thread", "--exact", test.removeprefix("thread: ")], cwd=copy, **QUIET)
    return "data race" in run.stderr or "FAILED" in run.stdout


def host_mutant(copy, file, new_source, test):
    """Judges a break under src/, or one that ThreadSanitizer must detect."""
    path = copy / file
    source = path.read_text()
    path.write_text(new_source)
    try:
        if test.startswith("thread: "):
            return ("caught", [test]) if races(copy, test) else ("SURVIVED", [])
        built = build(copy)
        return judge(*built, test) if built else ("does not build", [])
    finally:
        path.write_text(source)


def broken(root):
    """The source of each break."""
    sources = {}
    for file, old, new, _ in MUTANTS:
        source = (root / file).read_text()
        if source.count(old) != 1:
            sys.exit(f"{file}: `{old}` occurs {source.count(old)} times; correct the table")
        sources[file, old, new] = source.replace(old, new)
    return sources


def main():
    root = Path(__file__).resolve().parent.parent
    words = sys.argv[1:] or [""]
    sources = broken(root)
    if words == ["--table"]:
        return
    if any(word.startswith("-") for word in words):
        sys.exit(__doc__)
    chosen = [mutant for mutant in MUTANTS if any(word in part for word in words for part in mutant)]
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARGO_TARGET_DIR"] = str(root / "target" / "mutants")
        # Each build runs only once.
        os.environ.update({"CARGO_PROFILE_RELEASE_DEBUG": "0", "CARGO_PROFILE_RELEASE_INCREMENTAL": "true"})
        # Always the same path, so that cargo reuses earlier builds.
        copy = root / "target" / "mutants" / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        # With new modification times, or cargo would keep the last run's build.
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("target", ".git"), copy_function=shutil.copy)
        binary, emulator = build(copy) or sys.exit("without a break: does not build")
        # The next build would replace it.
        binary = shutil.copy(binary, Path(folder) / "tests")
        if failed := failing(binary, emulator, "0", "ops::", "model::", "serve::"):
            sys.exit(f"without a break: {failed}")
        if racy := [test for test in {test for *_, test in chosen if test.startswith("thread: ")} if races(copy, test)]:
            sys.exit(f"without a break: {racy}")
        lacks = lambda name: failing(binary, emulator, "0", f"{name}: instructions::the_name_shows")
        lacking = {name for name in INSTRUCTIONS if any(test.startswith(f"{name}: ") for *_, test in chosen) and lacks(name)}
        for mutant in [mutant for mutant in chosen if mutant[3].split(": ")[0] in lacking]:
            chosen.remove(mutant)
            print(f"not run, because this machine lacks the instructions: {mutant[0]}: {mutant[1]!r}  [{mutant[3]}]")

        def judged(mutant):
            nonlocal caught
            file, old, new, test = mutant
            source = sources[file, old, new]
            in_kernels = file.startswith("kernels/") and not test.startswith("thread: ")
            verdict, failed = kernel_mutant(copy, binary, emulator, file, source, test) if in_kernels else host_mutant(copy, file, source, test)
            caught += verdict == "caught"
            print(f"{verdict}: {file}: {old!r}  ->  {new!r}  [{', '.join(failed)}]", flush=True)

        is_of_kernel = lambda mutant: mutant[0].startswith("kernels/") and not mutant[3].startswith("thread: ")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(judged, filter(is_of_kernel, chosen)))
        for mutant in chosen:
            if not is_of_kernel(mutant):
                judged(mutant)
    print(f"{caught} of {len(chosen)} caught by the test named")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
