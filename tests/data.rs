//! Reading, splitting, packing and loading of texts and labels.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::data::dataset::{Dataset, ModelClasses, Options, Splits, Table, classify, overlap, splits, stratified_split};
use warpfit::data::loader::{Loader, randperm, row_order};
use warpfit::data::pack::PackedBatch;
use warpfit::data::tokenize::Encoded;

use crate::fixtures::golden;

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|s| s.to_string()).collect()
}

/// Reads `content` as a file of that name.
fn read(name: &str, content: impl AsRef<[u8]>) -> warpfit::Result<Table> {
    read_with(name, content, &Options::default())
}

fn read_with(name: &str, content: impl AsRef<[u8]>, options: &Options) -> warpfit::Result<Table> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    Table::read(&path, options)
}

/// The error must be one line; its place must end in `place` and the rest contain `part`.
#[track_caller]
pub fn assert_error<T>(result: warpfit::Result<T>, place: &str, part: &str) {
    let line = result.err().expect("an error").to_string();
    assert!(!line.contains('\n') && line.contains("; "), "one line with a remedy: {line}");
    let (at, rest) = line.split_once("`: ").unwrap();
    assert!(at.ends_with(place) && rest.contains(part), "wanted {place} ... {part}, got {line}");
}

pub fn csv(content: &str) -> Table {
    read("a.csv", content).unwrap()
}

/// Names and labels of one table used for training.
fn label(table: Table, model: Option<&[String]>) -> warpfit::Result<(Vec<String>, Vec<u32>)> {
    let (classes, mut data) = classify(vec![table], ModelClasses::Replaceable(model), None)?;
    Ok((classes.names, data.remove(0).labels))
}

// ---- dataset: formats

#[test]
fn csv_follows_rfc_4180() {
    let table = csv("\u{feff}id,text,label\r\n1,\"a, \"\"b\"\"\r\nc\",pos\r\n\r\n2,<br />  d ,neg\r\n3,,pos\r\n");
    assert_eq!(table.texts, ["a, \"b\"\r\nc", "<br />  d ", ""]);
    assert_eq!(table.labels, Some(strings(&["pos", "neg", "pos"])));
    // Rows start on these lines, for any line ends and with lines inside quotes.
    assert!([(0, ":2"), (1, ":5"), (2, ":6")].iter().all(|(row, line)| table.place(*row).ends_with(line)));
}

#[test]
fn golden_csv() {
    let table = Table::read(&golden("train/train.csv"), &Options::default()).unwrap();
    assert_eq!((table.texts.len(), table.texts[0].as_str()), (96, "screen: fine, good and lovely"));
    let (names, labels) = label(table, None).unwrap();
    assert_eq!((names, &labels[..3]), (strings(&["LABEL_0", "LABEL_1"]), [1, 0, 1].as_slice()));
}

#[test]
fn tsv_and_delimiters() {
    assert_eq!(read("a.tsv", "text\tlabel\na, b\t1\n").unwrap().texts, ["a, b"]);
    let options = Options { delimiter: Some(b';'), ..Default::default() };
    assert_eq!(read_with("A.CSV", "text;label\na, b;1\n", &options).unwrap().texts, ["a, b"]);
}

#[test]
fn json_lines_of_any_label_kind() {
    let table =
        read("a.jsonl", "\u{feff}{\"text\":\"\\u0000a\\nb\",\"label\":1}\r\n\n{\"label\":true,\"text\":\"\"}\n{\"text\":\"c\"}")
            .unwrap();
    assert_eq!(table.texts, ["\0a\nb", "", "c"]);
    assert_eq!(table.labels, Some(strings(&["1", "true", ""])));
    assert!(table.place(1).ends_with("a.jsonl:3"));
}

#[test]
fn json_arrays_and_json_lines_under_one_ending() {
    let rows = [json!({"text": "[1]", "label": "a"}), json!({"label": 2, "text": "\u{1}", "id": [3]})];
    let lines = rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    for (content, line) in [
        (json!(rows).to_string(), ":1"),
        (format!("\u{feff}\n {:#}", json!(rows)), ":7"),
        (format!("[\r\n{},\r\n\r\n{}]\r\n", rows[0], rows[1]), ":4"),
        (lines, ":2"),
    ] {
        let table = read("a.JSON", &content).unwrap();
        assert_eq!(
            (&table.texts[..], table.labels.as_deref().unwrap()),
            (&strings(&["[1]", "\u{1}"])[..], &strings(&["a", "2"])[..])
        );
        assert!(table.place(1).ends_with(&format!("a.JSON{line}")), "{} {content}", table.place(1));
    }
}

