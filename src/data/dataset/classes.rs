//! From the labels in files to classes: decided once, for all files of a run together.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

use super::columns::{Columns, LABEL, Names, TEXT};
use super::{Dataset, Table, brief, list};
use crate::error::{Error, Result, is_control};
use crate::report::log::counted;

/// The classes of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classes {
    /// In order of index.
    pub names: Vec<String>,
    /// How the labels were read where it is not obvious, one line each.
    pub notes: Vec<String>,
}

/// The classes of the model beside the files.
#[derive(Clone, Copy, Debug)]
pub enum ModelClasses<'a> {
    /// They are kept if the labels fit them, else replaced. `None` if they are only LABEL_0, LABEL_1, ...
    Replaceable(Option<&'a [String]>),
    /// Labels that do not fit them are an error.
    Fixed(&'a [String]),
}

/// What people write between several labels; doccano writes `#`.
const LIST_SEPARATORS: [char; 4] = [',', ';', '|', '#'];

/// A table's distinct labels.
struct Part<'a> {
    table: &'a Table,
    /// As in the file, trimmed, with the first row of each.
    raw: Vec<(&'a str, usize)>,
    /// The label that each means: a name, or a bare number.
    labels: Vec<String>,
}

/// Chooses the classes of these tables, of which the first is the training data if there are several, and converts each table's
/// labels to indices. `given` names the bare indices in the files (`--label-names`).
///
/// A file's own class names are used first. Then all labels together are either names or numbers: the model's, or else classes
/// of their own, in the order of the files' class names, else sorted (numbers by value; LABEL_0, LABEL_1, ... if they are exactly
/// 0, 1, ...). Names fit a model's in any order; numbers fit a model's indices only if their count agrees.
///
/// # Errors
/// A missing label or label column; labels that are fractions or lists; files of numbers beside files of names; labels that do not
/// fit fixed classes.
pub fn classify(tables: Vec<Table>, model: ModelClasses, given: Option<&[String]>) -> Result<(Classes, Vec<Dataset>)> {
    let mut parts = tables.iter().map(|table| Part::new(table, given)).collect::<Result<Vec<_>>>()?;
    check_kind(&parts)?;
    let mut notes = suspicious(&parts);
    let declared = declared(&parts, given);
    notes.extend(name_bare(&mut parts, &declared, given.is_some())?);
    if let Some(given) = given {
        check_given(&parts, given)?;
    }
    notes.extend(tables.iter().filter_map(Table::empty_texts));
    notes.extend(respelled(&mut parts));
    notes.extend(untrained(&parts));
    if matches!(model, ModelClasses::Replaceable(_)) {
        notes.extend(given.and_then(|given| without_rows(&parts[0], given)));
    }
    let (names, class, note) = choose(&parts, &declared, model, given)?;
    notes.extend(note);
    // A label may hold line ends; a note is one line.
    notes.iter_mut().for_each(|note| *note = note.replace(is_control, " "));
    let maps: Vec<HashMap<String, u32>> = parts
        .iter()
        .map(|part| part.raw.iter().zip(&part.labels).map(|((raw, _), label)| (raw.to_string(), class[label])).collect())
        .collect();
    let dataset = |(table, class): (Table, HashMap<String, u32>)| Dataset {
        labels: table.labels.iter().flatten().map(|label| class[label.trim()]).collect(),
        texts: table.texts,
    };
    let datasets = tables.into_iter().zip(maps).map(dataset).collect();
    Ok((Classes { names, notes }, datasets))
}

impl Table {
    /// Whether no row has a label: there is no column of labels, or it is empty or -1 throughout.
    pub fn is_unlabelled(&self) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.iter().all(|label| matches!(label.trim(), "" | "-1" | "-1.0")))
    }

    /// The columns that were chosen, in words.
    pub fn columns_in_words(&self) -> String {
        let name = |column: usize| self.column_names.get(column).map(|name| brief(name)).unwrap_or_default();
        let Columns { text, label, .. } = self.columns;
        let label_name = label.map(|label| format!(", labels from \"{}\"", name(label))).unwrap_or_default();
        // Another column that would have been taken without the one that was.
        let left = |names: &Names| {
            let unused = (0..self.column_names.len()).filter(|&i| i != text && Some(i) != label);
            let left: Vec<String> =
                unused.filter(|&i| names.is_usual(&self.column_names[i])).map(|i| format!("\"{}\"", name(i))).collect();
            if left.is_empty() { String::new() } else { format!(", not {}", left.join(", ")) }
        };
        let not_label = if label.is_some() { left(&LABEL) } else { String::new() };
        format!("{}: texts from \"{}\"{}{label_name}{not_label}", self.path().display(), name(text), left(&TEXT))
    }

    /// Whether the labels of this table come from a column with a recognized name, or with the name that `other` has for it.
    pub fn has_labels_like(&self, other: &Table) -> bool {
        let name = |table: &Table| table.columns.label.map(|label| table.column_names[label].to_lowercase());
        name(self).is_some_and(|label| LABEL.has(&label) || Some(label) == name(other))
    }

    /// A note on texts without a word.
    fn empty_texts(&self) -> Option<String> {
        let mut empty = (0..self.texts.len()).filter(|&row| self.texts[row].trim().is_empty());
        let (first, others) = (empty.next()?, empty.count());
        Some(format!("{}: empty texts, which are kept as [CLS] [SEP]: {}", self.place(first), 1 + others))
    }

    /// Each distinct label, trimmed, with the first row that has it, in order of appearance.
    fn distinct_labels(&self) -> Result<Vec<(&str, usize)>> {
        let Some(labels) = &self.labels else {
            let fact = format!("no label column among {}", list(&self.column_names));
            let Columns { text, id, .. } = self.columns;
            let remedy = match (0..self.column_names.len()).filter(|&i| i != text && Some(i) != id).count() {
                0 => "add a column of labels",
                1 => "name it with --label-column",
                _ => "name it with --label-column; several label columns (multi-label classification) are not supported",
            };
            return Err(Error::user(self.path().display(), fact, remedy));
        };
        let mut seen = HashSet::new();
        let distinct: Vec<_> =
            labels.iter().enumerate().map(|(row, label)| (label.trim(), row)).filter(|(label, _)| seen.insert(*label)).collect();
        // The `datasets` library writes -1 for a class that is not known.
        let is_missing = |label: &str| label.is_empty() || label == "-1" && self.class_names.is_some();
        match distinct.iter().find(|(label, _)| is_missing(label)) {
            Some((label, row)) => {
                let fact = format!("the label is missing{}", if label.is_empty() { "" } else { " (-1)" });
                Err(Error::user(self.place(*row), fact, "give it, or remove the row"))
            }
            None => Ok(distinct),
        }
    }
}

