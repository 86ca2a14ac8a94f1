//! Command lines written for Hugging Face's scripts.

use crate::fixtures::golden;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;
use warpfit::device::Precision;
use warpfit::flags;
use warpfit::train::args::{Args, Strategy};
use warpfit::train::hugging_face::{NO_EFFECT, translate};
use warpfit::train::recipe;

use super::*;

/// From the README of transformers' examples/pytorch/text-classification.
const GLUE: &str = "--model_name_or_path google-bert/bert-base-cased --task_name mrpc --do_train --do_eval --max_seq_length 128 \
    --per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir /tmp/mrpc/";
const IMDB: &str = "--model_name_or_path google-bert/bert-base-cased --dataset_name imdb --do_train --do_predict \
    --max_seq_length 128 --per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir /tmp/imdb/";
const AMAZON: &str = "--model_name_or_path google-bert/bert-base-uncased --dataset_name amazon_reviews_multi \
    --dataset_config_name en --shuffle_train_dataset --metric_name accuracy \
    --text_column_name review_title,review_body,product_category --text_column_delimiter \\n --label_column_name stars \
    --do_train --do_eval --max_seq_length 512 --per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 1 \
    --output_dir /tmp/amazon_reviews_multi_en/";
const REUTERS: &str = "--model_name_or_path google-bert/bert-base-uncased --dataset_name reuters21578 \
    --dataset_config_name ModApte --shuffle_train_dataset --remove_splits unused --metric_name f1 --text_column_name text \
    --label_column_name topics --do_train --do_eval --max_seq_length 512 --per_device_train_batch_size 32 --learning_rate 2e-5 \
    --num_train_epochs 15 --output_dir /tmp/reuters21578_ModApte/";
const NO_TRAINER: &str = "--model_name_or_path google-bert/bert-base-cased --task_name mrpc --max_length 128 \
    --per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir /tmp/mrpc/";
const XNLI: &str = "--model_name_or_path google-bert/bert-base-multilingual-cased --language de --train_language en --do_train \
    --do_eval --per_device_train_batch_size 32 --learning_rate 5e-5 --num_train_epochs 2.0 --max_seq_length 128 \
    --output_dir /tmp/debug_xnli/ --save_steps -1";

/// The arguments of published notebooks, as flags: DistilBERT on IMDb's 40,000 and 25,000 reviews, BERT at 128 tokens, and emotions.
const PUBLISHED: [&str; 4] = [
    "--model_name_or_path distilbert-base-uncased --dataset_name imdb --output_dir /tmp/imdb/ --learning_rate 2e-5 \
     --per_device_train_batch_size 16 --per_device_eval_batch_size 16 --num_train_epochs 2 --weight_decay 0.01 \
     --evaluation_strategy epoch --save_strategy epoch --load_best_model_at_end True --push_to_hub False --report_to none",
    "--model_name_or_path distilbert-base-uncased --dataset_name imdb --output_dir /tmp/imdb/ --learning_rate 2e-5 \
     --per_device_train_batch_size 16 --per_device_eval_batch_size 16 --num_train_epochs 2 --weight_decay 0.01 \
     --eval_strategy epoch --save_strategy epoch --load_best_model_at_end True",
    "--model_name_or_path bert-base-uncased --dataset_name imdb --max_seq_length 128 --output_dir /tmp/imdb/ \
     --evaluation_strategy epoch --save_strategy epoch --learning_rate 2e-5 --per_device_train_batch_size 16 \
     --per_device_eval_batch_size 16 --num_train_epochs 3 --weight_decay 0.01 --logging_dir ./logs",
    "--model_name_or_path distilbert-base-uncased --dataset_name imdb --output_dir /tmp/imdb/ --num_train_epochs 2 \
     --learning_rate 2e-5 --per_device_train_batch_size 64 --per_device_eval_batch_size 64 --weight_decay 0.01 \
     --evaluation_strategy epoch --disable_tqdm False --logging_steps 250 --push_to_hub False --log_level error",
];

fn translated(line: &str) -> warpfit::Result<(Vec<String>, Vec<String>)> {
    let (words, no_effect) = translate(words(&format!("train {line}")).into_iter().map(Into::into))?;
    Ok((words.into_iter().map(|word| word.into_string().unwrap()).collect(), no_effect))
}

fn parsed(line: &str) -> Args {
    recipe::parse(translated(line).unwrap().0.into_iter().map(Into::into)).unwrap().unwrap()
}

