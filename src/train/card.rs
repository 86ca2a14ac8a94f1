//! The README.md of a run folder: a model card for the Hugging Face hub.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::model_dir::ModelDir;
use crate::data::truncation::TruncationSide;
use crate::hub;
use crate::metrics::Metric;
use crate::model::config::Config;
use crate::report::history::History;
use crate::train::args::Settings;
use crate::train::evaluate::Evaluation;

/// Front matter, final metrics (of the test data if `tested`), settings and the table of evaluations.
pub fn model_card(
    settings: &Settings,
    source: &ModelDir,
    config: &Config,
    log: &History,
    last: Option<&Evaluation>,
    tested: bool,
) -> String {
    let name = settings.output_dir.file_name().unwrap_or_default().to_string_lossy();
    let base = settings.model.display();
    let figure = |metric| last.and_then(|evaluation| evaluation.metrics.get(metric));
    let mut card = "---\nlibrary_name: transformers\npipeline_tag: text-classification\n".to_string();
    if !settings.from_scratch {
        card += &license(&source.path).map_or(String::new(), |license| format!("{license}\n"));
        // A card may name hub ids only; the hub refuses anything else.
        if let Some(id) = hub::id(hub::Kind::Model, &settings.model) {
            card += &format!("base_model: {id}\n");
        }
    }
    if let Some(id) = settings.dataset.as_deref().and_then(|name| hub::id(hub::Kind::Dataset, name)) {
        card += &format!("datasets:\n- {id}\n");
    }
    card += "tags:\n- text-classification\n- warpfit\n";
    if last.is_some() {
        card += "metrics:\n- accuracy\n- f1\n- precision\n- recall\n";
    }
    card += &format!("---\n\n# {name}\n\n");
    card += &match settings.from_scratch {
        true => format!("A {} classifier trained from scratch with the architecture of `{base}`", config.arch.model_type()),
        false => format!("`{base}` ({}) fine-tuned", config.arch.model_type()),
    };
    let data = settings.dataset.as_ref().unwrap_or(&settings.files.train[0]);
    card += &format!(" on `{}` with warpfit. Labels: {}.\n\n", data.display(), config.labels.join(", "));
    if last.is_some() {
        let data = settings.files.test.first().filter(|_| tested).or(settings.files.validation.first());
        card += &match data {
            Some(_) if settings.dataset.is_some() => {
                format!("On its {} data:\n\n", if tested { "test" } else { "validation" })
            }
            Some(file) => format!("On `{}`:\n\n", file.display()),
            None => "On the validation split:\n\n".to_string(),
        };
        for metric in Metric::ALL {
            card +=
                &format!("- {}: {}\n", metric.name(), figure(metric).map_or("undefined".into(), |value| format!("{value:.4}")));
        }
        card += "\n";
    }
    card += "## Training\n\n";
    let length = match settings.max_steps {
        Some(updates) => ("updates", updates.to_string()),
        None => ("epochs", settings.num_train_epochs.to_string()),
    };
    for (what, value) in [
        ("learning rate", format!("{:e}", settings.learning_rate)),
        ("schedule", format!("{:?}, warm-up {}", settings.lr_scheduler_type, settings.warmup_steps).to_lowercase()),
        ("batch", format!("{} x {} accumulated", settings.batch_size, settings.gradient_accumulation_steps)),
        length,
        ("weight decay", settings.weight_decay.to_string()),
        (
            "optimizer",
            format!("AdamW, betas {} and {}, epsilon {:e}", settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon),
        ),
        ("seed", settings.seed.to_string()),
    ] {
        card += &format!("- {what}: {value}\n");
    }
    let side = source.tokenizer.as_ref().map(|tokenizer| tokenizer.truncation_side).unwrap_or_default();
    if side != TruncationSide::Right {
        card += &format!("- long texts: truncated{}\n", side.place());
    }
    let (mut loss, mut evaluations) = (None, String::new());
    for entry in log.entries() {
        let number = |key: &str| entry.get(key).and_then(Value::as_f64);
        let four = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        let of = |key: &str| four(number(key));
        loss = number("loss").or(loss);
        if number("eval_loss").is_some() {
            let epoch = number("epoch").unwrap_or_default();
            let metrics = [four(loss), of("eval_loss"), of("eval_accuracy"), of("eval_f1")].join(" | ");
            evaluations += &format!("| {epoch:.2} | {} | {metrics} |\n", entry["step"]);
        }
    }
    if !evaluations.is_empty() {
        card += "\n| epoch | step | training loss | validation loss | accuracy | f1 |\n|---|---|---|---|---|---|\n";
        card += &evaluations;
    }
    card
}

/// The license line of the base model's card.
fn license(model: &Path) -> Option<String> {
    let card = std::fs::read_to_string(model.join("README.md")).ok()?;
    let front_matter = card.strip_prefix("---\n")?.split("\n---").next()?;
    front_matter.lines().find(|line| line.starts_with("license:")).map(String::from)
}