impl<'a> Part<'a> {
    fn new(table: &'a Table, given: Option<&[String]>) -> Result<Part<'a>> {
        let raw = table.distinct_labels()?;
        let Some(own) = &table.class_names else {
            let labels: Vec<String> = raw.iter().map(|(label, _)| label.to_string()).collect();
            // Where every label has a comma between digits, it is the decimal one.
            let with_points: Option<Vec<String>> = labels.iter().map(|label| decimal(label)).collect();
            let labels = with_points.unwrap_or(labels);
            // 2.0 is 2 in a file of numbers, and a name beside names.
            let numbers: Option<Vec<String>> = labels.iter().map(|label| Some(whole(label)?.to_string())).collect();
            let labels = numbers.unwrap_or(labels);
            return Ok(Part { table, labels, raw });
        };
        if let Some(given) = given.filter(|given| given.len() != own.len()) {
            let given = counted(given.len(), "name");
            let fact = format!("{given} for the {} classes of {}: {}", own.len(), table.path().display(), list(own));
            return Err(Error::user("--label-names", fact, "give one name per class, in this order"));
        }
        let names = given.unwrap_or(own);
        let name = |&(label, row): &(&str, usize)| match whole(label) {
            None => Ok(label.to_string()),
            Some(index) => usize::try_from(index).ok().and_then(|index| names.get(index)).cloned().ok_or_else(|| {
                let fact = format!("the label {index} is out of range: the {} classes are numbered from 0", names.len());
                Error::user(table.place(row), fact, format!("the classes are {}", list(names)))
            }),
        };
        Ok(Part { table, labels: raw.iter().map(name).collect::<Result<_>>()?, raw })
    }

    /// Numbers alone, in a file that does not name them.
    fn is_bare(&self) -> bool {
        self.table.class_names.is_none() && self.labels.iter().all(|label| whole(label).is_some())
    }

    fn place(&self, label: &str) -> Option<String> {
        let at = self.labels.iter().position(|other| other == label)?;
        Some(self.table.place(self.raw[at].1))
    }
}

/// Refuses what is not one class per text: fractions, and lists of classes.
fn check_kind(parts: &[Part]) -> Result<()> {
    let all: HashSet<&str> = labels(parts).collect();
    let real = |label: &str| label.parse::<f64>().ok().filter(|n| n.is_finite());
    let is_fraction = |label: &str| whole(label).is_none() && real(label).is_some_and(|n| n.fract() != 0.0);
    let numbers = all.iter().all(|label| real(label).is_some() || is_missing_value(label));
    let is_list = |label: &str| {
        let parts: Vec<&str> = label.split(LIST_SEPARATORS).map(str::trim).collect();
        let is_class = |part: &&str| all.contains(*part) || whole(part).is_some();
        let is_json = label.starts_with('[') && label.ends_with(']') || label.starts_with('{') && label.ends_with('}');
        is_json || parts.len() > 1 && parts.iter().all(is_class)
    };
    for part in parts {
        for (label, (_, row)) in part.labels.iter().zip(&part.raw) {
            let fact = if numbers && is_fraction(label) {
                format!("the label {} is not a whole number, and regression is not supported", brief(label))
            } else if is_list(label) {
                format!("the label \"{}\" is a list, and several labels per text are not supported", brief(label))
            } else {
                continue;
            };
            return Err(Error::user(part.table.place(*row), fact, "give each text one of a few classes"));
        }
    }
    Ok(())
}

/// The class names that the files or the user declare, in order; empty without any.
fn declared(parts: &[Part], given: Option<&[String]>) -> Vec<String> {
    let lists =
        given.into_iter().chain(parts.iter().filter(|_| given.is_none()).filter_map(|part| part.table.class_names.as_deref()));
    let mut seen = HashSet::new();
    lists.flatten().filter(|name| seen.insert(*name)).cloned().collect()
}

/// Makes one decision for all labels of the run: booleans in one spelling, with 0 and 1 beside them, and bare numbers as indices
/// of the declared names unless they are these names. Returns how it read numbers where the names leave a choice.
fn name_bare(parts: &mut [Part], declared: &[String], given: bool) -> Result<Option<String>> {
    let boolean = |label: &str| match &*label.to_lowercase() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    };
    let booleans = labels(parts).all(|label| boolean(label).is_some()) && labels(parts).any(|label| whole(label).is_none());
    // Given names are those of 0 and 1.
    let names_booleans = booleans && given && !declared.iter().any(|name| is_boolean(name));
    if booleans {
        if names_booleans && declared.len() != 2 {
            let fact = format!("{} for false and true", counted(declared.len(), "name"));
            return Err(Error::user("--label-names", fact, "give two, that of false first"));
        }
        let spelled = |value: bool| if names_booleans { u8::from(value).to_string() } else { value.to_string() };
        parts.iter_mut().flat_map(|part| &mut part.labels).for_each(|label| *label = spelled(boolean(label).expect("all are")));
    }
    let (bare, named): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.is_bare());
    let names: HashSet<&str> = named.iter().flat_map(|part| &part.labels).chain(declared).map(String::as_str).collect();
    let union: BTreeSet<&str> = bare.iter().flat_map(|part| &part.labels).map(String::as_str).collect();
    let numbers = match bare.first() {
        Some(numbers) if !names.is_empty() && !union.iter().all(|label| names.contains(label)) => numbers,
        _ => return Ok(None),
    };
    // Given names are those of the numbers in ascending order: of indices, or of 1 and 2, -1 and 1, 0 and 4.
    let values: BTreeSet<i64> = union.iter().filter_map(|label| whole(label)).collect();
    let ranks = given && values.len() == declared.len() && !indices(&union, declared.len());
    let fits = ranks || if given { indices(&union, declared.len()) } else { counts_agree(&union, declared.len()) };
    if !fits {
        let remedy = "give every file names or every file numbers, or pass --label-names with the names in order of number";
        let (place, fact) = match named.first() {
            Some(other) => {
                let fact =
                    format!("the labels are numbers ({}), but names in {}", in_words(&union), other.table.path().display());
                (numbers.table.path().display().to_string(), format!("{fact} ({})", list(&other.labels)))
            }
            None => {
                let fact = format!("{} for the labels {}", counted(declared.len(), "name"), in_words(&union));
                ("--label-names".to_string(), fact)
            }
        };
        return Err(Error::user(place, fact, remedy));
    }
    let class = |value: i64| if ranks { values.iter().take_while(|&&other| other < value).count() } else { value as usize };
    let class: HashMap<String, u32> =
        union.iter().map(|label| (label.to_string(), class(whole(label).expect("bare")) as u32)).collect();
    let all_named = values.iter().copied().eq(0..declared.len() as i64);
    let order = match (names_booleans, ranks) {
        (true, _) => "are those of false and true",
        (_, true) => "have the order of the numbers",
        (_, false) => "are counted from 0",
    };
    let written = |label: &String| if names_booleans { (label == "1").to_string() } else { label.clone() };
    let note = (given && !all_named).then(|| {
        let read = class.iter().map(|(label, &class)| (written(label), class)).collect();
        format!("{}: --label-names {order}", taken(&read, declared, ""))
    });
    for part in parts.iter_mut().filter(|part| part.is_bare()) {
        part.labels.iter_mut().for_each(|label| *label = declared[class[label] as usize].clone());
    }
    Ok(note)
}

