//! Files that are easily read wrongly: rows, columns, delimiters, encodings and containers. `tests/cases` holds examples from
//! reports of such faults; the others are written here.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use encoding_rs::Encoding;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use parquet::basic::{BrotliLevel, Compression, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;
use warpfit::data::dataset::{self, ModelClasses, Options, Table, classify, splits};

use crate::cli::{PREDICT, Ran, TRAIN, path, ran};
use crate::data::{assert_error, put};
use crate::fixtures::golden;

fn case(name: &str) -> PathBuf {
    golden("../cases").join(name)
}

fn encoding(name: &str) -> Option<&'static Encoding> {
    Some(dataset::encoding(name).unwrap())
}

/// A file of this name and content, and its folder.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

/// Texts and labels, each row as `text=label`; without labels the texts alone.
fn rows(path: &Path, options: &Options) -> Vec<String> {
    let table = Table::read(path, options).unwrap();
    match table.labels {
        Some(labels) => table.texts.iter().zip(labels).map(|(text, label)| format!("{text}={label}")).collect(),
        None => table.texts,
    }
}

fn predict(input: &Path, more: &[&str]) -> Ran {
    let model = golden("text/hf");
    ran(PREDICT, &[&["--model", path(&model), "--format", "text", "--input", path(input)], more].concat())
}

/// The texts that are classified, and the notes.
fn predicted(input: &Path, more: &[&str]) -> (Vec<String>, Vec<String>) {
    let ran = predict(input, more).done();
    let texts = ran.out.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap().trim_start().to_string());
    let notes = ran.err.lines().filter(|line| line.starts_with("note: ")).map(String::from);
    (texts.collect(), notes.collect())
}

