//! Writes the hidden states of texts as vectors, projects them to two dimensions, or measures a linear classifier on them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::checkpoint::model_dir::ModelDir;
use crate::checkpoint::weights;
use crate::console::{Look, leave_on_interrupt, next, note, notice_interrupts, print, tell};
use crate::data::dataset::{Classes, Dataset, ModelClasses, Table, classify};
use crate::data::inputs::{self, Batches, Content, Input, LineFormat};
use crate::data::loader::randperm;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};
use crate::files::{PartialFile, create_dir, free_folder, keep_inputs, remove_partial_files, write_json};
use crate::flags::{InputArgs, RunArgs, SplitArgs, count, seed, shown, unless_dash};
use crate::hub;
use crate::infer::pooling::Pooling;
use crate::infer::probe::Probe;
use crate::infer::projection::{self, Method, Projection};
use crate::infer::{Options, Session, npy};
use crate::metrics::Metrics;
use crate::model::config::Config;
use crate::report::log::{Count, Progress, counted, fitting, shortened, table, truncated};
use crate::train::data::encode;
use clap::{ArgGroup, Parser, ValueEnum};
use serde_json::{Map, Value, json};

/// Turn texts into vectors: the hidden states of any layer, of the CLS token or averaged.
///
/// --project draws where each class lies among the vectors, in two dimensions. --probe fits a logistic regression to the
/// vectors of one labelled file and measures it on another, beside the majority class: what the model knows without
/// fine-tuning.
#[derive(Parser)]
#[command(name = "embed", group(ArgGroup::new("instead").args(["project", "probe"])))]
pub struct Args {
    /// Model, trained or not: a folder, or a Hugging Face hub id: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    model: PathBuf,
    /// Texts, in any format that predict reads; with --project in any format that train reads, with or without labels
    /// [default: -, one text per line on standard input]
    #[arg(long, visible_alias = "file", value_name = "FILE", conflicts_with = "dataset")]
    input: Option<PathBuf>,
    /// The same as --input
    #[arg(value_name = "FILE", conflicts_with_all = ["input", "dataset", "probe"])]
    only_file: Option<PathBuf>,
    #[command(flatten)]
    split: SplitArgs,
    /// Format of the lines of standard input or --input; with --project, lines without labels [default: by the file's
    /// extension; text for standard input]
    #[arg(long, value_name = "FORMAT", conflicts_with = "dataset")]
    input_format: Option<LineFormat>,
    /// Write to this file, atomically [default: -, standard output]
    #[arg(long, value_name = "FILE", conflicts_with = "instead")]
    output: Option<PathBuf>,
    /// Format of the vectors [default: by the extension of --output: .npy, .safetensors, .jsonl, .json or .ndjson (jsonl)]
    #[arg(long, value_enum, conflicts_with = "instead")]
    format: Option<Format>,
    /// Layer: 0 for the embeddings, 1 for the first layer, and so on; -1 for the last, counted from the end
    #[arg(long, value_name = "N", default_value_t = -1)]
    layer: i64,
    /// How the states of a text become one vector
    #[arg(long, value_enum, default_value_t = Pooling::Cls)]
    pooling: Pooling,
    /// Scale every vector to length 1
    #[arg(long)]
    normalize: bool,
    /// Project the vectors to two dimensions, and draw where each class lies
    #[arg(long, value_enum, value_name = "METHOD", requires = "output_dir")]
    project: Option<Method>,
    /// Project at most this many texts, sampled with --seed; the time of t-SNE grows with their square
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 5000, requires = "project")]
    max_samples: usize,
    /// Random seed of that sample
    #[arg(long, value_name = "N", value_parser = seed, default_value_t = 42, requires = "project")]
    seed: u64,
    /// Fit a logistic regression to the vectors of --train-file and measure it on --test-file
    #[arg(long, requires_all = ["train_file", "test_file"], conflicts_with_all = ["input", "input_format"])]
    #[arg(conflicts_with_all = ["dataset", "dataset_config", "split"])]
    probe: bool,
    /// Labelled texts to fit, in any format that train reads; for --probe
    #[arg(long, value_name = "FILE", requires = "probe")]
    train_file: Option<PathBuf>,
    /// Labelled texts to measure on; for --probe
    #[arg(long, value_name = "FILE", requires = "probe")]
    test_file: Option<PathBuf>,
    /// Folder for the results of --project (pca.svg, the points pca.csv, their quality pca.json) or of --probe (probe.json)
    #[arg(long, value_name = "DIR", requires = "instead")]
    output_dir: Option<PathBuf>,
    /// Column of the labels [default: found by its name]
    #[arg(long, value_name = "NAME", requires = "instead")]
    label_column: Option<String>,
    #[command(flatten)]
    reading: InputArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Most texts per batch.