type Chosen = (Vec<String>, HashMap<String, u32>, Option<String>);

/// The names, the class of each label, and how the labels fit the model's names unless they are the same.
fn choose(parts: &[Part], declared: &[String], model: ModelClasses, given: Option<&[String]>) -> Result<Chosen> {
    let all: BTreeSet<&str> = labels(parts).collect();
    let bare = parts.iter().all(Part::is_bare) && all.iter().all(|label| whole(label).is_some());
    let by_index = |n: usize| bare && counts_agree(&all, n);
    let indexed =
        || -> HashMap<String, u32> { all.iter().map(|label| (label.to_string(), whole(label).expect("bare") as u32)).collect() };
    let mut note = None;
    match model {
        ModelClasses::Replaceable(None) => {}
        ModelClasses::Replaceable(Some(names)) | ModelClasses::Fixed(names) => {
            // The user's names are those of a model that has none.
            let unnamed = is_unnamed(names);
            let names = given.filter(|given| unnamed && given.len() == names.len()).unwrap_or(names);
            // Given names that the model lacks are classes even without rows.
            let given = given.into_iter().flatten().map(String::as_str);
            let known = given.filter(|_| matches!(model, ModelClasses::Replaceable(_))).chain(all.iter().copied()).collect();
            let read = |class| Some(taken(class, names, "the model's ")).filter(|_| !unnamed);
            if let Some((class, exact)) = by_name(&known, names) {
                let differs = |label: &&str| whole(label) != Some(i64::from(class[*label]));
                let ambiguous = by_index(names.len()) && all.iter().any(differs);
                let note = match (exact, ambiguous) {
                    (true, false) => None,
                    (true, true) => {
                        Some(format!("the labels {} are taken as the model's names, not its indices", in_words(&all)))
                    }
                    (false, _) => read(&class),
                };
                return Ok((names.to_vec(), class, note.filter(|_| !unnamed)));
            }
            if by_index(names.len()) || unnamed && bare && indices(&all, names.len()) {
                let class = indexed();
                let note = read(&class);
                return Ok((names.to_vec(), class, note));
            }
            let fixed = matches!(model, ModelClasses::Fixed(_));
            let fits_declared = all.iter().all(|label| declared.iter().any(|name| name == label));
            if fixed && unnamed && declared.len() == names.len() && fits_declared {
                let note =
                    format!("the model's classes have no names: they are taken in the order of the file's {}", list(declared));
                return Ok((declared.to_vec(), in_order(declared), Some(note)));
            }
            if fixed {
                return Err(misfit(parts, &all, names, bare));
            }
            let own = own_names(&all, bare, declared);
            // Only the number of classes decides over the shape of the classifier.
            let kept = if own.len() == names.len() { ", and its classifier is trained further" } else { "" };
            note = Some(format!("the classes are those of the files, {}; the model's were {}{kept}", list(&own), list(names)));
        }
    }
    let names = own_names(&all, bare, declared);
    let class = match names.first() {
        Some(first) if bare && first == "LABEL_0" => indexed(),
        _ => in_order(&names),
    };
    Ok((names, class, note))
}

