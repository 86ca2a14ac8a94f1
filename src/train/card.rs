//! The README.md of a run folder: a model card for the Hugging Face hub. Its front matter has the keys that Hugging Face's Trainer
//! writes; those of `model-index` are at <https://github.com/huggingface/hub-docs/blob/main/modelcard.md>.

use std::fs;
use std::path::Path;

use chrono::Utc;
use serde_json::{Map, Value, json};

use super::Trainer;
use super::args::ClassWeights;
use super::evaluate::Evaluation;
use crate::data::dataset::Split;
use crate::data::truncation::TruncationSide;
use crate::flags::SplitName;
use crate::hub;
use crate::metrics::Metric;
use crate::report::log::{counted, four};

impl Trainer<'_> {
    /// The card, with the saved model's `results`.
    pub(super) fn card(&self, results: &[(Split, &Evaluation)]) -> String {
        let front_matter = serde_saphyr::to_string(&self.front_matter(results)).expect("all of it is JSON");
        let parts = [self.introduction(), self.results(results), self.training(), self.evaluations()];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("---\n{front_matter}---\n\n{}", parts.join("\n"))
    }

    fn front_matter(&self, results: &[(Split, &Evaluation)]) -> Map<String, Value> {
        let settings = self.settings;
        let mut front = Map::new();
        let mut insert = |key: &str, value: Value| front.insert(key.to_string(), value);
        insert("library_name", json!("transformers"));
        insert("pipeline_tag", json!("text-classification"));
        if !settings.from_scratch {
            // A card may name hub ids only; the hub refuses anything else.
            let base = hub::id(hub::Kind::Model, &settings.model);
            for (key, value) in license(&self.source.path, base.as_deref()).unwrap_or_default() {
                insert(key, value);
            }
            if let Some(id) = base {
                insert("base_model", json!(id));
            }
        }
        if let Some(id) = hub::id(hub::Kind::Dataset, self.origin(Split::Train)) {
            insert("datasets", json!([id]));
        }
        insert("tags", json!(["text-classification", "warpfit"]));
        if !results.is_empty() {
            insert("metrics", json!(["accuracy", "f1", "precision", "recall"]));
        }
        let results: Vec<Value> = results.iter().map(|&(split, evaluation)| self.result(split, evaluation)).collect();
        insert("model-index", json!([{"name": name(&settings.output_dir), "results": results}]));
        front
    }

    /// An element of `results` in the `model-index`.
    fn result(&self, split: Split, evaluation: &Evaluation) -> Value {
        let origin = self.origin(split);
        // The hub demands the form of an id.
        let id = hub::id(hub::Kind::Dataset, origin).unwrap_or_else(|| {
            let format = origin.extension().map(|ending| ending.to_string_lossy().to_lowercase());
            format.filter(|ending| ending.chars().all(|c| c.is_ascii_alphanumeric())).unwrap_or("text".to_string())
        });
        let mut dataset = json!({"name": self.data_name(split), "type": id});
        if let Some(config) = self.settings.dataset_config.as_ref().filter(|_| self.is_of_dataset(split)) {
            dataset["config"] = json!(config);
        }
        let tests = split == Split::Test || self.settings.validation_split_name == Some(SplitName::Test);
        dataset["split"] = json!(if tests { "test" } else { "validation" });
        let metric = |metric: Metric| {
            let value = evaluation.metrics.get(metric).filter(|value| value.is_finite())?;
            Some(json!({"name": metric.title(), "type": metric.name(), "value": value}))
        };
        let metrics: Vec<Value> = Metric::ALL.into_iter().filter_map(metric).collect();
        let task = json!({"name": "Text Classification", "type": "text-classification"});
        json!({"task": task, "dataset": dataset, "metrics": metrics})
    }

    /// Where the texts of a split come from: the data set, or a file of its own.
    fn origin(&self, split: Split) -> &Path {
        let settings = self.settings;
        let files = match split {
            _ if self.is_of_dataset(split) => settings.dataset.as_slice(),
            Split::Validation if settings.validation_split.is_some() => return self.origin(Split::Train),
            Split::Train => &settings.files.train,
            Split::Validation => &settings.files.validation,
            Split::Test => &settings.files.test,
        };
        &files[0]
    }

    /// The hub id, or else the file's name, of a split's data.
    fn data_name(&self, split: Split) -> String {
        let origin = self.origin(split);
        hub::id(hub::Kind::Dataset, origin).unwrap_or_else(|| name(origin))
    }

    fn is_of_dataset(&self, split: Split) -> bool {
        self.settings.of_dataset.contains(&split)
    }

    fn introduction(&self) -> String {
        let (settings, config) = (self.settings, &self.model.plan.config);
        let linked = |id: Option<String>, path: &Path, place: &str| match id {
            Some(id) => format!("[{}](https://huggingface.co/{place}{id})", markdown(&path.display().to_string())),
            None => markdown(&name(path)),
        };
        let data = self.origin(Split::Train);
        let (base, data) = (
            linked(hub::id(hub::Kind::Model, &settings.model), &settings.model, ""),
            linked(hub::id(hub::Kind::Dataset, data), data, "datasets/"),
        );
        let (kind, version, date) = (config.arch.model_type(), env!("CARGO_PKG_VERSION"), Utc::now().date_naive());
        let model = match settings.from_scratch {
            true => format!("This model has the architecture of {base} ({kind}), and was trained from scratch"),
            false => format!("This model is a fine-tuned version of {base} ({kind}), trained"),
        };
        let labels: Vec<String> = config.labels.iter().map(|label| markdown(label)).collect();
        format!(
            "# {}\n\n{model} on {data} with warpfit {version} on {date}. Labels: {}.\n",
            markdown(&name(&settings.output_dir)),
            labels.join(", ")
        )
    }

    /// The metrics of the saved model, one column per split.
    fn results(&self, results: &[(Split, &Evaluation)]) -> String {
        if results.is_empty() {
            return String::new();
        }
        let mut section = "## Results\n\n".to_string();
        let heading = |split| if split == Split::Test { "Test" } else { "Validation" };
        for &(split, evaluation) in results {
            let data = match self.settings.validation_split {
                Some(share) if split == Split::Validation => {
                    format!("{} % of the training data, held out", (1e4 * share).round() / 1e2)
                }
                _ => markdown(&self.data_name(split)),
            };
            section += &format!("- {}: {data}, {}\n", heading(split), counted(evaluation.losses.len(), "text"));
        }
        let row = |first: &str, cell: &dyn Fn(Split, &Evaluation) -> String| {
            let cells: Vec<String> = results.iter().map(|&(split, evaluation)| cell(split, evaluation)).collect();
            format!("| {first} | {} |\n", cells.join(" | "))
        };
        section += "\n";
        section += &row("Metric", &|split, _| heading(split).to_string());
        section += &row("---", &|_, _| "---".to_string());
        for metric in Metric::ALL {
            section += &row(metric.title(), &|_, evaluation| {
                evaluation.metrics.get(metric).map_or("undefined".into(), |value| format!("{value:.4}"))
            });
        }
        let labels = &self.model.plan.config.labels;
        section
            + &match labels.len() {
                2 => format!(
                    "\nPrecision, recall, F1 and the areas are those of the class {}.\n",
                    markdown(&labels[self.positive])
                ),
                _ => {
                    "\nPrecision, recall and F1 are weighted by the size of the classes; the areas are means over the classes.\n"
                        .into()
                }
            }
    }

    fn training(&self) -> String {
        let settings = self.settings;
        let length = match settings.max_steps {
            Some(updates) => ("updates", updates.to_string()),
            None => ("epochs", settings.num_train_epochs.to_string()),
        };
        let mut lines = vec![
            ("learning rate", format!("{:e}", settings.learning_rate)),
            ("schedule", format!("{:?}, warm-up {}", settings.lr_scheduler_type, settings.warmup_steps).to_lowercase()),
            ("batch", format!("{} x {} accumulated", settings.batch_size, settings.gradient_accumulation_steps)),
            length,
            ("weight decay", settings.weight_decay.to_string()),
            (
                "optimizer",
                format!("AdamW, betas {} and {}, epsilon {:e}", settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon),
            ),
            ("gradient clipping", settings.max_grad_norm.to_string()),
        ];
        let side = self.source.tokenizer.as_ref().map(|tokenizer| tokenizer.truncation_side).unwrap_or_default();
        if side != TruncationSide::Right {
            lines.push(("long texts", format!("truncated{}", side.place())));
        }
        if settings.label_smoothing_factor > 0.0 {
            lines.push(("label smoothing", settings.label_smoothing_factor.to_string()));
        }
        if let Some(weights) = &settings.class_weights {
            let given: Vec<String> = self.class_weights.iter().map(|weight| format!("{weight:.4}")).collect();
            let how = if *weights == ClassWeights::Balanced { "balanced: " } else { "" };
            lines.push(("class weights", format!("{how}{}", given.join(", "))));
        }
        if settings.load_best_model_at_end {
            lines.push(("saved model", format!("that of the best validation {}", settings.metric_for_best_model.name())));
        }
        lines.push(("precision", settings.precision.to_string()));
        lines.push(("seed", settings.seed.to_string()));
        lines.into_iter().fold("## Training\n\n".to_string(), |section, (what, value)| section + &format!("- {what}: {value}\n"))
    }

    /// The table of evaluations; empty if there were none.
    fn evaluations(&self) -> String {
        let (mut loss, mut rows) = (None, String::new());
        for entry in self.log.entries() {
            let number = |key: &str| entry.get(key).and_then(Value::as_f64);
            loss = number("loss").or(loss);
            if number("eval_loss").is_some() {
                let epoch = number("epoch").unwrap_or_default();
                let metrics = [loss, number("eval_loss"), number("eval_accuracy"), number("eval_f1")].map(four).join(" | ");
                rows += &format!("| {epoch:.2} | {} | {metrics} |\n", entry["step"]);
            }
        }
        if rows.is_empty() {
            return rows;
        }
        format!(
            "| Epoch | Step | Training loss | Validation loss | Accuracy | F1 |\n| --- | --- | --- | --- | --- | --- |\n{rows}"
        )
    }
}

