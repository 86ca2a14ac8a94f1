//! Fine-tunes a classifier, or without arguments trains a small one on the bundled sample.

use std::sync::{Arc, OnceLock};

use crate::checkpoint::run_dir::RunDir;
use crate::console::{be_quiet, leave_on_interrupt, next, note, print, tell};
use crate::data::cache;
use crate::error::{Error, Result};
use crate::files::free_folder;
use crate::flags::{given, shown};
use crate::hub::push::Target;
use crate::infer::Session;
use crate::metrics::{argmax, softmax};
use crate::report::log::{counted, duration, rate};
use crate::sample;
use crate::train::args::Args;
use crate::train::evaluate::check;
use crate::train::recipe::SAMPLE;
use crate::train::train;

/// Refuses to be one of several processes of a launcher, which would all train the same model into one folder.
fn refuse_ranks() -> Result<()> {
    let set = |name: &str| std::env::var(name).ok();
    let ranks =
        [("WORLD_SIZE", None), ("SLURM_NTASKS", Some("SLURM_PROCID")), ("OMPI_COMM_WORLD_SIZE", None), ("PMI_SIZE", None)];
    for (name, needed) in ranks {
        let ranks = set(name).and_then(|ranks| ranks.trim().parse::<u64>().ok()).unwrap_or(1);
        if ranks > 1 && needed.is_none_or(|needed| set(needed).is_some()) {
            let fact = format!("is {ranks}, but training in several processes is not supported");
            return Err(Error::user(name, fact, "start one process, or unset the variable"));
        }
    }
    Ok(())
}

/// Trains; `no_effect` are flags of the command line to report.
pub fn run(args: Args, no_effect: &[String]) -> Result<()> {
    let quiet = args.quiet;
    be_quiet(quiet);
    if !no_effect.is_empty() {
        note(format!("note: no effect here: {}", no_effect.join(", ")));
    }
    if let Some(checkpoint) = &args.checkpoint {
        checkpoint.notes.iter().for_each(note);
    }
    refuse_ranks()?;
    let on_sample = args.recipe.as_deref() == Some(SAMPLE);
    if on_sample {
        note("recipe sample: a small DistilBERT from scratch on 2,000 bundled film reviews");
        sample::unpack(sample::FOLDER.as_ref())?;
    }
    let hub = args.hub_id()?.map(|id| Target::check(&id, args.hub_private_repo.unwrap_or(false))).transpose()?;
    let numbered = args.output_dir.is_none();
    // The folder made for this run.
    let made = Arc::new(OnceLock::new());
    let leave = {
        let made = made.clone();
        move || made.get().into_iter().for_each(RunDir::remove_unused)
    };
    leave_on_interrupt("before the first update: nothing was begun".to_string(), leave.clone())?;
    let labelled = args.data.test_file.clone().or(args.data.validation_file.clone());
    let classes = [
        ("label-names", args.data.label_names.as_ref().map(|names| names.0.join(","))),
        ("positive-label", args.positive_label.clone()),
    ];
    let columns = args.data.reading.flags(args.data.label_column.as_deref()) + &given(classes);
    let settings = args.settings()?;
    if numbered {
        made.get_or_init(|| settings.output_dir.clone());
    }
    let outcome = train(&settings, cache::folder().as_deref());
    if !matches!(outcome, Ok(Some(_))) {
        leave();
    }
    let Some(outcome) = outcome? else { return Ok(()) };

    let took = duration(std::time::Duration::from_secs_f64(outcome.done.seconds));
    let updates = rate(outcome.done.updates as f64 / outcome.done.seconds);
    let trained = match outcome.done.updates {
        0 => "no update was left".to_string(),
        done => format!("{} in {took} ({updates}/s)", counted(done, "update")),
    };
    tell(format!("trained     {trained}, mean loss {:.4}", outcome.train_loss))?;
    if let Some(evaluation) = &outcome.evaluation {
        tell(format!("validation  {}", evaluation.metrics.summary()))?;
    }
    if let Some(test) = &outcome.test {
        tell(format!("test        {}", test.metrics.summary()))?;
    }
    let out = settings.output_dir.display();
    tell(format!("saved       {out}"))?;
    if !on_sample {
        let (model, labelled) = (shown(&settings.output_dir), labelled.map_or("LABELLED_FILE".to_string(), |file| shown(&file)));
        let report = free_folder("report");
        next(&[
            format!("warpfit predict --model {model} \"A text to classify\""),
            format!("warpfit evaluate --model {model} {labelled}{columns} --output-dir {report}"),
        ]);
    }
    if let Some((metric, bound)) = settings.fail_under {
        let shown = outcome.test.as_ref().or(outcome.evaluation.as_ref());
        check(shown.map(|evaluation| &evaluation.metrics), metric, bound)?;
    }
    if let Some(hub) = hub {
        tell(format!("published   {}", hub.push(&settings.output_dir)?))?;
    }
    if on_sample {
        // The run has named the device.
        be_quiet(true);
        let mut classifier =
            Session::classifier(&settings.output_dir, settings.device, settings.precision, 2048, sample::SENTENCES.len())?;
        let length = classifier.source.max_length(None)?;
        let encoded = classifier.source.tokenizer()?.encode(&sample::SENTENCES, length, &|_| ())?;
        let logits = classifier.logits(&encoded, |_, _| ())?;
        be_quiet(quiet);
        print("")?;
        for (text, logits) in sample::SENTENCES.iter().zip(logits.chunks(classifier.source.config.classes())) {
            let class = argmax(logits);
            tell(format!("{:<9} {:.3}  {text}", classifier.source.config.labels[class], softmax(logits)[class]))?;
        }
        tell(
            "\nThis model is small and saw 2,000 reviews. For a real one, give a pre-trained model and your own file: the first \
             command below. The second classifies with the one just trained.",
        )?;
        // Set by `cargo run`.
        let [train, predict] = match std::env::var_os("CARGO") {
            Some(_) => ["cargo run --release --", "cargo run --release --bin warpfit -- predict"],
            None => ["warpfit train", "warpfit predict"],
        };
        next(&[
            format!("{train} --model distilbert/distilbert-base-uncased --train-file LABELLED_FILE --validation-split 0.1"),
            format!("{predict} --model {} --text \"What a film!\"", shown(&settings.output_dir)),
        ]);
    }
    Ok(())
}