/// How labels were read: "the labels 1, 2 are taken as the model's bad, good".
fn taken(class: &HashMap<String, u32>, names: &[String], whose: &str) -> String {
    let mut labels: Vec<String> = class.keys().cloned().collect();
    labels.sort_by_key(|label| (whole(label), label.clone()));
    let classes: Vec<String> = labels.iter().map(|label| names[class[label] as usize].clone()).collect();
    let (noun, verb) = if labels.len() == 1 { ("label", "is") } else { ("labels", "are") };
    format!("the {noun} {} {verb} taken as {whose}{}", list(&labels), list(&classes))
}

fn is_unnamed(names: &[String]) -> bool {
    names.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"))
}

fn misfit(parts: &[Part], all: &BTreeSet<&str>, names: &[String], bare: bool) -> Error {
    let known = |label: &str| by_name(&BTreeSet::from([label]), names).is_some();
    let index = |label: &str| bare && whole(label).is_some_and(|n| (0..names.len() as i64).contains(&n));
    let mut places = parts.iter().flat_map(|part| part.labels.iter().map(move |label| (part, label)));
    let first = places.clone().find(|(_, label)| !known(label) && !index(label));
    let mut remedy = format!("the classes are {}; the labels are {}", list(names), in_words(all));
    if !bare && is_unnamed(names) {
        remedy += "; name the classes in order with --label-names";
    }
    let Some((part, label)) = first else {
        let (part, _) = places.next().expect("a table has a label");
        let fact = format!("bare numbers fit the {} named classes only if they reach {}", names.len(), names.len() - 1);
        return Error::user(part.table.path().display(), fact, format!("{remedy}; name them in order with --label-names"));
    };
    let place = part.place(label).expect("one of its labels");
    let fact = match whole(label) {
        Some(n) if bare && n < 0 => format!("the label {n} is negative"),
        Some(n) if bare => format!("the label {n} is out of range: the {} classes are numbered from 0", names.len()),
        _ => format!("the label \"{}\" is not one of the classes", brief(label)),
    };
    Error::user(place, fact, remedy)
}