#[test]
fn one_text_and_label_per_line() {
    let texts = |content: &str| read("a.txt", content).map(|table| (table.texts, table.labels.unwrap()));
    let rows = (strings(&["a; b", " c "]), strings(&["joy", "<3"]));
    assert_eq!(texts("a; b;joy\n c ;<3").unwrap(), rows, "no header");
    for header in ["text;label_name", " Sentence ;Emotion", "review;class"] {
        assert_eq!(texts(&format!("\u{feff}{header}\r\n\r\na; b;joy\r\n c ;<3\r\n")).unwrap(), rows);
    }
    assert_eq!(texts("text;joy\nlabel;text\n").unwrap().0, ["text", "label"], "not the names of a text and a label column");
    let named = Options {
        text_column: Some("phrase".into()),
        label_column: Some("mood".into()),
        delimiter: Some(b'\t'),
        ..Default::default()
    };
    let table = read_with("a.txt", "phrase\tmood\na;b\tc\n", &named).unwrap();
    assert_eq!((&table.texts[0], table.place(0).ends_with("a.txt:2")), (&"a;b".to_string(), true));
    assert_error(read_with("a.txt", "a\tb\n", &named), "a.txt", "no column is named phrase; the columns are text, label");

    // What is given decides, not the first line.
    let headed = |no_header, content: &str| {
        let table = read_with("a.txt", content, &Options { no_header: Some(no_header), ..Default::default() }).unwrap();
        (table.texts, table.labels.unwrap())
    };
    assert_eq!(headed(true, "text;label\na;joy\n").0, ["text", "a"]);
    let rows = (strings(&["a dull film", "a good one"]), strings(&["fear", "joy"]));
    assert_eq!(headed(false, "Satz;Klasse\na dull film;fear\na good one;joy\n"), rows);
    let quoted = Options { quoting: Some(true), ..Default::default() };
    let table = read_with("a.txt", "text;label\n\"a; b\";\"joy\"\nc;joy\n", &quoted).unwrap();
    assert_eq!((table.texts, table.labels.unwrap()), (strings(&["a; b", "c"]), strings(&["joy", "joy"])));

    assert_error(texts("text;label\n\n"), "a.txt", "no rows");
    assert_error(texts("a;1\n\nb\n"), "a.txt:3", "there is no ; between a text and a label");
    assert_error(label(read("a.txt", "a;1\nb; \n").unwrap(), None), "a.txt:2", "the label is missing");
}

#[test]
fn fasttext_lines() {
    for name in ["a.txt", "train.ft.txt", "a.ft", "a.fasttext"] {
        let table = read(name, "\n__label__2 a;b  __label__ \r\n__label__good,1\t c\n__label__2\n").unwrap();
        assert_eq!(table.texts, ["a;b  __label__ ", " c", ""]);
        assert_eq!((table.place(1).ends_with(":3"), table.labels.unwrap()), (true, strings(&["2", "good,1", "2"])));
    }
    assert_error(read("a.txt", "__label__1 a\nb;1\n"), "a.txt:2", "the line does not start with __label__");
    assert_error(read("a.txt", "__label__1 __label__2 a\n"), "a.txt:1", "there are two labels");
    assert_error(label(read("a.txt", "__label__1 a\n__label__ b\n").unwrap(), None), "a.txt:2", "the label is missing");
}

/// Writes files below a folder, creating subfolders.
pub fn put(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }
}

#[test]
fn folders_of_reviews() {
    let dir = TempDir::new().unwrap();
    put(
        dir.path(),
        &[
            ("train/pos/10_9.txt", "<br />ten\n"),
            ("train/pos/9_7.txt", "nine"),
            ("train/pos/9_10.txt", ""),
            ("train/neg/2_1.txt", "two"),
            ("train/neg/.hidden.txt", "x"),
            ("train/neg/urls.dat", "x"),
            ("train/unsup/0_0.txt", "x"),
        ],
    );
    let read = || Table::read(&dir.path().join("train"), &Options::default());
    let table = read().unwrap();
    assert_eq!(table.texts, ["two", "", "nine", "<br />ten\n"], "neg first, then by number");
    assert_eq!(table.place(2), format!("{}:1", dir.path().join("train/pos/9_7.txt").display()));
    assert_eq!(label(table, None).unwrap(), (strings(&["neg", "pos"]), vec![0, 1, 1, 1]));

    fs::write(dir.path().join("train/pos/9_7.txt"), b"caf\xe9 x").unwrap();
    assert_error(read(), "pos/9_7.txt:1", "not UTF-8");
    fs::remove_dir_all(dir.path().join("train/pos")).unwrap();
    assert_error(read(), "train/pos", "no such file or folder");
    fs::remove_file(dir.path().join("train/neg/2_1.txt")).unwrap();
    fs::create_dir(dir.path().join("train/pos")).unwrap();
    assert_error(read(), "train", "no rows");
    assert_error(Table::read(dir.path(), &Options::default()), "", "is a folder; name a file, or a folder with");
}

#[test]
fn the_files_of_a_split_are_one_table() {
    let dir = TempDir::new().unwrap();
    let names = ["train-00000-of-00003.csv", "train-00001-of-00003.jsonl", "train-00002-of-00003.txt"];
    put(
        dir.path(),
        &[
            (names[0], "text,label\na,x\nb,y\n"),
            (names[1], "\n{\"label\": \"x\", \"text\": \"c\"}\n"),
            (names[2], "d;y\ne;\n"),
            ("other.csv", "review,label\na,x\n"),
            ("ids.csv", "id,text,label\n7,a,x\n"),
            ("none.csv", "text,label\n"),
        ],
    );
    let read_all = |names: &[&str]| {
        Table::read_all(&names.iter().map(|name| dir.path().join(name)).collect::<Vec<_>>(), &Options::default())
    };
    let table = read_all(&names).unwrap();
    assert_eq!((table.path(), &table.texts[..]), (dir.path().join(names[0]).as_path(), &strings(&["a", "b", "c", "d", "e"])[..]));
    assert_eq!(table.labels.as_ref().unwrap()[..4], strings(&["x", "y", "x", "y"]));
    for (row, place) in [(1, "00000-of-00003.csv:3"), (2, "00001-of-00003.jsonl:2"), (4, "00002-of-00003.txt:2")] {
        assert!(table.place(row).ends_with(place), "{}", table.place(row));
    }
    assert_error(label(table, None), "00002-of-00003.txt:2", "the label is missing");
    assert_eq!(read_all(&["none.csv", names[0]]).unwrap().texts.len(), 2, "a shard may be empty, a split may not");
    assert_error(read_all(&["none.csv", "none.csv"]), "none.csv", "no rows");
    for other in ["other.csv", "ids.csv"] {
        assert_error(read_all(&[names[0], other]), other, "its columns or classes differ from those of");
    }
    // All files together decide which of two unknown columns is the text.
    put(dir.path(), &[("1.csv", "a,b\nlong enough,x\n"), ("2.csv", "a,b\n,longer\n")]);
    assert_eq!(read_all(&["1.csv", "2.csv"]).unwrap().texts, ["long enough", ""]);
}