/// A model with 512 positions to train from scratch, and labelled files.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let model = copy("train/hf_init");
        for name in ["config.json", "tokenizer_config.json"] {
            let text = fs::read_to_string(model.path().join(name)).unwrap();
            fs::write(model.path().join(name), text.replace(": 64,", ": 512,")).unwrap();
        }
        for (name, from) in [("train.csv", "train/train.csv"), ("test.csv", "train/test.csv")] {
            let rows = fs::read_to_string(golden(from)).unwrap();
            fs::write(model.path().join(name), &rows).unwrap();
            let columns = rows.replacen("text,label", "review_body,stars", 1);
            fs::write(model.path().join(format!("stars-{name}")), columns).unwrap();
            fs::write(model.path().join(format!("topics-{name}")), rows.replacen("text,label", "text,topics", 1)).unwrap();
        }
        Place(model)
    }

    /// A dry run of a line with the model, the data set and the output folder replaced.
    fn dry_run(&self, line: &str, data: &str) -> Ran {
        let mut line = words(line);
        let at = |name: &str| self.0.path().join(name).display().to_string();
        let out = at("out");
        for flag in ["--model_name_or_path", "--dataset_name", "--dataset_config_name", "--output_dir", "--task_name"] {
            if let Some(i) = line.iter().position(|word| word == &flag) {
                line.drain(i..i + 2);
            }
        }
        let (model, train, test) = (path(self.0.path()), at(&format!("{data}train.csv")), at(&format!("{data}test.csv")));
        let files = ["--model_name_or_path", model, "--train_file", &train, "--validation_file", &test, "--test_file", &test];
        let more = ["--output_dir", &out, "--from-scratch", "--device", "cpu", "--dry-run"];
        ran(TRAIN, &[&files[..], &line, &more].concat())
    }
}

#[test]
fn published_command_lines_run_as_they_are() {
    let place = Place::new();
    let note = |flags: &str| if flags.is_empty() { String::new() } else { format!("note: no effect here: {flags}") };
    for (line, data, no_effect) in [
        (IMDB, "", ""),
        (GLUE, "", ""),
        (NO_TRAINER, "", ""),
        (REUTERS, "topics-", "--shuffle_train_dataset, --remove_splits, --metric_name"),
        (
            &AMAZON.replace("review_title,review_body,product_category", "review_body"),
            "stars-",
            "--shuffle_train_dataset, --metric_name, --text_column_delimiter",
        ),
        (PUBLISHED[0], "", ""),
        (PUBLISHED[1], "", ""),
        (PUBLISHED[2], "", "--logging_dir"),
        (PUBLISHED[3], "", "--disable_tqdm, --log_level"),
    ] {
        let ran = place.dry_run(line, data).done();
        let noted = ran.err.lines().find(|line| line.contains("no effect")).unwrap_or_default();
        assert_eq!(noted, note(no_effect), "{line}");
        assert!(ran.out.contains("96 rows to train on"), "{}", ran.out);
    }

    let glue = parsed(GLUE);
    let shown = |path: &Option<std::path::PathBuf>| path.as_deref().map(|path| path.display().to_string());
    assert_eq!((shown(&glue.data.dataset).as_deref(), glue.data.dataset_config.as_deref()), (Some("nyu-mll/glue"), Some("mrpc")));
    assert_eq!((shown(&glue.model).as_deref(), glue.max_length), (Some("google-bert/bert-base-cased"), Some(128)));
    assert_eq!((glue.batch_size, glue.learning_rate, glue.epochs), (Some(32), Some(2e-5), Some(3.0)));
    assert_eq!((glue.eval_strategy, parsed(IMDB).eval_strategy), (Some(Strategy::Epoch), None));

    // What these two need is not there, and named.
    let refused = |line: &str| translated(line).unwrap_err().to_string();
    assert_eq!(
        refused(AMAZON),
        "`--text_column_name`: review_title,review_body,product_category are several columns, which are not joined; name one of \
         them, or join them in the file"
    );
    assert_eq!(refused(XNLI), "`--language`: is not supported; choose a data set without pairs of texts");
}

