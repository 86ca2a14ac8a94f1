//! Vectors projected to two dimensions: a picture of the classes, its points as a table, and a measure of the fidelity.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::pca::Pca;
use super::tsne::{Neighbours, STEPS, tsne};
use crate::error::Result;
use crate::files::{write_file, write_json};
use crate::report::evaluation::inert;
use crate::report::log::Progress;
use crate::report::plot::densities;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Principal components: the plane in which the vectors vary most
    Pca,
    /// t-SNE: preserves neighbourhoods, at the price of distances and densities
    Tsne,
}

pub struct Projection {
    method: Method,
    /// (rows)
    pub points: Vec<[f64; 2]>,
    axes: [String; 2],
    /// How much of the vectors' structure the plane preserves, in words and in figures.
    pub summary: String,
    pub faithful: Value,
}

/// The rows that are projected.
pub struct Rows {
    /// (rows)
    pub ids: Vec<Value>,
    /// Indices into `classes`, (rows); all 0 if there are no classes.
    pub labels: Vec<u32>,
    pub classes: Vec<String>,
}

impl Projection {
    /// Projects vectors (rows, dim), all finite, at least one. Shows progress.
    pub fn of(method: Method, vectors: &[f32], dim: usize) -> Projection {
        let Pca { points, shares } = Pca::of(vectors, dim);
        match method {
            Method::Pca => {
                let axes = [0, 1].map(|i| format!("component {}: {:.1} % of the variance", i + 1, 100.0 * shares[i]));
                let summary = format!("{}; together {:.1} %", axes.join(", "), 100.0 * (shares[0] + shares[1]));
                Projection { method, points, axes, summary, faithful: json!({"explained_variance_ratio": shares}) }
            }
            Method::Tsne => {
                let progress = Progress::new("neighbours", points.len() as u64, &["texts"]);
                let neighbours = Neighbours::of(vectors, dim, || progress.add(&[1]));
                progress.finish("");
                let progress = Progress::new("t-SNE", STEPS as u64, &["steps"]);
                let (points, divergence) = tsne(&neighbours, &points, || progress.add(&[1]));
                progress.finish("");
                let perplexity = neighbours.perplexity;
                let summary = format!("KL divergence {divergence:.4} at a perplexity of {perplexity:.0}");
                let faithful = json!({"kl_divergence": divergence, "perplexity": perplexity, "steps": STEPS});
                Projection { method, points, axes: ["t-SNE 1", "t-SNE 2"].map(String::from), summary, faithful }
            }
        }
    }

    /// Writes the picture, .csv and .json into a folder, named after the method; returns the path of the picture. `of` names
    /// the data in the title; `about` is added to the figures in the .json.
    pub fn write(&self, folder: &Path, rows: &Rows, of: &str, mut about: Map<String, Value>) -> Result<PathBuf> {
        let (name, stem) = match self.method {
            Method::Pca => ("PCA", "pca"),
            Method::Tsne => ("t-SNE", "tsne"),
        };
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(["id", "label", "x", "y"]).expect("writing to memory succeeds");
        for ((id, &label), point) in rows.ids.iter().zip(&rows.labels).zip(&self.points) {
            let id = id.as_str().map_or_else(|| id.to_string(), inert);
            let label = rows.classes.get(label as usize).map(|name| inert(name)).unwrap_or_default();
            let [x, y] = point.map(|value| (value as f32).to_string());
            csv.write_record([id, label, x, y]).expect("writing to memory succeeds");
        }
        write_file(&folder.join(stem).with_extension("csv"), &csv.into_inner().expect("writing to memory succeeds"))?;
        about.extend(self.faithful.as_object().cloned().into_iter().flatten());
        write_json(&folder.join(stem).with_extension("json"), &Value::from(about))?;
        let panels = if rows.classes.is_empty() { &["all".to_string()] } else { &rows.classes[..] };
        let axes = self.axes.each_ref().map(String::as_str);
        let picture = folder.join(stem).with_extension("svg");
        write_file(&picture, densities(&format!("{name} of {of}"), axes, panels, &self.points, &rows.labels).as_bytes())?;
        Ok(picture)
    }
}