/// The last part of a path: a card shows no folders of the machine.
fn name(path: &Path) -> String {
    // `.` has no name of its own.
    let whole = path.canonicalize().unwrap_or_default();
    path.file_name().or(whole.file_name()).unwrap_or_default().to_string_lossy().into_owned()
}

/// A text as Markdown that shows it, in one line: every character with a meaning is escaped.
fn markdown(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if r"\`*_{}[]<>#|~!&$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { ' ' } else { c });
    }
    escaped
}

/// Why the new card lacks the license of the base model, although that may have one.
pub(super) fn license_left_out(model: &Path) -> Option<String> {
    let fact = license(model, None).err()?;
    Some(format!("warning: {}: {fact}; the new model's card has no license", model.join("README.md").display()))
}

/// The license in the card of the base model, which is that of its derivatives. `base` is its id on the hub, if it has one.
///
/// # Errors
/// A license, or a front matter, that cannot be carried over: in words.
fn license(model: &Path, base: Option<&str>) -> Result<Vec<(&'static str, Value)>, String> {
    let card = fs::read(model.join("README.md")).unwrap_or_default();
    let card = String::from_utf8_lossy(&card);
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Ok(Vec::new());
    }
    let front_matter: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let front_matter = serde_saphyr::from_str::<Map<String, Value>>(&front_matter.join("\n"));
    let front_matter = front_matter.map_err(|_| "its front matter is not a YAML mapping".to_string())?;
    let text = |key: &str| front_matter.get(key).and_then(Value::as_str).map(str::trim);
    // The hub knows licenses by lower-case ids, and refuses anything else.
    let id = |license: &Value| {
        let id = license.as_str()?.trim().to_lowercase();
        (!id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || ".+-".contains(c))).then_some(id)
    };
    let ids: Option<Value> = match front_matter.get("license") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(several)) => several.iter().map(id).collect::<Option<Vec<String>>>().map(|ids| json!(ids)),
        Some(one) => id(one).map(|id| json!(id)),
    };
    let ids = ids.ok_or_else(|| format!("its license, {}, is not written as an id of the hub", front_matter["license"]))?;
    // A link to a file beside the base model's card leads nowhere from here.
    let link = text("license_link").and_then(|link| match base {
        _ if link.starts_with("https://") => Some(link.to_string()),
        Some(id) => Some(format!("https://huggingface.co/{id}/blob/main/{link}")),
        None => None,
    });
    let name = text("license_name").map(String::from);
    let more = [("license_name", name), ("license_link", link)];
    let more = more.into_iter().filter_map(|(key, value)| Some((key, json!(value?))));
    Ok([("license", ids)].into_iter().chain(more).collect())
}