#[test]
fn what_hugging_faces_flags_mean() {
    for (flags, precision) in [
        ("--bf16", Precision::Bf16),
        ("--bf16 True --tf32 True", Precision::Bf16),
        ("--fp16 --fp16_opt_level O1", Precision::Fp16),
        ("--tf32 true", Precision::Tf32),
        ("--tf32=True", Precision::Tf32),
        ("--fp16 False", Precision::Fp32),
        ("--no-bf16-flag-here", Precision::Auto),
    ] {
        let flags = flags.replace("--no-bf16-flag-here", "");
        assert_eq!(parsed(&format!("--model m {flags}")).precision.unwrap_or(Precision::Auto), precision, "{flags}");
    }
    // Trainer's defaults and sentinels, whether overridden or not.
    for (flags, words) in [
        ("--max_steps -1 --seed -1", "--seed -1"),
        ("--max-steps=-1", ""),
        ("--save_total_limit -1 --save_steps -1", "--save-strategy=no"),
        ("--save_steps -1 --save_strategy epoch", "--save_steps -1 --save_strategy epoch"),
        ("--warmup_ratio 0.1 --warmup_steps 0", "--warmup-steps=0.1"),
        ("--warmup_ratio 0.1 --warmup_steps 50", "--warmup_steps 50"),
        ("--num_warmup_steps 5", "--warmup-steps=5"),
        ("--optim adamw_torch", ""),
        ("--optim=adamw_torch_fused", ""),
        ("--adafactor False --eval_delay 0 --dataloader-drop-last no", ""),
        ("--no_cuda --use_cpu False", "--device=cpu"),
        ("--do_train", ""),
        ("--do_train True --do_eval False", ""),
        ("--do-train --do-eval --do-predict", "--eval-strategy=epoch"),
        ("--do_train --do_eval --eval_strategy no", "--eval_strategy no"),
        ("--resume_from_checkpoint True", "--resume-from-checkpoint"),
        ("--resume_from_checkpoint out/checkpoint-5", "--resume_from_checkpoint out/checkpoint-5"),
        ("--greater_is_better True --metric_for_best_model eval_f1", "--metric_for_best_model eval_f1"),
        ("--greater_is_better False", ""),
        ("--tokenizer_name m --model_name_or_path m", "--model_name_or_path m"),
        ("--text_column_names text", "--text-column=text"),
        ("--report_to tensorboard", "--report-to=tensorboard"),
        ("--report_to tensorboard wandb", "--report-to=tensorboard"),
        ("--report_to all", ""),
        ("--dry-run --epochs 3", "--dry-run --epochs 3"),
    ] {
        assert_eq!(translated(flags).unwrap().0[1..].join(" "), words, "{flags}");
    }
    let no_effect = |flags: &str| translated(flags).unwrap().1;
    let flags =
        "--overwrite_cache --pad-to-max-length False --epochs 2 --ddp_timeout=1800 --report_to wandb --include_for_metrics a b";
    let noted = ["--overwrite_cache", "--pad-to-max-length", "--ddp_timeout", "--report_to wandb", "--include_for_metrics"];
    assert_eq!(no_effect(flags), noted);
    assert_eq!(no_effect("--do_train --optim adamw_torch --max_steps -1"), [""; 0]);

    let refused = |flags: &str, part: &str| {
        let fault = translated(flags).err().map_or("accepted".to_string(), |error| error.to_string());
        (!fault.contains(part)).then(|| format!("{flags}: {fault}, not {part}"))
    };
    assert_none([
        refused("--optim adafactor", "`--optim`: adafactor is not supported; use adamw_torch"),
        refused("--optim adamw_bnb_8bit", "`--optim`: adamw_bnb_8bit is not supported"),
        refused("--adafactor", "`--adafactor`: is not supported; leave it out"),
        refused("--deepspeed ds.json", "`--deepspeed`: is not supported"),
        refused("--dataloader_drop_last True", "`--dataloader_drop_last`: True is not supported"),
        refused("--hub_token hf_x", "`--hub_token`: is not supported; set HF_TOKEN instead"),
        refused("--model_revision v2", "write the model as ID@REVISION"),
        refused("--fp16 --bf16", "fp16 and bf16 exclude each other"),
        refused("--fp16 maybe", "`--fp16`: maybe is not supported; use true or false"),
        refused("--do_eval", "`--do_eval`: nothing is to be trained; pass --do_train, or use warpfit evaluate"),
        refused("--do_train False --do_predict", "nothing is to be trained"),
        refused("--warmup_ratio 1", "use a fraction below 1"),
        refused("--greater_is_better True", "True is the wrong direction for loss"),
        refused("--greater_is_better False --metric_for_best_model f1", "False is the wrong direction for f1"),
        refused("--tokenizer_name other --model_name_or_path m", "another than the model's is not supported"),
        refused("--shuffle_train_dataset --max_train_samples 10", "rows at random"),
    ]);
}