const BATCH: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// NumPy's array file, (rows, dim), f32
    Npy,
    /// One tensor, `embeddings`, (rows, dim), f32
    Safetensors,
    /// One object per line: id and embedding
    Jsonl,
}

impl Format {
    /// That of a file of this name, or of standard output.
    ///
    /// # Errors
    /// The name is one of a format that vectors do not have.
    fn of(output: Option<&Path>) -> Result<Format> {
        match output.and_then(Path::extension).map(OsStr::to_string_lossy).as_deref() {
            None | Some("jsonl" | "json" | "ndjson") => Ok(Format::Jsonl),
            Some("npy") => Ok(Format::Npy),
            Some("safetensors") => Ok(Format::Safetensors),
            Some(ending) => {
                let fact = format!("vectors have no format for .{ending}");
                Err(Error::user("--output", fact, "name a .npy, .safetensors or .jsonl file, or pass --format"))
            }
        }
    }
}

pub fn run(mut args: Args) -> Result<()> {
    (args.input, args.output) = (unless_dash(args.input.or(args.only_file.take())), unless_dash(args.output));
    let reading = &args.reading;
    let device = args.run.device()?;
    if let Some(output) = &args.output {
        keep_inputs(output, &[ModelDir::files(&args.model), Vec::from_iter(args.input.clone())].concat())?;
    }
    let format = args.format.map_or_else(|| Format::of(args.output.as_deref()), Ok)?;
    if format != Format::Jsonl && args.output.is_none() {
        return Err(Error::user("--format", "only jsonl goes to standard output", "pass --output FILE"));
    }
    let unfinished = match (&args.output, &args.output_dir) {
        (Some(file), _) => Some(format!("{} is not written", file.display())),
        (None, Some(folder)) => Some(format!("{} is not complete", folder.display())),
        (None, None) => None,
    };
    unfinished.map_or(Ok(()), |fact| leave_on_interrupt(fact, remove_partial_files))?;
    let options = Options {
        device,
        precision: args.run.precision,
        tokens: Some(reading.max_batch_tokens),
        texts: BATCH,
        layer: args.layer,
        pooling: args.pooling,
    };
    let mut session = Session::open(&hub::model(&args.model)?, &options)?;
    let folder = args.output_dir.as_deref();
    folder.map_or(Ok(()), create_dir)?;
    match (args.project, folder) {
        (Some(method), Some(folder)) => project(&args, method, folder, &mut session),
        _ if args.probe => probe(&args, folder, &mut session),
        _ => embed(&args, format, &mut session),
    }
}

/// The rows of --input or of standard input, without labels.
fn batches(args: &Args, format: Option<LineFormat>, session: &Session) -> Result<Batches> {
    let (split, options) = (args.split.files()?, args.reading.file.texts());
    if let (Some(output), Some(files)) = (&args.output, &split) {
        keep_inputs(output, files)?;
    }
    inputs::given(split.as_deref(), args.input.as_deref(), format, &options, session.limits())
}