/// Classes that no model names.
fn own_names(all: &BTreeSet<&str>, bare: bool, declared: &[String]) -> Vec<String> {
    if !declared.is_empty() {
        let others = all.iter().filter(|label| !declared.iter().any(|name| name == *label)).map(|label| label.to_string());
        return declared.iter().cloned().chain(others).collect();
    }
    if !bare {
        return all.iter().map(|label| label.to_string()).collect();
    }
    let values: BTreeSet<i64> = all.iter().filter_map(|label| whole(label)).collect();
    let counted = values.iter().copied().eq(0..values.len() as i64);
    values.iter().map(|value| if counted { format!("LABEL_{value}") } else { value.to_string() }).collect()
}

fn in_order(names: &[String]) -> HashMap<String, u32> {
    names.iter().cloned().zip(0..).collect()
}

/// The class of each label by its name, and whether all names are written exactly so. `None` unless every label is a name.
fn by_name(labels: &BTreeSet<&str>, names: &[String]) -> Option<(HashMap<String, u32>, bool)> {
    let exact: HashMap<&str, u32> = names.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect();
    let found = |class: &dyn Fn(&str) -> Option<u32>| {
        labels.iter().map(|label| Some((label.to_string(), class(label)?))).collect::<Option<HashMap<_, _>>>()
    };
    if let Some(class) = found(&|label| exact.get(label).copied()) {
        return Some((class, true));
    }
    let plain: HashMap<String, u32> = names.iter().zip(0..).map(|(name, class)| (plain(name), class)).collect();
    let class = found(&|label| plain.get(&self::plain(label)).copied()).filter(|_| plain.len() == names.len())?;
    Some((class, false))
}

/// A name without what people vary: case, the usual abbreviations of two classes, and the word after a number of stars.
pub fn plain(name: &str) -> String {
    match name.trim().to_lowercase().as_str() {
        "neg" => "negative".to_string(),
        "pos" => "positive".to_string(),
        other => other.strip_suffix(" stars").or(other.strip_suffix(" star")).unwrap_or(other).to_string(),
    }
}