/// A flag that does nothing must not hide one that does.
#[test]
fn flags_without_effect_are_not_flags_of_train() {
    let command = flags::command::<Args>();
    let names = command.get_arguments().flat_map(|arg| {
        arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default()).map(String::from).collect::<Vec<_>>()
    });
    let own: BTreeSet<String> = names.collect();
    assert!(own.contains("num_train_epochs"));
    let shadowed: Vec<_> = NO_EFFECT.iter().filter(|name| own.contains(**name)).collect();
    assert!(shadowed.is_empty(), "{shadowed:?}");
    assert!(NO_EFFECT.is_sorted());
}

#[test]
fn the_help_lists_hugging_faces_names_and_other_defaults() {
    let help = ran(TRAIN, &["--help"]).done().out;
    let help = words(&help).join(" ");
    for part in [
        "[alias: --num-train-epochs]",
        "[alias: --per-device-train-batch-size]",
        "[alias: --max-seq-length]",
        "Without effect, and reported: --attn_implementation",
        "Defaults that differ from TrainingArguments: --eval-strategy epoch (no)",
    ] {
        assert!(help.contains(part), "{part}\n{help}");
    }
}

#[test]
fn steps_imply_their_strategy_and_constant_has_no_warm_up() {
    let place = Place::new();
    let settings = |flags: &str| {
        let out = place.0.path().join("run");
        let test = golden("train/test.csv");
        let args = [words(flags), vec!["--validation_file", path(&test), "--overwrite_output_dir", "True"]].concat();
        let ran = train(&out, &args).done();
        (read(&out, "training_args.json"), ran.err)
    };
    let (run, _) = settings("--max_steps 2 --eval_steps 2 --save_steps 2 --fp16 False");
    assert_eq!((&run["eval"], &run["save"], &run["precision"]), (&json!({"steps": 2}), &json!({"steps": 2}), &json!("fp32")));
    let (run, notes) = settings(
        "--max_steps 1 --save_strategy no --save_steps 2 --lr_scheduler_type constant --warmup_ratio 0.5 --load_best_model_at_end False",
    );
    assert_eq!((&run["save"], &run["load_best_model_at_end"]), (&json!("never"), &json!(false)));
    for (flag, needs) in
        [("--save-steps", "--save-strategy steps"), ("--warmup-steps", "--lr-scheduler-type constant_with_warmup")]
    {
        assert!(notes.contains(&format!("note: {flag} has no effect without {needs}\n")), "{notes}");
    }
    // Without validation data.
    let out = place.0.path().join("alone");
    let alone =
        train(&out, &words("--max_steps 1 --save_strategy no --max_eval_samples 2 --per_device_eval_batch_size 4")).done();
    for (flag, needs) in [("--max-eval-samples", "validation data"), ("--eval-batch-size", "validation or test data")] {
        assert!(alone.err.contains(&format!("note: {flag} has no effect without {needs}\n")), "{}", alone.err);
    }
    let never = words("--eval_strategy no --load_best_model_at_end True --validation_split 0.5 --overwrite_output_dir");
    train(&out, &never).failed(2, "`--load-best-model-at-end`: needs evaluations; pass --eval-strategy epoch");
    let (run, _) = settings("--max_steps 1 --save_strategy no --lr_scheduler_type constant_with_warmup --warmup_ratio 0.5");
    assert_eq!(run["lr_scheduler_type"], "constant_with_warmup");
}

#[test]
fn unknown_flags_are_answered_with_the_nearest() {
    assert_none(
        [
            (TRAIN, "--lr", "learning-rate"),
            (TRAIN, "--bs", "batch-size"),
            (TRAIN, "--wd", "weight-decay"),
            (TRAIN, "--num-epochs", "epochs"),
            (TRAIN, "--epoch", "epochs"),
            (TRAIN, "--num_epochs", "epochs"),
            (TRAIN, "--batch", "batch-size"),
            (TRAIN, "--train_batch_size", "batch-size"),
            (TRAIN, "--max-len", "max-length"),
            (TRAIN, "--warmup", "warmup-steps"),
            (TRAIN, "--val-file", "validation-file"),
            (TRAIN, "--model-name", "model"),
            (TRAIN, "--output", "output-dir"),
            (TRAIN, "--learnign-rate", "learning-rate"),
            (EVALUATE, "--test", "file"),
            (EVALUATE, "--maxlen", "max-length"),
        ]
        .map(|(command, unknown, wanted)| {
            let part = format!("a similar argument exists: '--{wanted}'; see");
            ran(command, &[unknown, "1"]).fault(2, &part)
        }),
    );
    let ran = ran(TRAIN, &["--xyz"]).failed(2, "unexpected argument '--xyz' found; see train --help");
    assert!(!ran.err.contains("similar"), "{}", ran.err);
}