/// JSON lines are written as they are computed; the other formats begin with the number of rows and are written at the end.
fn embed(args: &Args, format: Format, session: &mut Session) -> Result<()> {
    let max_length = session.source.max_length(args.run.max_length)?;
    let batches = batches(args, args.input_format, session)?;
    let mut file = args.output.as_deref().map(PartialFile::create).transpose()?;
    let progress = args.output.is_some().then(|| Progress::new("embedding", None, &["texts", "tokens"]));
    let dim = session.dim();
    let (mut rows, mut cut, mut vectors) = (0, 0, Vec::new());
    for batch in batches {
        let batch = batch?;
        let encoded = session.source.encode(&batch, max_length)?;
        let embedded = session.vectors(&encoded, args.normalize, |texts, tokens| {
            progress.iter().for_each(|progress| progress.add(&[texts as u64, tokens as u64]));
        })?;
        rows += batch.len();
        cut += encoded.truncated();
        if format != Format::Jsonl {
            vectors.extend(embedded);
            continue;
        }
        for (input, vector) in batch.iter().zip(embedded.chunks_exact(dim)) {
            let line = json!({"id": input.id, "embedding": vector});
            match &mut file {
                Some(file) => file.write(format!("{line}\n").as_bytes())?,
                None => print(line)?,
            }
        }
    }
    if let (0, Some(file)) = (rows, &args.input) {
        return Err(Error::user(file.display(), "no rows", "give at least one row"));
    }
    if let Some(mut file) = file {
        match format {
            Format::Npy => npy::write(&mut file, &vectors, dim)?,
            Format::Safetensors => weights::write_to(&mut file, &[("embeddings", [rows, dim], &vectors)])?,
            Format::Jsonl => (),
        }
        // A signal comes too late to undo what follows.
        notice_interrupts()?;
        file.finish()?;
    }
    if let Some(progress) = progress {
        progress.finish(&truncated(cut, max_length));
    }
    if let Some(file) = &args.output {
        note(format!("saved       {}", file.display()));
    }
    if let Some(file) = &args.input {
        let (model, file, columns) = (shown(&args.model), shown(file), args.reading.file.flags(None));
        let folder = free_folder("projected");
        next(&[format!("warpfit embed --model {model} {file}{columns} --project pca --output-dir {folder}")]);
    }
    Ok(())
}

fn project(args: &Args, method: Method, folder: &Path, session: &mut Session) -> Result<()> {
    let max_length = session.source.max_length(args.run.max_length)?;
    let (classes, mut inputs, mut labels) = labelled(args, session)?;
    let of = inputs.len();
    if of > args.max_samples {
        let [most, all] = [args.max_samples, of].map(|texts| Count(texts as u64));
        note(format!("{most} of {all} texts, sampled with --seed {}; --max-samples sets the limit", args.seed));
        let mut drawn = randperm(of, args.seed);
        drawn.truncate(args.max_samples);
        drawn.sort_unstable();
        (inputs, labels) = drawn.into_iter().map(|row| (inputs[row as usize].clone(), labels[row as usize])).unzip();
    }
    let encoded = session.source.encode(&inputs, max_length)?;
    let progress = Progress::new("embedding", encoded.rows() as u64, &["texts", "tokens"]);
    let vectors = session.vectors(&encoded, args.normalize, |texts, tokens| progress.add(&[texts as u64, tokens as u64]))?;
    progress.finish(&truncated(encoded.truncated(), max_length));
    let projection = Projection::of(method, &vectors, session.dim());

    let layer = match args.layer {
        -1 => "last layer".to_string(),
        0 => "embeddings".to_string(),
        layer => format!("layer {layer}"),
    };
    let pooling = match args.pooling {
        Pooling::Cls => "[CLS]",
        Pooling::Mean => "mean of the tokens",
    };
    let model = args.model.file_name().unwrap_or(args.model.as_os_str()).to_string_lossy();
    let title = format!("{}: {model}, {layer}, {pooling}", counted(inputs.len(), "text"));
    let mut about = features(args);
    about.extend([("rows", inputs.len().into()), ("of", of.into()), ("seed", args.seed.into())].map(|(k, v)| (k.into(), v)));
    about.insert("classes".into(), json!(classes));
    let rows = projection::Rows { ids: inputs.into_iter().map(|input| input.id).collect(), labels, classes };
    let picture = projection.write(folder, &rows, &title, about)?;
    notice_interrupts()?;
    tell(projection.summary)?;
    tell(format!("saved       {}", picture.display()))?;
    let model = shown(&args.model);
    next(&[format!("warpfit embed --model {model} --probe --train-file LABELLED_FILE --test-file OTHER_LABELLED_FILE")]);
    Ok(())
}