/// A label without what differs unseen or by habit: case, Unicode's forms of one character, spaces, hyphens and underscores.
fn without_spelling(label: &str) -> String {
    let composed: String = label.nfkc().map(|(c, _)| c).collect();
    let is_habit = |c: char| c.is_whitespace() || "_-".contains(c) || is_invisible(c);
    composed.to_lowercase().replace(is_habit, "")
}

fn is_invisible(c: char) -> bool {
    c.is_other_format() || c.is_other_control()
}

fn is_boolean(label: &str) -> bool {
    ["true", "false"].contains(&&*label.to_lowercase())
}

/// Notes on labels that are probably not meant as classes.
fn suspicious(parts: &[Part]) -> Vec<String> {
    let mut notes = Vec::new();
    let first = |label: &str| parts.iter().find_map(|part| part.place(label)).unwrap_or_default();
    let all: BTreeSet<&str> = labels(parts).collect();
    let booleans = all.iter().all(|label| is_boolean(label) || ["0", "1"].contains(label));
    for label in all.iter().filter(|label| is_missing_value(label)) {
        notes.push(format!("{}: the label \"{label}\" looks like a missing value, and is taken as a class", first(label)));
    }
    let (numbers, names): (Vec<&str>, Vec<&str>) =
        all.iter().filter(|label| !is_missing_value(label)).partition(|l| whole(l).is_some());
    // Files of numbers beside files of names are refused.
    let mixed = parts.iter().any(|part| part.table.class_names.is_none() && !part.is_bare());
    if booleans && !names.is_empty() && !numbers.is_empty() {
        notes.push("the labels 0 and 1 are read as false and true".to_string());
    } else if mixed && !names.is_empty() && !numbers.is_empty() {
        let (odd, others, kind) =
            if names.len() > numbers.len() { (&numbers, &names, "number") } else { (&names, &numbers, "name") };
        let few = |labels: &[&str]| list(&labels.iter().map(|label| label.to_string()).collect::<Vec<_>>());
        notes.push(format!("{}: the label \"{}\" is a {kind} among {}", first(odd[0]), brief(odd[0]), few(others)));
    }
    let mut spellings: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let names = all.iter().filter(|label| whole(label).is_none());
    names.for_each(|label| spellings.entry(without_spelling(label)).or_default().push(label));
    for same in spellings.values().filter(|same| same.len() > 1 && !booleans).take(5) {
        let visible = same.iter().map(|label| label.replace(is_invisible, "\u{fffd}")).collect::<Vec<_>>().join(", ");
        let only_case = same.iter().all(|label| label.to_lowercase() == same[0].to_lowercase());
        let what = if only_case { "case" } else { "case, spaces, hyphens or Unicode form" };
        notes.push(format!("the labels {visible} differ only in {what}, and are taken as different classes"));
    }
    let is_class_of = |label: &str| {
        let mut parts = label.split(LIST_SEPARATORS).map(str::trim).filter(|part| *part != label);
        parts.any(|part| all.contains(part))
    };
    if let Some(label) = all.iter().find(|label| is_class_of(label)) {
        notes.push(format!(
            "{}: the label \"{}\" looks like a list of classes, and is taken as one class",
            first(label),
            brief(label)
        ));
    }
    for part in parts {
        let written = part.table.labels.iter().flatten().enumerate();
        if let Some((row, label)) = written.clone().find(|(_, label)| label.trim() != label.as_str())
            && written.clone().any(|(_, other)| other == label.trim())
        {
            notes.push(format!("{}: spaces around labels are removed, as in \"{}\"", part.table.place(row), brief(label)));
        }
    }
    notes
}

/// Labels of the other files that the training data spells otherwise become its labels, with a note.
fn respelled(parts: &mut [Part]) -> Option<String> {
    let (train, others) = parts.split_first_mut()?;
    let known: HashSet<&String> = train.labels.iter().collect();
    let by_plain: HashMap<String, &String> = train.labels.iter().map(|label| (plain(label), label)).collect();
    let mut changed = BTreeSet::new();
    for label in others.iter_mut().flat_map(|part| &mut part.labels) {
        // Labels that the training data tells apart stay apart.
        let same = by_plain.get(&plain(label)).filter(|_| !known.contains(label) && by_plain.len() == known.len());
        if let Some(&same) = same {
            changed.insert(format!("{} as {}", brief(label), brief(same)));
            *label = same.clone();
        }
    }
    let changed: Vec<String> = changed.into_iter().collect();
    (!changed.is_empty())
        .then(|| format!("labels spelled otherwise than in the training data are taken as its own: {}", list(&changed)))
}