#[test]
fn the_rows_of_files_that_are_read_wrongly() {
    let plain = Options::default();
    for (name, wanted) in [
        (
            "tsv-quotes/a.tsv",
            &["good great lovely=1", "\" charming \" is not the word=0", "\"dull and boring=0", "funny=1", "fine story=1"][..],
        ),
        ("tsv-quotes/c.tsv", &["good great lovely=ham", "\"WIN a prize now=spam", "see you at home=ham", "it was \"=ham"]),
        ("tsv-quotes/unclosed.tsv", &["good=1", "\"bad=0", "fine=1"]),
        ("tsv-quotes/d.csv", &["good=1", "bad plot,0\nfine,1\nawful=0"]),
        ("headerless/noheader.tsv", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
        ("headerless/yelp_noheader.csv", &["bad awful plot, never again=1", "good great film=2", "poor and dull=1"]),
        ("headerless/texts.csv", &["good great film", "bad awful plot", "fine story"]),
        ("headerless/ag_noheader.csv", &["a long story of money=3", "a horror story=1", "a machine plays=4", "the best game=2"]),
        ("headerless/sep_comma.csv", &["good great film=pos", "bad awful plot=neg"]),
        (
            "delimiter/ponto_e_virgula.csv",
            &["filme muito bom=positivo", "roteiro fraco=negativo", "otimo=positivo", "ruim=negativo"],
        ),
        ("delimiter/pipe.csv", &["good great film=pos", "bad awful plot=neg"]),
        ("delimiter/tab.csv", &["good great film=pos", "bad awful plot=neg"]),
        ("delimiter/semicolon_with_commas.csv", &["good, great film=pos", "bad, awful plot=neg"]),
        ("labelled-txt/labelled.txt", &["good great=joy", "bad awful=anger", "no semicolon; but one; here=joy"]),
        ("two-columns/utterance_intent.csv", &["hi=greeting_intent", "hey=greeting_intent"]),
        ("two-columns/named_intent.csv", &["hi=greeting_intent", "hey=greeting_intent"]),
        ("two-columns/index_text.csv", &["good great", "", "12345", "NA", "null", "bad\nawful"]),
        ("two-columns/index_text_label.csv", &["good great=1", "=0", "12345=1", "NA=0", "null=1", "bad\nawful=0"]),
        ("parquet-codecs/gzip.parquet", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
        ("parquet-codecs/brotli.parquet", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
        ("encodings/cr.txt", &["good film=pos", "bad film=neg", "great=pos"]),
        ("encodings/mac_cr.csv", &["Ação ótima, não perca=1", "péssimo roteiro=0", "bom filme – adorei=1", "não gostei…=0"]),
        ("encodings/utf16_bom.csv", &["Ação ótima, não perca=1", "péssimo roteiro=0", "bom filme – adorei=1", "não gostei…=0"]),
        ("containers/rows.csv.gz", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
        ("containers/nested.json", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
        ("containers/nested_pretty.json", &["good great film=1", "bad awful plot=0", "lovely story=1", "poor and dull=0"]),
    ] {
        let found = rows(&case(name), &plain);
        assert_eq!(&found[..wanted.len()], wanted, "{name}");
        let all = fs::read_to_string(case(name)).map_or(found.len(), |text| text.lines().count());
        assert!(found.len() <= all.max(12), "{name}");
    }
    assert_eq!(rows(&case("tsv-quotes/a.tsv"), &plain).len(), 10, "one row per line");
    let off = Options { quoting: Some(false), ..Default::default() };
    assert_eq!(rows(&case("tsv-quotes/d.csv"), &off), ["good=1", "\"bad plot=0", "fine=1", "awful\"=0"]);
    let windows = Options { encoding: encoding("cp1252"), ..Default::default() };
    assert_eq!(rows(&case("encodings/cp1252.csv"), &windows)[2], "bom filme – adorei=1");
    let latin = Options { encoding: encoding("latin-1"), ..Default::default() };
    assert_eq!(rows(&case("encodings/spam_latin1.csv"), &latin)[1], "Ganhe £900 prêmio, ligue=spam");
}

#[test]
fn what_is_guessed_is_reported() {
    for (name, texts, notes) in [
        ("tsv-quotes/a.tsv", 10, &[][..]),
        ("tsv-quotes/d.csv", 2, &["d.csv:3: inside a quoted text is a line that looks like a row of its own"]),
        (
            "headerless/noheader.tsv",
            4,
            &["the first line (good great film, 1) is read as a row", "1 is taken for the texts and 2 for"],
        ),
        ("headerless/texts.csv", 3, &["the first line (good great film) is read as a row, not as names; --no-header false"]),
        (
            "headerless/ag_noheader.csv",
            4,
            &["is read as a row", "of 3 columns without names, 3 is taken for the texts and 1 for"],
        ),
        ("headerless/sep_comma.csv", 2, &[]),
        (
            "delimiter/ponto_e_virgula.csv",
            4,
            &["read with semicolons between", "texto is taken for the texts and rotulo for the labels"],
        ),
        ("delimiter/pipe.csv", 2, &["read with pipes between the fields; --delimiter names another character"]),
        ("delimiter/tab.csv", 2, &["read with tabs between the fields"]),
        ("labelled-txt/labelled.txt", 3, &[]),
        ("encodings/cr.txt", 3, &["read as texts with labels, with semicolons between; --input-format text takes whole lines"]),
        ("first-row-columns/first_lacks_label.jsonl", 3, &[]),
        ("two-columns/utterance_intent.csv", 12, &[]),
        ("containers/nested.json", 4, &["the rows are those in data"]),
        ("unneeded-columns/list_labels.parquet", 4, &[]),
        ("unneeded-columns/list_labels.json", 4, &[]),
        ("unneeded-columns/list_labels.jsonl", 4, &[]),
        ("unneeded-columns/text_when.parquet", 4, &[]),
        ("unneeded-columns/text_meta.parquet", 4, &[]),
        ("unneeded-columns/decimal.parquet", 4, &[]),
    ] {
        let (found, noted) = predicted(&case(name), &[]);
        assert_eq!((found.len(), noted.len()), (texts, notes.len()), "{name}: {found:?} {noted:?}");
        assert!(noted.iter().zip(notes).all(|(noted, note)| noted.contains(note)), "{name}: {noted:?}");
    }
    for (name, flags, part) in [
        ("encodings/cp1252.csv", &[][..], "cp1252.csv:2`: not UTF-8; save the file as UTF-8, or name its encoding: --encoding"),
        ("encodings/cp1252.csv", &["--encoding", "big5"], "`: not Big5; name another --encoding"),
        ("encodings/cp1252.csv", &["--encoding", "klingon"], "invalid value 'klingon' for '--encoding"),
        ("tsv-quotes/unclosed.tsv", &["--quoting", "on"], "a quote opens here or below and never closes"),
    ] {
        predict(&case(name), flags).failed(2, part);
    }
}

#[test]
fn delimiters_of_comma_files_stay_commas() {
    let plain = Options::default();
    for (content, wanted) in [
        ("text,label\na; b,1\nc; d,0\n", ["a; b=1", "c; d=0"]),
        ("frase,classe\nbom; muito bom,1\nruim; fraco,0\n", ["bom; muito bom=1", "ruim; fraco=0"]),
        ("text,label\n\"a|b\tc\",1\n\"d|e\tf\",0\n", ["a|b\tc=1", "d|e\tf=0"]),
        ("\"good; fine, really\",1\n\"bad; poor, sadly\",0\n", ["good; fine, really=1", "bad; poor, sadly=0"]),
        ("text, label\na, 1\nb, 0\n", ["a= 1", "b= 0"]),
    ] {
        let (_folder, path) = file("a.csv", content);
        assert_eq!(rows(&path, &plain), wanted, "{content}");
    }
    for (name, content) in [
        ("a.csv", "sep=;\r\ntext;label\r\na, b;1\r\n"),
        ("a.csv", "\"sep=\t\"\ntext\tlabel\na, b\t1\n"),
        ("a.csv", "sep=\\t\ntext\tlabel\na, b\t1\n"),
        ("a.tsv", "text|label\na, b|1\n"),
        ("a.tsv", "label;text\n1;a, b\n"),
        ("a.txt", "text\tlabel\na, b\t1\n"),
        ("a.txt", "label|text\n1|a, b\n"),
        ("a.txt", "id;text;label\n7;a, b;1\n"),
        ("a.csv", "a, b;1\nc, d;0\ne, f;1\n"),
        ("a.txt", "1\ta, b\n0\tc, d\n1\te, f\n"),
    ] {
        let (_folder, path) = file(name, content);
        assert_eq!(rows(&path, &plain)[0], "a, b=1", "{content}");
    }
}

#[test]
fn headers_are_told_from_rows() {
    let plain = Options::default();
    for (content, wanted) in [
        ("good film,pos\nbad film,neg\nfine,pos\n", 3),
        ("frase,classe\ngood film,pos\nbad film,neg\nfine,pos\n", 3),
        (",0,1\n0,good film,pos\n1,bad film,neg\n", 2),
        ("0,good film,pos\n1,bad film,neg\n2,fine,pos\n", 3),
        ("A long survey question of many words?,Mood\nfine,good\nbad,poor\n", 2),
        ("No.,Comment Text\n1,fine\n2,bad\n", 2),
        ("What a film!\nBad.\n", 2),
        ("review\nWhat a film!\nBad.\n", 2),
    ] {
        let (_folder, path) = file("a.csv", content);
        assert_eq!(rows(&path, &plain).len(), wanted, "{content}");
    }
    // As in CoLA: a source, a label, a mark, and the sentence; sorted by label.
    let content: String = (0..1200).map(|i| format!("gj04\t{}\t{}\tsentence {i}\n", i / 600, ["", "*"][i % 2])).collect();
    let (_folder, path) = file("a.tsv", content);
    let found = rows(&path, &plain);
    assert_eq!((found.len(), &*found[0], &*found[1199]), (1200, "sentence 0=0", "sentence 1199=1"));
    let (_folder, path) = file("a.csv", "good,fine\nbad,poor\n");
    let with = |no_header| Options { no_header: Some(no_header), ..Default::default() };
    assert_eq!((rows(&path, &with(true)).len(), rows(&path, &with(false)).len()), (2, 1));
    let (texts, notes) = predicted(&file("b.csv", "good\nbad\n").1, &["--no-header"]);
    assert_eq!((texts, notes), (vec!["good".to_string(), "bad".to_string()], vec![]));
}

#[test]
fn parts_of_lines_are_not_classified_in_silence() {
    for (name, content, texts, part) in [
        ("a.csv", "text\ngood;pos\nbad;neg\n", 2, "whole lines are read as texts; if semicolons separate fields"),
        ("a.txt", "fine;pos\ngood\tbad;neg\n", 2, "whole lines are read as texts; if semicolons separate a label"),
        ("a.txt", "__label__1 fine\n__label__2 bad\n", 2, ""),
        ("a.txt", "good; very good\nno delimiter\n", 2, ""),
        (
            "a.tsv",
            "text\tlabel\n\"a \"\"b\"\"\"\t1\n",
            1,
            "quotes are read as literal characters, though they enclose fields; --quoting on",
        ),
        ("a.csv", "label,text\n1,\"a\n0,b\"\n0,c\n", 2, "a.csv:3: inside a quoted text is a line that looks like a row"),
        ("a.csv", "label,text\n1,\"a,\n0 b, c\"\n", 1, ""),
        ("a.csv", "id,text\n1,\"a\n2,b\"\n3,c\n", 2, "a.csv:3: inside a quoted text is a line that looks like a row"),
        ("a.tsv", "\"text\"\t\"label\"\n\"a \"\"b\"\"\"\t\"1\"\n", 1, "quotes are taken to enclose fields; --quoting off"),
    ] {
        let (_folder, path) = file(name, content);
        let (found, notes) = predicted(&path, &[]);
        assert_eq!(found.len(), texts, "{content}: {found:?}");
        assert!(notes.concat().contains(part) && notes.is_empty() == part.is_empty(), "{content}: {notes:?}");
    }
    let (_folder, path) = file("a.tsv", "\"text\"\t\"label\"\n\"a \"\"b\"\"\"\t\"1\"\n");
    assert_eq!(rows(&path, &Options::default()), ["a \"b\"=1"], "as R writes it");
    let (_folder, path) = file("a.txt", "fine;pos\nbad;neg\n");
    assert_eq!(predicted(&path, &["--delimiter", ";"]).0, ["fine", "bad"]);
    assert_eq!(predicted(&path, &["--input-format", "text"]).0, ["fine;pos", "bad;neg"]);
}

#[test]
fn columns_of_json_come_from_all_rows() {
    let (model, lacks) = (golden("train/hf_init"), case("first-row-columns/first_lacks_label.jsonl"));
    ran(TRAIN, &["--model", path(&model), "--train-file", path(&lacks), "--dry-run"])
        .failed(2, "first_lacks_label.jsonl:1`: the label is missing");
    let (_folder, path) = file("a.json", "[{\"n\": 1}, {\"n\": 2, \"text\": \"a\"}]");
    assert_error(Table::read(&path, &Options::default()), "a.json:1", "text is missing or null");
    let (_folder, path) = file("a.jsonl", "{\"stars\": 5, \"body\": \"good\"}\n{\"body\": \"bad\", \"stars\": 1}\n");
    assert_eq!(rows(&path, &Options::default()), ["good=5", "bad=1"], "numbers are not the text");
    for (content, wanted) in [
        ("{\"a\": {\"b\": [{\"text\": \"x\", \"label\": 1}]}, \"n\": [1]}", "x=1"),
        ("{\"text\": \"x\", \"label\": 1, \"spans\": [{\"start\": 0}]}", "x=1"),
    ] {
        assert_eq!(rows(&file("a.json", content).1, &Options::default()), [wanted], "{content}");
    }
    let several = file("a.json", "{\"train\": [{\"text\": \"x\"}], \"test\": [{\"text\": \"y\"}]}");
    assert_error(Table::read(&several.1, &Options::default()), "a.json", "rows lie in several keys: test, train; save the rows");
}

#[test]
fn encodings_by_mark_and_by_name() {
    let text = "text,label\nжаль – é,0\nхорошо,1\n";
    for (name, mark) in [("utf-16le", &b"\xff\xfe"[..]), ("utf-16be", b"\xfe\xff"), ("utf-8", b"\xef\xbb\xbf")] {
        let units = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let bytes = match name {
            "utf-16le" => units(u16::to_le_bytes),
            "utf-16be" => units(u16::to_be_bytes),
            _ => text.as_bytes().to_vec(),
        };
        let (_folder, path) = file("a.csv", [mark, &bytes].concat());
        // The mark overrides the flag.
        for encoding in [None, encoding("cp1251")] {
            let found = rows(&path, &Options { encoding, ..Default::default() });
            assert_eq!(found, ["жаль – é=0", "хорошо=1"], "{name}");
        }
        let (_folder, path) = file("b.csv", &bytes);
        assert_eq!(rows(&path, &Options { encoding: encoding(name), ..Default::default() })[1], "хорошо=1", "{name}");
    }
    let russian = "text;label\nжаль;0\nхорошо;1\n";
    for name in ["cp1251", "windows_1251", "KOI8-R", "iso8859_5", "cp866"] {
        let bytes = encoding(name).unwrap().encode(russian).0;
        for ending in ["csv", "txt", "csv.gz"] {
            let (_folder, path) = file(&format!("a.{ending}"), if ending == "csv.gz" { gzip(&bytes) } else { bytes.to_vec() });
            assert_error(
                Table::read(&path, &Options::default()),
                &format!("a.{ending}:2"),
                "not UTF-8; save the file as UTF-8, or",
            );
            assert_eq!(
                rows(&path, &Options { encoding: encoding(name), ..Default::default() }),
                ["жаль=0", "хорошо=1"],
                "{name}"
            );
        }
    }
    let (_folder, path) = file("a.jsonl", encoding("cp1251").unwrap().encode("{\"text\": \"жаль\"}\n").0);
    assert_eq!(predicted(&path, &["--encoding", "cp1251"]).0, ["жаль"]);
    assert_error(Table::read(&file("a.csv", "t\0e\0x\0t\0").1, &Options::default()), "a.csv:1", "pass --encoding utf-16le");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn containers() {
    for (name, content) in [
        ("a.jsonl.gz", "{\"text\": \"a\"}\n"),
        ("a.json.gz", "[{\"text\": \"a\"}]"),
        ("a.txt.gz", "a\n"),
        ("a.tsv.GZ", "text\na\n"),
    ] {
        let (_folder, path) = file(name, gzip(content.as_bytes()));
        assert_eq!(predicted(&path, &[]).0, ["a"], "{name}");
    }
    let whole = gzip(b"text,label\na,1\n");
    assert_error(Table::read(&file("a.csv.gz", &whole[..20]).1, &Options::default()), "a.csv.gz", "not a whole gzip file");
    for (start, part) in [
        (&b"PK\x03\x04...."[..], "a zip archive or a spreadsheet; unpack it"),
        (b"\xfd7zXZ\0....", "compressed with xz; unpack it with unxz"),
        (b"BZh9....", "compressed with bzip2; unpack it"),
        (b"\x28\xb5\x2f\xfd....", "compressed with zstd; unpack it"),
    ] {
        assert_error(Table::read(&file("a.csv", start).1, &Options::default()), "a.csv", part);
    }
    let relative = |folder: &Path| {
        let found = splits(folder).unwrap();
        [found.train, found.validation, found.test].map(|files| {
            files.iter().map(|file| path(file.strip_prefix(folder).unwrap()).to_string()).collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(relative(&case("containers/gz")), ["train.csv.gz", "", ""]);
    assert_eq!(relative(&case("containers/hubconv")), ["default/train/0000.parquet", "", "default/test/0000.parquet"]);
    let folder = TempDir::new().unwrap();
    put(folder.path(), &[("train/0000.parquet", "x"), ("train/0001.parquet", "x"), ("dev.jsonl.gz", "x"), ("test.csv.bz2", "x")]);
    assert_eq!(relative(folder.path()), ["train/0000.parquet train/0001.parquet", "dev.jsonl.gz", ""]);
    fs::remove_file(folder.path().join("train/0000.parquet")).unwrap();
    assert_error(splits(folder.path()), "", "shard 00000 of 2 of its train data is missing");
}

#[test]
fn parquet_in_every_codec() {
    let (folder, schema) = (TempDir::new().unwrap(), "message m { required binary text (UTF8); required int64 label; }");
    for (i, codec) in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(format!("{i}.parquet"));
        let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(fs::File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = ["a".repeat(1000), "b".repeat(1000)].map(|text| ByteArray::from(text.as_str()));
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 0], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let wanted = [format!("{}=1", "a".repeat(1000)), format!("{}=0", "b".repeat(1000))];
        assert_eq!(rows(&path, &Options::default()), wanted, "{codec}");
    }
}

#[test]
fn labels_of_any_type_are_refused_where_they_are_needed() {
    for name in ["list_labels.parquet", "text_when.parquet", "text_meta.parquet"] {
        let path = case("unneeded-columns").join(name);
        assert!(Table::read(&path, &Options::default()).is_err(), "{name}");
        let texts = Table::read(&path, &Options { texts_only: true, ..Default::default() }).unwrap();
        assert_eq!((texts.texts.len(), texts.labels), (4, None), "{name}");
    }
}

/// pandas writes whole numbers as floats once one was missing.
#[test]
fn labels_of_floats_in_parquet() {
    assert_eq!(rows(&case("labels/float.parquet"), &Options::default()), ["good=1", "bad=0", "great=1", "awful=0"]);
    for name in ["float16", "decimal"] {
        let table = Table::read(&case(&format!("labels/{name}.parquet")), &Options::default()).unwrap();
        let (classes, data) = classify(vec![table], ModelClasses::Replaceable(None), None).unwrap();
        assert_eq!(
            (&classes.names[..], &data[0].labels[..4]),
            (&["LABEL_0", "LABEL_1"].map(String::from)[..], &[1, 0, 1, 0][..]),
            "{name}"
        );
    }
}

#[test]
fn a_column_that_differs_in_every_row_holds_no_labels() {
    let content = |rows: usize| -> String {
        let lines = (0..rows).map(|i| format!("2024-01-0{i},a film number {i}\n"));
        ["created_at,text\n".to_string()].into_iter().chain(lines).collect()
    };
    let (_folder, few) = file("few.csv", content(5));
    assert_eq!(rows(&few, &Options::default()).len(), 5);
    let (_folder, many) = file("many.csv", content(6));
    assert_error(Table::read(&many, &Options::default()), "many.csv", "the column created_at differs in every row");
    let named = Options { label_column: Some("created_at".into()), ..Options::default() };
    assert_eq!(rows(&many, &named).len(), 6);
}

#[test]
fn a_third_class_beside_neg_and_pos_is_refused() {
    let folder = TempDir::new().unwrap();
    for (class, name) in [("neg", "1.txt"), ("pos", "2.txt"), ("pos", "notes.html"), ("unsup", "3.txt")] {
        fs::create_dir_all(folder.path().join(class)).unwrap();
        fs::write(folder.path().join(class).join(name), "a text").unwrap();
    }
    assert_eq!(rows(folder.path(), &Options::default()), ["a text=0", "a text=1"]);
    fs::create_dir(folder.path().join("neutral")).unwrap();
    assert_error(Table::read(folder.path(), &Options::default()), "neutral", "is beside the folders neg and pos");
}

#[test]
fn columns_are_recognized_by_common_names() {
    for (header, wanted) in [
        ("Review Text,Rating", "a=1"),
        ("ID,description,Sentiment_Label", "b=c"),
        ("Unnamed: 0,Clothing ID,Title,Review Text,Rating,Class Name", "d=e"),
        ("tweet_id,airline_sentiment,name,text", "d=b"),
        ("OriginalTweet,TweetAt,Sentiment", "a=c"),
        ("post-id,score,body", "c=b"),
        ("text,label,rating", "a=b"),
    ] {
        let values = &["a", "b", "c", "d", "e", "f"][..header.split(',').count()];
        let content = format!("{header}\n{}\n", values.join(","));
        let content = if values.len() == 2 { format!("{header}\na,1\n") } else { content };
        assert_eq!(rows(&file("a.csv", content).1, &Options::default()), [wanted], "{header}");
    }
    for (header, part) in [
        ("id,title,body,label", "no text column among id, title, body, label"),
        ("date,text,stars,score", "no label column among date, text, stars, score"),
    ] {
        let content = format!("{header}\n1,2,3,4\n");
        let table = Table::read(&file("a.csv", content).1, &Options::default());
        match table {
            Err(_) => assert_error(table, "a.csv", part),
            Ok(table) => assert_error(classify(vec![table], ModelClasses::Replaceable(None), None), "a.csv", part),
        }
    }
    let named = Options { label_column: Some("STARS".into()), ..Default::default() };
    assert_eq!(rows(&file("a.csv", "date,text,stars,score\n1,2,3,4\n").1, &named), ["2=3"]);
    // Common names are values, too.
    let (_folder, path) = file("a.csv", "spam,win a prize now\nham,see you at home\nspam,call now\nham,all is well\n");
    assert_eq!(rows(&path, &Options::default())[0], "win a prize now=spam");
}

#[test]
fn several_possible_label_columns_without_names_are_refused() {
    let content = "0,good film,de,pos\n1,bad film,en,neg\n2,fine,en,pos\n3,dull,en,neg\n4,a story,de,pos\n5,a script,en,neg\n";
    let (_folder, path) = file("a.csv", content);
    let part = "several of its 4 columns without names may be labels: 3, 4; name one with --label-column";
    assert_error(Table::read(&path, &Options::default()), "a.csv", part);
    let four = Options { label_column: Some("4".into()), ..Default::default() };
    assert_eq!(rows(&path, &four)[1], "bad film=neg");
    assert_eq!(predicted(&path, &[]).0[2], "fine");
    // Letters tell texts from dates, and labels are not fractions.
    let row = |i: usize| format!("{},Mon Apr 06 22:19:4{i} PDT 2009,0.{},it is so {i} good\n", i % 2 * 4, i % 2 + 1);
    let (_folder, path) = file("a.csv", (0..6).map(row).collect::<String>());
    assert_eq!(rows(&path, &Options::default())[..2], ["it is so 0 good=0", "it is so 1 good=4"]);
}

#[test]
fn quotes_after_spaces_and_quotes_around_lines() {
    let plain = Options::default();
    for (content, wanted) in [
        ("text, label\n\"good\", \"pos\"\n\"fine, moving\", \"neg\"\n", ["good=pos", "fine, moving=neg"]),
        ("\"id\", \"text\", \"label\"\r\n1, \"a, \"\"b\"\"\nc\", \"x\"\r\n2, \"d\",  \"y\"\r\n", ["a, \"b\"\nc=x", "d=y"]),
        ("label,text\n1, \"Great\" he said\n0,\"no, \"\"no\"\"\"\n", [" \"Great\" he said=1", "no, \"no\"=0"]),
    ] {
        let (_folder, path) = file("a.csv", content);
        assert_eq!(rows(&path, &plain), wanted, "{content}");
    }
    let place = Table::read(&file("a.csv", "text, label\n\"a\nb\", \"1\"\n\"c\", \"0\"\n").1, &plain).unwrap().place(1);
    assert!(place.ends_with("a.csv:4"), "{place}");

    let (texts, notes) = predicted(&file("a.tsv", "text\n\"line one\nline two\"\nanother\n").1, &[]);
    assert_eq!((texts.len(), notes.len()), (2, 1));
    assert!(notes[0].contains("quotes are taken to enclose fields; --quoting off reads them"), "{notes:?}");
    let (_folder, path) = file("a.tsv", "text\tlabel\n\"a\nb\"\tpos\nc \"d\"\tneg\n");
    assert_eq!(rows(&path, &plain), ["a\nb=pos", "c \"d\"=neg"]);
    for (content, wanted) in [
        ("text\n\"an open quote\nand \"two\" words\n\"closed\"\n", 3),
        ("text\tlabel\n\"an open quote\t1\nand a last one\"\t0\n", 2),
    ] {
        assert_eq!(rows(&file("a.tsv", content).1, &plain).len(), wanted, "{content}");
    }
}

#[test]
fn data_frames_in_json() {
    for content in [
        "{\"text\": {\"0\": \"a\", \"1\": \"b\"}, \"label\": {\"0\": \"pos\", \"1\": \"neg\"}}",
        "{\"text\": [\"a\", \"b\"], \"label\": [\"pos\", \"neg\"]}",
        "{\"10\": {\"text\": \"a\", \"label\": \"pos\"}, \"9\": {\"text\": \"b\", \"label\": \"neg\"}}",
        "{\"columns\": [\"text\", \"label\"], \"index\": [0, 1], \"data\": [[\"a\", \"pos\"], [\"b\", \"neg\"]]}",
        "{\"schema\": {\"fields\": [{\"name\": \"text\"}]}, \"data\": [{\"text\": \"a\", \"label\": \"pos\"}, {\"text\": \"b\", \"label\": \"neg\"}]}",
        "{\"words\": {\"0\": \"a\", \"1\": \"b\"}, \"label\": {\"0\": \"pos\", \"1\": \"neg\"}}",
        "{\"features\": [{\"name\": \"text\"}], \"rows\": [{\"row\": {\"text\": \"a\", \"label\": \"pos\"}}, {\"row\": {\"text\": \"b\", \"label\": \"neg\"}}]}",
        "{\"hits\": {\"hits\": [{\"_id\": \"1\", \"_source\": {\"text\": \"a\", \"label\": \"pos\"}}, {\"_source\": {\"text\": \"b\", \"label\": \"neg\"}}]}}",
        "[{\"text\": \"a\", \"label\": [\"pos\"]}, {\"text\": \"b\", \"label\": [\"neg\"]}]",
    ] {
        for name in ["a.json", "a.jsonl"] {
            let (_folder, path) = file(name, content);
            assert_eq!(rows(&path, &Options::default()), ["a=pos", "b=neg"], "{content}");
            if name == "a.json" {
                assert_eq!(predicted(&path, &[]).0, ["a", "b"], "{content}");
            }
        }
    }
    let missing = file("a.json", "{\"text\": {\"0\": \"a\", \"1\": null}, \"label\": {\"0\": 1, \"1\": 0}}");
    assert_error(Table::read(&missing.1, &Options::default()), "a.json: row 1 (from 0)", "text is missing or null");
    let nan = file("a.jsonl", "{\"text\": \"a\", \"label\": NaN}\n");
    assert_error(Table::read(&nan.1, &Options::default()), "a.jsonl:1", "write null for NaN");
    let answers =
        ["accept", "reject", "ignore"].map(|answer| format!("{{\"text\":\"a\",\"label\":\"x\",\"answer\":\"{answer}\"}}\n"));
    let prodigy = file("a.jsonl", answers.concat());
    assert_eq!(rows(&prodigy.1, &Options::default()), ["a=x"]);
    assert_eq!(predicted(&prodigy.1, &[]).0.len(), 3);
}

#[test]
fn one_key_of_json_lines_holds_all_texts() {
    let (_folder, path) = file("a.jsonl", "{\"text\": \"a\"}\n{\"sentence\": \"b\"}\n");
    predict(&path, &[]).failed(2, "a.jsonl:2`: no \"text\", which holds the text of the rows before");
    let (_folder, path) =
        file("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"x\"}\n{\"prompt\": \"b\", \"completion\": \"y\"}\n");
    assert_eq!(predicted(&path, &[]).0, ["a", "b"]);
    let (_folder, path) = file("a.jsonl", "{\"stars\": 5, \"words\": \"a\"}\n{\"stars\": 1, \"words\": \"b\"}\n");
    assert_eq!(predicted(&path, &[]).0, ["a", "b"]);
}

#[test]
fn encodings_by_other_spellings() {
    for (name, wanted) in [
        ("utf_16_le", "UTF-16LE"),
        ("UTF-16-BE", "UTF-16BE"),
        ("utf16", "UTF-16LE"),
        ("latin9", "ISO-8859-15"),
        ("iso8859_16", "ISO-8859-16"),
        ("euc_jp", "EUC-JP"),
        ("eucjp", "EUC-JP"),
        ("iso2022_jp", "ISO-2022-JP"),
        ("cp949", "EUC-KR"),
        ("big5hkscs", "Big5"),
        ("mac_roman", "macintosh"),
        ("u8", "UTF-8"),
    ] {
        assert_eq!(encoding(name).map(Encoding::name), Some(wanted), "{name}");
    }
}

#[test]
fn rows_as_r_and_excel_write_them() {
    let r = "\"text\"\t\"label\"\n\"1\"\t\"good\"\t\"pos\"\n\"2\"\t\"bad\"\t\"neg\"\n";
    assert_eq!(rows(&file("a.tsv", r).1, &Options::default()), ["good=pos", "bad=neg"]);
    let commas = file("a.csv", "text,label\nfine, moving,pos\ndull, flat,neg\n");
    assert_error(Table::read(&commas.1, &Options::default()), "a.csv:2", "3 fields, but the header has 2");
    let excel = file("a.csv", "Text;Label;;\r\ngood;pos;;\r\n;;;\r\nbad;neg;;\r\n;;;\r\n");
    assert_eq!(rows(&excel.1, &Options::default()), ["good=pos", "bad=neg"]);
    assert_eq!(predict(&excel.1, &[]).done().out.lines().count(), 4, "every row is answered");
    let (_, notes) = predicted(&file("a.csv", "Survey,\nText,Label\ngood,pos\n").1, &[]);
    assert!(notes.concat().contains("the texts are taken from Survey"), "{notes:?}");
}

/// Databases write a backslash before a quote in a field, where CSV doubles it.
#[test]
fn quotes_after_backslashes_are_quotes() {
    let read = |content: &str| {
        let (_folder, path) = file("a.csv", content);
        rows(&path, &Options::default())
    };
    let escaped = "text,label\n\"he said \\\"awful, 5\\\" ok\",0\n\"a \\\\ b\",1\n";
    assert_eq!(read(escaped), ["he said \"awful, 5\" ok=0", "a \\ b=1"]);
    // A backslash at the end of a field is one.
    let doubled = "text,label\n\"C:\\\",0\n\"say \"\"it\"\"\",1\n";
    assert_eq!(read(doubled), ["C:\\=0", "say \"it\"=1"]);
}

#[test]
fn a_key_that_is_given_twice_is_refused() {
    let (_folder, path) = file("a.jsonl", "{\"text\":\"a\",\"label\":1,\"label\":0}\n");
    let error = Table::read(&path, &Options::default()).err().unwrap().to_string();
    assert!(error.contains("the key label is given twice") && error.contains("keep one of them"), "{error}");
}

#[test]
fn a_second_column_that_could_be_of_labels_is_named() {
    let (_folder, path) = file("a.csv", "text,sentiment,label\ngood,1,0\nbad,0,1\n");
    let table = Table::read(&path, &Options::default()).unwrap();
    let words = table.columns_in_words();
    assert!(words.ends_with(": texts from \"text\", labels from \"label\", not \"sentiment\""), "{words}");
}

/// The test splits of GLUE have the numbers of their rows, and no labels.
#[test]
fn an_index_is_no_label() {
    for index in ["index", "idx", "id"] {
        let (_folder, path) = file("test.tsv", format!("{index}\tsentence\n0\tgood\n1\tbad\n"));
        assert_eq!(rows(&path, &Options::default()), ["good", "bad"], "{index}");
    }
}