#[test]
fn splits_of_a_folder() {
    let found = |files: &[&str]| {
        let dir = TempDir::new().unwrap();
        put(dir.path(), &files.iter().map(|name| (*name, "x")).collect::<Vec<_>>());
        let relative = |paths: Vec<PathBuf>| {
            paths
                .iter()
                .map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        splits(dir.path()).map(|Splits { train, validation, test }| [train, validation, test].map(relative))
    };
    for (files, wanted) in [
        (
            &["train.txt", "val.txt", "test.txt", "README.md", "train.txt.bak", "trained.csv"][..],
            ["train.txt", "val.txt", "test.txt"],
        ),
        (&["Train.csv", "Valid.csv", "Test.csv", "data/train.csv"], ["Train.csv", "Valid.csv", "Test.csv"]),
        (&["train.ft.txt", "dev.jsonl"], ["train.ft.txt", "dev.jsonl", ""]),
        (&["validation.parquet", ".train.csv"], ["", "validation.parquet", ""]),
        (
            &[
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/test-00000-of-00001-b42a775f407cee45.parquet",
            ],
            [
                "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
                "",
                "data/test-00000-of-00001-b42a775f407cee45.parquet",
            ],
        ),
        (
            &[
                "plain_text/train-00000-of-00001.parquet",
                "plain_text/unsupervised-00000-of-00001.parquet",
                ".cache/train.csv",
                "README.md",
            ],
            ["plain_text/train-00000-of-00001.parquet", "", ""],
        ),
        (
            &["train/neg/0_1.txt", "train/pos/0_9.txt", "train/unsup/0_0.txt", "test/pos/0_9.txt", "imdb.vocab"],
            ["train", "", "test"],
        ),
        (&["aclImdb/train/neg/0_1.txt", "aclImdb/test/pos/0_9.txt"], ["aclImdb/train", "", "aclImdb/test"]),
    ] {
        assert_eq!(found(files).unwrap(), wanted, "{files:?}");
    }
    for (files, part) in [
        (&["a.csv", "train/a.csv", "a/b/train.csv"][..], "there is no training, validation or test data in this folder"),
        (&["a/train.csv", "b/test.csv"], "several folders hold data sets: a, b; name one"),
        (&["train.csv", "train.jsonl"], "several files may be its train data: train.csv, train.jsonl; keep one of them"),
        (&["dev.csv", "val.csv"], "several files may be its validation data: dev.csv, val.csv; keep one of them"),
        (&["test.csv", "test/neg/0_0.txt"], "several files may be its test data: test, test.csv"),
        (&["train-00000-of-00001.csv", "train.csv"], "several files may be its train data"),
        (&["train-00000-of-00002.csv", "train-00000-of-00002-hash.csv"], "several files may be its train data"),
        (
            &["train-00000-of-00001.csv", "train-00000-of-00002.csv", "train-00001-of-00002.csv"],
            "several files may be its train data",
        ),
        (&["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "shard 00001 of 3 of its train data is missing"),
        (&["data/test-00000-of-00002.parquet"], "shard 00001 of 2 of its test data is missing"),
    ] {
        assert_error(found(files), "", part);
    }
    let dir = TempDir::new().unwrap();
    put(dir.path(), &[("file", "")]);
    assert_error(splits(&dir.path().join("none")), "none", "no such file or folder");
    assert_error(splits(&dir.path().join("file")), "file", "Not a directory");
}

#[test]
fn columns_by_name_by_flag_and_by_content() {
    assert_eq!(csv("sentiment,Review,x\npos,good,1\n").texts, ["good"]);
    assert_eq!(csv("text,content,label\na,b,1\n").texts, ["a"], "text comes before content");
    assert_eq!(csv("a,b\n0,a long text\n1,\n").texts, ["a long text", ""], "the longer of two unknown columns");
    assert_eq!(csv("b,a\na long text,0\n,1\n").labels.unwrap(), ["0", "1"]);
    assert_eq!(csv("stars,review\n5,good\n").labels.unwrap(), ["5"], "the other one of two");
    assert_eq!(csv("phrase\ngood\n").labels, None);
    assert_eq!(csv("id,text,note\n1,good,x\n").labels, None);
    let table = csv("ID,text\n7,good\n07,bad\n");
    assert_eq!((table.labels, table.ids), (None, vec![json!(7), json!("07")]), "an id is not a label");
    assert_eq!(csv("id,a\nlonger than the text,x\n").texts, ["x"]);
    let table = read("a.jsonl", "{\"id\": [1], \"text\": \"a\", \"label\": 0}\n{\"text\": \"b\", \"label\": 1}\n").unwrap();
    assert_eq!(table.ids, [json!([1]), Value::Null]);
    let named = |text: &str, label: &str| Options {
        text_column: Some(text.into()),
        label_column: Some(label.into()),
        ..Default::default()
    };
    let file = "text,label,b,c\n1,2,3,4\n";
    let table = read_with("a.csv", file, &named("c", "b")).unwrap();
    assert_eq!((table.texts, table.labels.unwrap()), (strings(&["4"]), strings(&["3"])));
    assert_error(read_with("a.csv", file, &named("d", "b")), "a.csv", "no column is named d; the columns are text, label, b, c");
    assert_error(read_with("a.csv", file, &named("b", "b")), "a.csv", "cannot be both");
    assert_error(read("a.csv", "x,y,z\n1,2,3\n"), "a.csv", "no text column among x, y, z; name it with --text-column");
    assert_error(read("a.csv", "text,label,text\n1,2,3\n"), "a.csv", "two columns are named text");
    assert_error(label(csv("id,text,note\n1,good,x\n"), None), "a.csv", "no label column among id, text, note");
}

/// A Parquet file of text (optional) and label, in two row groups.
pub fn parquet(folder: &Path, schema: &str, texts: &[Option<&str>], labels: Labels, names: Option<&[&str]>) -> PathBuf {
    let path = folder.join("train-00000-of-00001.parquet");
    let metadata = names.map(|names| {
        let json = json!({"info": {"features": {"text": {"dtype": "string"}, "label": {"names": names, "_type": "ClassLabel"}}}});
        vec![KeyValue::new("huggingface".to_string(), json.to_string())]
    });
    let properties = WriterProperties::builder().set_key_value_metadata(metadata).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(fs::File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
    let half = texts.len() / 2;
    for rows in [0..half, half..texts.len()] {
        let mut group = file.next_row_group().unwrap();
        let levels: Vec<i16> = texts[rows.clone()].iter().map(|text| text.is_some() as i16).collect();
        let values: Vec<ByteArray> = texts[rows.clone()].iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        match labels {
            Labels::Whole(labels) => column.typed::<Int64Type>().write_batch(&labels[rows], None, None).map(drop),
            Labels::Real(labels) => column.typed::<DoubleType>().write_batch(&labels[rows], None, None).map(drop),
        }
        .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
    path
}

#[derive(Clone, Copy)]
pub enum Labels<'a> {
    Whole(&'a [i64]),
    Real(&'a [f64]),
}

pub const TEXT_AND_INT: &str = "message schema { optional binary text (UTF8); required int64 label; }";
const TEXT_AND_DOUBLE: &str = "message schema { optional binary text (UTF8); required double label; }";

#[test]
fn parquet_with_class_names() {
    let folder = TempDir::new().unwrap();
    let texts = [Some("a"), Some(""), Some("日本\0")];
    let path = parquet(folder.path(), TEXT_AND_INT, &texts, Labels::Whole(&[1, 0, 1]), Some(&["neg", "pos"]));
    let table = Table::read(&path, &Options::default()).unwrap();
    assert_eq!(table.texts, ["a", "", "日本\0"]);
    assert_eq!(label(table, None).unwrap(), (strings(&["neg", "pos"]), vec![1, 0, 1]));
    let table = Table::read(&path, &Options::default()).unwrap();
    let model = strings(&["NEGATIVE", "POSITIVE"]);
    assert_eq!(label(table, Some(&model)).unwrap(), (model, vec![1, 0, 1]), "neg is NEGATIVE");
    let table = Table::read(&path, &Options::default()).unwrap();
    let model = strings(&["pos", "neg"]);
    assert_eq!(label(table, Some(&model)).unwrap(), (model, vec![0, 1, 0]), "in another order");
}

#[test]
fn parquet_columns_in_any_order() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = "message schema { required int64 id; required int64 label; required binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for numbers in [[7, 8], [1, 0]] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&["a".into(), "b".into()], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    let table = Table::read(&path, &Options::default()).unwrap();
    assert_eq!((table.ids, table.texts), (vec![json!(7), json!(8)], strings(&["a", "b"])));
    assert_eq!(table.labels.unwrap(), ["1", "0"]);
}

#[test]
fn parquet_labels_as_floats() {
    let folder = TempDir::new().unwrap();
    let read = |labels: &[f64]| {
        let path = parquet(folder.path(), TEXT_AND_DOUBLE, &[Some("a"), Some("b")], Labels::Real(labels), None);
        label(Table::read(&path, &Options::default()).unwrap(), None)
    };
    assert_eq!(read(&[1.0, 0.0]).unwrap().1, [1, 0]);
    assert_error(read(&[1.0, 0.5]), "parquet: row 1 (from 0)", "0.5 is not a whole number");
    assert_error(read(&[1.0, f64::NAN]), "row 1 (from 0)", "missing");
}

#[test]
fn parquet_faults() {
    let folder = TempDir::new().unwrap();
    let read = |path: &Path| Table::read(path, &Options::default());
    let texts = [Some("a"), Some("b"), None];
    let path = parquet(folder.path(), TEXT_AND_INT, &texts, Labels::Whole(&[1, 0, 1]), None);
    assert_error(read(&path), "parquet: row 2 (from 0)", "null");
    let path = parquet(folder.path(), TEXT_AND_INT, &[], Labels::Whole(&[]), None);
    assert_error(read(&path), ".parquet", "no rows");
    let path = parquet(
        folder.path(),
        &TEXT_AND_INT.replace("text", "label_").replace(" label;", " text;"),
        &[Some("a")],
        Labels::Whole(&[1]),
        None,
    );
    assert_error(read(&path), ".parquet", "the column text does not hold strings");
    let path = parquet(folder.path(), TEXT_AND_INT, &[Some("a"), Some("b")], Labels::Whole(&[7, -1]), Some(&["neg", "pos"]));
    assert_error(label(read(&path).unwrap(), None), "row 1 (from 0)", "the label is missing (-1)");
    let path = parquet(folder.path(), TEXT_AND_INT, &[Some("a"), Some("b")], Labels::Whole(&[7, 0]), Some(&["neg", "pos"]));
    assert_error(label(read(&path).unwrap(), None), "row 0 (from 0)", "7 is out of range: the 2 classes");

    let whole = fs::read(&path).unwrap();
    for size in [1, 3, 4, 8, whole.len() / 2, whole.len() - 9, whole.len() - 4, whole.len() - 1] {
        fs::write(&path, &whole[..size]).unwrap();
        assert_error(read(&path), ".parquet", "not a whole Parquet file");
    }
}

// ---- dataset: names of classes

#[test]
fn model_names_are_preferred_if_they_match() {
    let model = strings(&["NEG", "POS"]);
    let with = |file: &str| label(csv(file), Some(&model)).unwrap();
    assert_eq!(with("text,label\na,POS\nb,NEG\n"), (model.clone(), vec![1, 0]));
    assert_eq!(with("text,label\na,1\nb,0\n"), (model.clone(), vec![1, 0]));
    assert_eq!(with("text,label\na, 1.0 \nb,-0\n"), (model.clone(), vec![1, 0]));
    assert_eq!(with("text,label\na,pos\nb,Negative\n"), (model.clone(), vec![1, 0]));
    assert_eq!(with("text,label\na,spam\nb,ham\n"), (strings(&["ham", "spam"]), vec![1, 0]));
    assert_eq!(with("text,label\na,2\nb,0\nc,1\n").0, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    // Names that look like indices are names first, but only if all labels are.
    let stars = strings(&["1", "2", "3"]);
    assert_eq!(label(csv("text,label\na,1\nb,3\n"), Some(&stars)).unwrap().1, [0, 2]);
    assert_eq!(label(csv("text,label\na,1\nb,0\n"), Some(&stars)).unwrap().1, [1, 0]);
}

#[test]
fn names_from_the_labels() {
    let named = |labels: &[&str]| {
        let rows: String = labels.iter().map(|label| format!("t,\"{label}\"\n")).collect();
        label(csv(&format!("text,label\n{rows}")), None).unwrap()
    };
    assert_eq!(named(&["b", "a, \n'c'", "b"]), (strings(&["a, \n'c'", "b"]), vec![1, 0, 1]));
    assert_eq!(named(&["10", "9", "1"]), (strings(&["1", "9", "10"]), vec![2, 1, 0]), "by value");
    assert_eq!(named(&["2", "0", "1.0", "1"]), (strings(&["LABEL_0", "LABEL_1", "LABEL_2"]), vec![2, 0, 1, 1]));
    assert_eq!(named(&["nan", "inf"]).0, ["inf", "nan"]);
    assert_eq!(named(&["-1", "x"]), (strings(&["-1", "x"]), vec![0, 1]));
    assert_eq!(named(&["1", "-1", "0"]), (strings(&["-1", "0", "1"]), vec![2, 0, 1]));
    assert_eq!(named(&["0111", "0112", "0111"]), (strings(&["0111", "0112"]), vec![0, 1, 0]), "leading zeros stay");
    assert_eq!(named(&["True", "FALSE", "true"]), (strings(&["false", "true"]), vec![1, 0, 1]), "one boolean, one class");
}

#[test]
fn names_over_two_tables() {
    let of = |tables| classify(tables, ModelClasses::Replaceable(None), None);
    let (classes, data) = of(vec![csv("text,label\na,x\nb,y\n"), csv("text,label\na,z\n")]).unwrap();
    assert_eq!(classes.names, ["x", "y", "z"]);
    assert!(classes.notes[0].ends_with("a.csv:2: no training row has the label \"z\""), "{:?}", classes.notes);
    assert_eq!(data[0], Dataset { texts: strings(&["a", "b"]), labels: vec![0, 1] });
    assert_eq!(data[1].labels, [2]);

    // Each file's own names, in whatever order.
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let tables = [["neg", "pos"], ["pos", "neg"]].iter().zip(&folders).map(|(names, folder)| {
        let path = parquet(folder.path(), TEXT_AND_INT, &[Some("a"), Some("b")], Labels::Whole(&[0, 1]), Some(names));
        Table::read(&path, &Options::default()).unwrap()
    });
    let (classes, data) = of(tables.collect()).unwrap();
    assert_eq!((classes.names, &data[0].labels[..], &data[1].labels[..]), (strings(&["neg", "pos"]), &[0, 1][..], &[1, 0][..]));
}

#[test]
fn label_faults() {
    let bad = |labels: &str| label(csv(&format!("text,label\n{labels}")), None);
    assert_error(bad("a,0\nb,1\nc,\n"), "a.csv:4", "the label is missing");
    assert_error(bad("a,0\nb,  \n"), "a.csv:3", "the label is missing");
    assert_error(bad("a,0\nb,1\nc,0.5\n"), "a.csv:4", "0.5 is not a whole number");
    let one = csv("text,label\na,0\nb, 0\n");
    assert_eq!(label(one, None).unwrap(), (strings(&["LABEL_0"]), vec![0, 0]), "enough to look at");
    let names = strings(&["neg", "pos"]);
    let against = |labels: &str| {
        classify(vec![csv(&format!("text,label\n{labels}"))], ModelClasses::Fixed(&names), None)
            .map(|(_, mut data)| data.remove(0))
    };
    assert_eq!(against("a,1\n").unwrap().labels, [1], "one class is enough to evaluate");
    assert_error(
        against("a,1\nb,2\n"),
        "a.csv:3",
        "2 is out of range: the 2 classes are numbered from 0; the classes are neg, pos",
    );
    assert_error(against("a,1\nb,-1\n"), "a.csv:3", "negative");
    assert_error(against("a,1\nb,0.5\n"), "a.csv:3", "not a whole number");
    assert_error(
        against("a,pos\nb,positve\n"),
        "a.csv:3",
        "\"positve\" is not one of the classes; the classes are neg, pos; the labels are pos, positve",
    );
    assert_error(against("a,pos\nb,1\n"), "a.csv:3", "");
    assert_error(against(&format!("a,pos\nb,\"{}\n\"\n", "x".repeat(1000))), "a.csv:3", "xxx…");
}

// ---- dataset: faults

#[test]
fn files_that_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let read_path = |name: &str| Table::read(&path(name), &Options::default());
    assert_error(read_path("none.csv"), "none.csv", "no such file");
    fs::create_dir(path("folder.csv")).unwrap();
    assert_error(read_path("folder.csv"), "folder.csv", "is a folder");
    std::os::unix::fs::symlink(path("loop.csv"), path("loop.csv")).unwrap();
    assert_error(read_path("loop.csv"), "loop.csv", "symbolic links");
    assert!(std::process::Command::new("mkfifo").arg(path("pipe.csv")).status().unwrap().success());
    assert_error(read_path("pipe.csv"), "pipe.csv", "not a regular file");
    assert_error(read("a.xlsx", "PK"), "a.xlsx", "extension; use one of .csv, .tsv, .json, .jsonl, .txt");
    for name in ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a.ft", "a.fasttext", "a.parquet"] {
        assert_error(read(name, ""), name, "empty");
    }
}

#[test]
fn text_faults() {
    assert_error(read("a.csv", "text,label\n"), "a.csv", "no rows");
    assert_error(read("a.csv", "\u{feff}\n\n"), "a.csv", "no header and no rows");
    for (name, content) in [("a.jsonl", "\n \n"), ("a.json", " "), ("a.json", "[]"), ("a.txt", "\n\n")] {
        assert_error(read(name, content), name, "no rows");
    }
    for name in ["a.csv", "a.json", "a.jsonl", "a.txt"] {
        assert_error(read(name, b"text,label\na,1\ncaf\xe9,0\n"), ":3", "not UTF-8; save the file as UTF-8");
        assert_error(read(name, b"text,label\na,1\ncaf\xc3"), ":3", "middle of a UTF-8 character");
        assert_error(read(name, b"text,label\na\0,1\n"), ":2", "a NUL byte");
    }
    assert_error(
        read("a.csv", "text,label\na,1\nb, c,0\n"),
        "a.csv:3",
        "3 fields, but the header has 2; quote the text, or pass --delimiter",
    );
    assert_error(read("a.csv", "text,label\r\na,1\r\nb\r\n"), "a.csv:3", "1 field, but the header has 2");
    for end in ["", "\n", "\r\n", "\n\n"] {
        assert_error(read("a.csv", format!("text,label\na,1\n\"b,0\nc,1{end}")), "a.csv:3", "a quote opens here");
        assert_eq!(csv(&format!("label,text\n1,\"b\n\"{end}")).texts, ["b\n"], "closed at the end of the file");
        assert_eq!(csv(&format!("label,text\n1,5\" disk{end}")).texts, ["5\" disk"], "a quote inside a bare field");
    }
}

#[test]
fn json_array_faults() {
    let good = "[{\"text\": \"a\", \"label\": 1},\n";
    let bad = |rest: &str| read("a.json", format!("{good}{rest}"));
    assert_error(bad("{\"text\": \"b\"}"), "a.json:2", "EOF while parsing a list (column 13); give an array of JSON objects");
    assert_error(bad("]"), "a.json:2", "trailing comma (column 1)");
    assert_error(bad("{\"text\": \"b\"}] x"), "a.json:2", "trailing characters");
    assert_error(bad("\n 7]"), "a.json:3", "invalid type: integer `7`");
    assert_error(bad("{\"label\": 1}]"), "a.json:2", "text is missing or null");
    assert_error(bad(&"[".repeat(100_000)), "a.json:2", "");
    assert_error(bad(&format!("{{\"text\": {}{}}}]", "[".repeat(100_000), "]".repeat(100_000))), "a.json:2", "recursion limit");
    assert_error(read("a.json", "{\n\"text\": 1}"), "a.json:1", "EOF while parsing an object");
}

#[test]
fn json_line_faults() {
    let good = "{\"text\":\"a\",\"label\":1}\n";
    let bad = |line: &str| read("a.jsonl", format!("{good}{line}"));
    assert_error(bad("{\"text\":"), "a.jsonl:2", "(column 8)");
    assert_error(bad("[1]"), "a.jsonl:2", "invalid type");
    assert_error(bad(&"[".repeat(100_000)), "a.jsonl:2", "");
    assert_error(bad("{\"label\":1}"), "a.jsonl:2", "text is missing or null");
    assert_error(bad("{\"text\":null,\"label\":1}"), "a.jsonl:2", "text is missing or null");
    assert_error(bad("{\"text\":7,\"label\":1}"), "a.jsonl:2", "text is not a string");
    assert_error(bad("{\"text\":\"a\",\"label\":[1,0]}"), "a.jsonl:2", "label is a list");
    assert_error(label(bad("{\"text\":\"a\",\"label\":null}").unwrap(), None), "a.jsonl:2", "the label is missing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Output of the csv crate is read back, line by line.
    #[test]
    fn csv_round_trip(rows in prop::collection::vec(("[a-c\",\r\n é]{0,12}", "[xy]"), 1..20)) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["text", "label"]).unwrap();
        rows.iter().for_each(|(text, label)| writer.write_record([text, label]).unwrap());
        let table = read("a.csv", writer.into_inner().unwrap()).unwrap();
        let mut line = 2;
        for (row, (text, label)) in rows.iter().enumerate() {
            prop_assert_eq!((&table.texts[row], &table.labels.as_ref().unwrap()[row]), (text, label));
            let expected = format!(":{line}");
            prop_assert!(table.place(row).ends_with(&expected), "{} {}", table.place(row), expected);
            line += 1 + text.matches('\n').count();
        }
    }

    /// Arbitrary bytes give a table or one line of error, never a panic.
    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b';'), Just(b'\n'), Just(b'['), Just(b'{'), any::<u8>()], 0..60)) {
        for name in ["a.csv", "a.json", "a.jsonl", "a.txt", "a.parquet"] {
            if let Err(error) = read(name, &bytes) {
                prop_assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }

    /// Damage inside the file: the crate panics on some of it, which must not escape.
    #[test]
    fn hostile_parquet(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let folder = TempDir::new().unwrap();
        let path = parquet(folder.path(), TEXT_AND_INT, &[Some("a"), Some("bc"), Some("a")], Labels::Whole(&[1, 0, 1]), Some(&["neg", "pos"]));
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in flips {
            *at.get_mut(&mut bytes) = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = Table::read(&path, &Options::default()) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn split_is_stratified(labels in prop::collection::vec(0u32..5, 1..200), fraction in 0.0..1.0, seed: u64) {
        let (train, validation) = stratified_split(&labels, fraction, seed);
        let mut rows = [train.clone(), validation.clone()].concat();
        rows.sort();
        prop_assert!(rows.into_iter().eq(0..labels.len() as u32), "each row is in one split");
        prop_assert!(train.is_sorted() && validation.is_sorted());
        let wanted = (labels.len() as f64 * fraction).round() as usize;
        prop_assert!(validation.len() <= wanted && validation.len() + 5 >= wanted);
        for class in 0..5 {
            let count = |rows: &[u32]| rows.iter().filter(|&&row| labels[row as usize] == class).count() as f64;
            prop_assert!(count(&train) > 0.0 || count(&validation) == 0.0, "class {} is left for training", class);
            let exact = (count(&train) + count(&validation)) * wanted as f64 / labels.len() as f64;
            prop_assert!((count(&validation) - exact).abs() <= 1.0, "class {}: {} for {}", class, count(&validation), exact);
        }
        prop_assert_eq!(stratified_split(&labels, fraction, seed), (train, validation));
    }

    /// A batch has its sequences in order, and its gather lists have each row once, by token and then by row.
    #[test]
    fn packing(rows in prop::collection::vec((prop::collection::vec(0..9i32, 1..12), any::<bool>(), 0..4u32), 1..9)) {
        let types: Vec<Vec<i32>> = rows.iter().map(|(ids, typed, _)| if *typed { ids.iter().map(|id| id % 2).collect() } else { vec![] }).collect();
        let batch = PackedBatch::new(rows.iter().zip(&types).map(|((ids, _, label), types)| (&ids[..], &types[..], *label)));
        prop_assert_eq!((batch.seqs(), batch.tokens()), (rows.len(), rows.iter().map(|row| row.0.len()).sum()));
        prop_assert_eq!(batch.max_seqlen, rows.iter().map(|row| row.0.len()).max().unwrap());
        for (b, (ids, typed, label)) in rows.iter().enumerate() {
            let range = batch.cu_seqlens[b] as usize..batch.cu_seqlens[b + 1] as usize;
            prop_assert_eq!(&batch.ids[range.clone()], &ids[..]);
            prop_assert!(batch.positions[range.clone()].iter().copied().eq(0..ids.len() as i32));
            prop_assert!(batch.types[range].iter().zip(ids).all(|(&kind, id)| kind == *typed as i32 * (id % 2)));
            prop_assert_eq!(batch.labels[b], *label as i32);
        }
        let starts: Vec<usize> = batch.token_starts.iter().map(|&start| start as usize).collect();
        prop_assert_eq!((starts[0], *starts.last().unwrap()), (0, batch.tokens()));
        let mut expected: Vec<(i32, i32)> = batch.ids.iter().copied().zip(0..).collect();
        expected.sort();
        let mut tokens = Vec::new();
        let mut gathered = Vec::new();
        for bounds in starts.windows(2) {
            let group = &batch.rows_by_token[bounds[0]..bounds[1]];
            tokens.push(batch.ids[group[0] as usize]);
            gathered.extend(group.iter().map(|&row| (batch.ids[row as usize], row)));
        }
        prop_assert_eq!(gathered, expected);
        prop_assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "one group per token");
    }

    #[test]
    fn loader_equals_direct_packing(sizes in prop::collection::vec(1..6usize, 0..40), batch in 1..9usize, first in 0..6usize, seed: u64) {
        let mut data = Encoded::default();
        for (row, size) in sizes.iter().enumerate() {
            let types = if row % 3 == 2 { vec![1; *size] } else { vec![] };
            data.push(row, &vec![row as i32; *size], &types).unwrap();
        }
        data.labels = (0..sizes.len() as u32).collect();
        let order = randperm(sizes.len(), seed);
        let direct: Vec<PackedBatch> =
            order.chunks(batch).map(|rows| PackedBatch::new(rows.iter().map(|&row| data.row(row as usize)))).skip(first).collect();
        let loaded: Vec<PackedBatch> = Loader::new(Arc::new(data), order, batch, first).unwrap().collect();
        prop_assert_eq!(loaded, direct);
    }
}

#[test]
fn split_depends_on_the_seed() {
    let labels: Vec<u32> = (0..100).map(|i| i % 2).collect();
    assert_ne!(stratified_split(&labels, 0.2, 1), stratified_split(&labels, 0.2, 2));
    assert_eq!(stratified_split(&[], 0.5, 1), (vec![], vec![]));
    assert_eq!(stratified_split(&[3], 0.1, 1), (vec![0], vec![]), "one row stays in training");
}

#[test]
fn overlap_counts_validation_rows() {
    assert_eq!(overlap(&strings(&["a", "a", "b"]), &strings(&["a", "c", "b", "B"])), 2);
}

// ---- rows of ids

#[test]
fn rows_of_ids() {
    let mut encoded = Encoded::default();
    encoded.push("a.jsonl:1", &[2, 5, 3], &[]).unwrap();
    encoded.push("a.jsonl:2", &[2, 3], &[0, 1]).unwrap();
    encoded.push("a.jsonl:3", &[2], &[0]).unwrap();
    assert_error(encoded.push("a.jsonl:4", &[], &[]), "a.jsonl:4", "input_ids is empty");
    assert_error(encoded.push("a.jsonl:5", &[2, 3], &[0]), "a.jsonl:5", "1 token_type_ids for 2 input_ids");
    assert_error(encoded.push("a.jsonl:6", &[2, -3], &[]), "a.jsonl:6", "-3 is negative");
    let rows: Vec<_> = (0..encoded.rows()).map(|row| encoded.row(row)).collect();
    assert_eq!(rows, [(&[2, 5, 3][..], &[0, 0, 0][..], 0), (&[2, 3], &[0, 1], 0), (&[2], &[0], 0)]);
}

// ---- loader

#[test]
fn row_order_is_pytorchs() {
    let cases: Value = serde_json::from_slice(&fs::read(golden("shuffle.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let (rows, seed) = (case["rows"].as_u64().unwrap() as usize, case["seed"].as_u64().unwrap());
        for (epoch, order) in case["order_by_epoch"].as_array().unwrap().iter().enumerate() {
            assert_eq!(&json!(row_order(rows, true, seed, epoch as u64)), order, "{rows} rows, seed {seed}, epoch {epoch}");
        }
    }
    assert_eq!(row_order(4, false, 42, 1), [0, 1, 2, 3]);
    assert_eq!(randperm(50, 7), randperm(50, 7 + (1 << 32)), "the low 32 bits of the seed");
    assert_eq!((randperm(0, 1), randperm(1, 1)), (vec![], vec![0]));
}

fn encoded(rows: usize) -> Arc<Encoded> {
    let mut data = Encoded::default();
    (0..rows).for_each(|row| data.push(row, &[2, row as i32, 3], &[]).unwrap());
    Arc::new(data)
}

#[test]
fn dropping_a_loader_ends_its_thread() {
    for taken in [0, 1, 5] {
        let data = encoded(1000);
        let mut loader = Loader::new(data.clone(), row_order(1000, false, 0, 0), 1, 0).unwrap();
        assert_eq!(loader.by_ref().take(taken).count(), taken);
        drop(loader);
        let start = Instant::now();
        while Arc::strong_count(&data) > 1 {
            assert!(start.elapsed() < Duration::from_secs(10), "the packing thread still holds the data");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_loader_runs_ahead_and_ends() {
    let mut loader = Loader::new(encoded(7), row_order(7, false, 0, 0), 3, 1).unwrap();
    assert_eq!(loader.by_ref().map(|batch| batch.seqs()).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(loader.next(), None, "it stays ended");
    assert_eq!(Loader::new(encoded(7), row_order(7, false, 0, 0), 3, 9).unwrap().count(), 0);
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_panic_while_packing_is_not_the_end_of_the_epoch() {
    Loader::new(encoded(2), vec![0, 1, 2], 1, 0).unwrap().count();
}