/// The class names, the rows to project, and their labels; without labels no names, and 0 for each row.
fn labelled(args: &Args, session: &Session) -> Result<(Vec<String>, Vec<Input>, Vec<u32>)> {
    let options = args.reading.columns(args.label_column.as_deref());
    let (file, format) = match (&args.input, args.input_format) {
        (Some(file), None) if inputs::is_table(file, &options)? => (Some(vec![file.clone()]), None),
        (Some(_), None) => (None, Some(LineFormat::Text)),
        (_, format) => (None, format),
    };
    let Some(files) = args.split.files()?.or(file) else {
        let batches = batches(args, format, session)?.collect::<Result<Vec<_>>>()?;
        if batches.is_empty() {
            let place = args.input.as_deref().unwrap_or(Path::new("standard input"));
            return Err(Error::user(place.display(), "no rows", "give at least one row"));
        }
        let inputs = batches.concat();
        let labels = vec![0; inputs.len()];
        return Ok((Vec::new(), inputs, labels));
    };
    let mut table = Table::read_all(&files, &options)?;
    let config = &session.source.config;
    let ids = std::mem::take(&mut table.ids);
    let (names, Dataset { texts, labels }) = match table.labels {
        Some(_) => {
            let (classes, mut data) = classify_with(config, vec![table])?;
            (classes.names, data.remove(0))
        }
        None => (Vec::new(), Dataset { labels: vec![0; table.texts.len()], texts: table.texts }),
    };
    let input = |(row, text)| {
        let id = ids.get(row).cloned().unwrap_or(Value::from(row));
        Input { id, columns: Map::new(), content: Content::Text(text), place: files[0].display().to_string() }
    };
    Ok((names, texts.into_iter().enumerate().map(input).collect(), labels))
}

/// The model's classes if the labels fit them, else their own; reports how the labels were read.
fn classify_with(config: &Config, tables: Vec<Table>) -> Result<(Classes, Vec<Dataset>)> {
    let model = ModelClasses::Replaceable(config.labels_named.then_some(&config.labels));
    let (classes, data) = classify(tables, model, None)?;
    classes.notes.iter().for_each(|line| note(format!("note: {line}")));
    Ok((classes, data))
}

/// The layer and pooling of the vectors, for a file of results.
fn features(args: &Args) -> Map<String, Value> {
    let pooling = args.pooling.to_possible_value().expect("none is hidden").get_name().to_string();
    let features = [("layer", json!(args.layer)), ("pooling", json!(pooling)), ("normalize", json!(args.normalize))];
    features.map(|(key, value)| (key.to_string(), value)).into_iter().collect()
}