/// Notes on labels of the other files that the training data does not have.
fn untrained(parts: &[Part]) -> Vec<String> {
    let Some((train, others)) = parts.split_first() else { return Vec::new() };
    let known: HashSet<&String> = train.labels.iter().collect();
    let note = |part: &Part| {
        let absent: Vec<_> = part.labels.iter().zip(&part.raw).filter(|(label, _)| !known.contains(label)).collect();
        let place = part.table.place(absent.first()?.1.1);
        let labels: Vec<String> = absent.iter().map(|(label, _)| format!("\"{label}\"")).collect();
        Some(format!("{place}: no training row has the label{} {}", if labels.len() > 1 { "s" } else { "" }, list(&labels)))
    };
    others.iter().filter_map(note).collect()
}

/// A note on given names that no training row has.
fn without_rows(train: &Part, given: &[String]) -> Option<String> {
    let empty: Vec<String> = given.iter().filter(|name| !train.labels.contains(name)).cloned().collect();
    let path = train.table.path().display();
    (!empty.is_empty()).then(|| format!("{path}: no training row has these of --label-names: {}", list(&empty)))
}

fn check_given(parts: &[Part], given: &[String]) -> Result<()> {
    match labels(parts).find(|label| !given.iter().any(|name| name == label)) {
        None => Ok(()),
        Some(label) => {
            let place = parts.iter().find_map(|part| part.place(label)).expect("one of their labels");
            let fact = format!("the label \"{}\" is not one of --label-names", brief(label));
            Err(Error::user(place, fact, format!("these are {}", list(given))))
        }
    }
}

/// The number of texts of each class: "neg: 12, pos: 13".
pub fn counts_in_words(names: &[String], labels: &[u32]) -> String {
    const SHOWN: usize = 12;
    let mut counts = vec![0usize; names.len()];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    let shown: Vec<String> =
        names.iter().zip(&counts).take(SHOWN).map(|(name, count)| format!("{}: {count}", brief(name))).collect();
    let more = if names.len() > SHOWN { format!(", ... ({} classes)", names.len()) } else { String::new() };
    shown.join(", ").replace(is_control, " ") + &more
}

fn labels<'a>(parts: &'a [Part]) -> impl Iterator<Item = &'a str> {
    parts.iter().flat_map(|part| part.labels.iter().map(String::as_str))
}

fn in_words(labels: &BTreeSet<&str>) -> String {
    let mut labels: Vec<String> = labels.iter().map(|label| label.to_string()).collect();
    labels.sort_by_key(|label| whole(label));
    list(&labels)
}

fn is_missing_value(label: &str) -> bool {
    ["nan", "na", "n/a", "<na>", "none", "null", "nil", "nat", "?", "-", "---", "\\n"].contains(&&*label.to_lowercase())
}

fn indices(labels: &BTreeSet<&str>, classes: usize) -> bool {
    labels.iter().all(|label| whole(label).is_some_and(|n| (0..classes as i64).contains(&n)))
}

/// Whether bare numbers are indices of this number of classes: they reach the last one, or there are only two.
fn counts_agree(labels: &BTreeSet<&str>, classes: usize) -> bool {
    let last = labels.iter().filter_map(|label| whole(label)).max();
    indices(labels, classes) && (classes == 2 || last == Some(classes as i64 - 1))
}

/// A number that is written with a decimal comma, with a point instead.
fn decimal(label: &str) -> Option<String> {
    let (whole, fraction) = label.split_once(',')?;
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_digits(whole.trim_start_matches('-')) && is_digits(fraction)).then(|| format!("{whole}.{fraction}"))
}

/// The value of a label written as a whole number, such as 7, -1 or 2.0. With leading zeros, as in 007, it is a name.
fn whole(label: &str) -> Option<i64> {
    let (whole, zeros) = label.split_once('.').unwrap_or((label, ""));
    let digits = whole.strip_prefix(['-', '+']).unwrap_or(whole);
    let is_number = (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let is_plain = digits.len() == 1 || !digits.starts_with('0');
    if is_number && is_plain && zeros.bytes().all(|b| b == b'0') { whole.parse().ok() } else { None }
}