fn probe(args: &Args, folder: Option<&Path>, session: &mut Session) -> Result<()> {
    let files = args.train_file.as_deref().zip(args.test_file.as_deref()).expect("clap requires both");
    let columns = args.reading.columns(args.label_column.as_deref());
    let (train, test) = (Table::read(files.0, &columns)?, Table::read(files.1, &columns)?);
    let config = &session.source.config;
    let (Classes { names, .. }, data) = classify_with(config, vec![train, test])?;
    let [train, test]: [Dataset; 2] = data.try_into().expect("one for each table");
    if let Some(label) = test.labels.iter().find(|label| !train.labels.contains(label)) {
        let fact = format!("no text has the label {}, which texts of {} have", names[*label as usize], files.1.display());
        return Err(Error::user(files.0.display(), fact, "give files with the same classes"));
    }
    let max_length = session.source.max_length(args.run.max_length)?;
    let [train, test] = [("training", train), ("test", test)].map(|(what, dataset)| -> Result<(Vec<f32>, Vec<u32>)> {
        let encoded: Encoded = encode(what, dataset, session.source.tokenizer()?, max_length)?;
        let progress = Progress::new(&format!("embedding {what}"), encoded.rows() as u64, &["texts", "tokens"]);
        let vectors = session.vectors(&encoded, args.normalize, |texts, tokens| progress.add(&[texts as u64, tokens as u64]))?;
        progress.finish("");
        Ok((vectors, encoded.labels))
    });
    let ((train, train_labels), (test, labels)) = (train?, test?);

    let progress = Progress::new("fitting", None, &["steps"]);
    let probe = Probe::fit(&train, &train_labels, names.len(), |gradient| {
        progress.note(format!("gradient {gradient:.1e}"));
        progress.add(&[1]);
    })?;
    progress.finish(if probe.converged() { "" } else { "warning: the fit has not converged" });

    let metrics = Metrics::from_scores(&labels, &probe.scores(&test), names.len(), 1)?;
    let count = |class: usize| train_labels.iter().filter(|&&label| label as usize == class).count();
    let majority = (0..names.len()).rev().max_by_key(|&class| count(class)).expect("there are classes");
    let constant: Vec<f64> = labels.iter().flat_map(|_| (0..names.len()).map(|c| f64::from(c == majority))).collect();
    let baseline = Metrics::from_scores(&labels, &constant, names.len(), 1)?;

    let row = |what: String, metrics: &Metrics| [what, format!("{:.4}", metrics.accuracy), format!("{:.4}", metrics.weighted.f1)];
    let head = ["", "accuracy", "weighted F1"].map(String::from);
    let fitting = fitting(&names);
    let always = format!("always {}", fitting[majority]);
    print(table(&[head, row(always, &baseline), row("logistic regression".into(), &metrics)]))?;
    print(metrics.classification_report(&fitting, 4))?;
    let short: Vec<String> = names.iter().map(|name| shortened(name, 18)).collect();
    let head = [vec!["true \\ predicted".to_string()], short.clone()].concat();
    let counts =
        |(name, counts): (&String, &Vec<u64>)| [vec![name.clone()], counts.iter().map(u64::to_string).collect()].concat();
    let rows = short.iter().zip(&metrics.confusion_matrix).map(counts);
    let matrix = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    let widest = matrix.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    match Look::of_stdout().columns.is_some_and(|columns| widest > columns) {
        true => note("the confusion matrix is wider than the terminal; --output-dir writes it to probe.json"),
        false => print(matrix.trim_end())?,
    }
    if let Some(folder) = folder {
        let mut about = features(args);
        let figures = json!({
            "classes": names,
            "iterations": probe.iterations,
            "gradient": probe.gradient,
            "converged": probe.converged(),
            "weights": probe.weights.chunks_exact(probe.dim + 1).map(Value::from).collect::<Vec<Value>>(),
            "majority": {"class": names[majority], "metrics": baseline},
            "probe": metrics,
        });
        about.extend(figures.as_object().cloned().into_iter().flatten());
        let path = folder.join("probe.json");
        write_json(&path, &Value::from(about))?;
        notice_interrupts()?;
        note(format!("saved       {}", path.display()));
    }
    let model = shown(&args.model);
    let [train, test] = [files.0, files.1].map(shown);
    let other_head = session.source.needs_other_head(names).unwrap_or(false);
    let head = if other_head { " --ignore-mismatched-sizes" } else { "" };
    let out = free_folder("out");
    let columns = args.reading.file.flags(args.label_column.as_deref());
    next(&[format!(
        "warpfit train --model {model} --train-file {train} --validation-file {test}{columns}{head} --output-dir {out}"
    )]);
    Ok(())
}
