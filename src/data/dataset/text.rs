//! From the bytes of a file to text: gzip is unpacked, the encoding is that of the byte order mark, else the one given, else
//! UTF-8; line ends of a carriage return alone become newlines.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use encoding_rs::{Encoding, UTF_8};
use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

const GZIP: &[u8] = &[0x1f, 0x8b];

/// Other containers, by their first bytes.
const CONTAINERS: [(&[u8], &str, &str); 6] = [
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet", "save it as CSV"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
];

/// Opens a regular file that is not empty.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = open_regular(path)?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Err(Error::user(path.display(), "the file is empty", "check how it was written"));
    }
    Ok(file)
}

/// Refuses a folder, and a pipe, which would block.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if about.is_dir() {
        return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    if !about.is_file() {
        return Err(Error::user(path.display(), "not a regular file", "save the data to a file first"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// The whole file as text, in UTF-8 or as its byte order mark says.
pub(crate) fn read_text(path: &Path, file: File) -> Result<String> {
    read_encoded(path, file, None)
}

/// The same in this encoding, unless there is a byte order mark.
pub(super) fn read_encoded(path: &Path, mut file: File, encoding: Option<&'static Encoding>) -> Result<String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.starts_with(GZIP) {
        let packed = std::mem::take(&mut bytes);
        MultiGzDecoder::new(&packed[..]).read_to_end(&mut bytes).map_err(|e| damaged(path, e))?;
    }
    if let Some((_, what, remedy)) = CONTAINERS.iter().find(|(start, ..)| bytes.starts_with(start)) {
        return Err(Error::user(path.display(), *what, *remedy));
    }
    let mut text = decode(path, bytes, encoding)?;
    if text.contains('\r') && !text.contains('\n') {
        text = text.replace('\r', "\n");
    }
    Ok(text)
}

/// The bytes of a file for a reader of lines. Only a file that is not UTF-8 is read whole.
pub(crate) fn stream(path: &Path, encoding: Option<&'static Encoding>) -> Result<BufReader<Box<dyn Read + Send>>> {
    const BUFFER: usize = 1 << 22;
    let buffered = |reader: Box<dyn Read + Send>| BufReader::with_capacity(BUFFER, reader);
    let mut start = Vec::new();
    open(path)?.take(4).read_to_end(&mut start).map_err(|e| Error::io(path, e))?;
    let is_utf16 = Encoding::for_bom(&start).is_some_and(|(mark, _)| mark != UTF_8);
    if is_utf16 || encoding.is_some_and(|encoding| encoding != UTF_8) {
        return Ok(buffered(Box::new(Cursor::new(read_encoded(path, open(path)?, encoding)?))));
    }
    let file = open(path)?;
    Ok(buffered(if start.starts_with(GZIP) { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) }))
}

/// Text from bytes, without its byte order mark.
fn decode(path: &Path, bytes: Vec<u8>, encoding: Option<&'static Encoding>) -> Result<String> {
    let (encoding, mark) = Encoding::for_bom(&bytes).unwrap_or((encoding.unwrap_or(UTF_8), 0));
    let line = |before: &[u8]| format!("{}:{}", path.display(), 1 + super::newlines(before));
    let mut text = if encoding == UTF_8 {
        String::from_utf8(bytes).map_err(|e| {
            let (at, cut) = (e.utf8_error().valid_up_to(), e.utf8_error().error_len().is_none());
            let fact = if cut { "ends in the middle of a UTF-8 character" } else { "not UTF-8" };
            Error::user(
                line(&e.as_bytes()[..at]),
                fact,
                "save the file as UTF-8, or name its encoding: --encoding cp1252, cp1251, gbk, shift-jis, ...",
            )
        })?
    } else {
        let (text, faulty) = encoding.decode_without_bom_handling(&bytes[mark..]);
        if faulty {
            let before = text.find('\u{fffd}').unwrap_or(0);
            let fact = format!("not {}", encoding.name());
            return Err(Error::user(line(&text.as_bytes()[..before]), fact, "name another --encoding"));
        }
        text.into_owned()
    };
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    match text.find('\0') {
        Some(at) => {
            let remedy = "save the file as UTF-8 text; for UTF-16 without a byte order mark pass --encoding utf-16le";
            Err(Error::user(line(&text.as_bytes()[..at]), "a NUL byte", remedy))
        }
        None => Ok(text),
    }
}

fn damaged(path: &Path, error: std::io::Error) -> Error {
    Error::user(path.display(), format!("not a whole gzip file ({error})"), "download or compress it again")
}

/// The extension of a file's name, in lower case; `csv` of `train.csv.gz`.
pub(crate) fn ending(path: &Path) -> String {
    let lower = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match lower(path) {
        gz if gz == "gz" => lower(&PathBuf::from(path.file_stem().unwrap_or_default())),
        other => other,
    }
}

/// An encoding by its name: those of the web, and Python's spellings of them. latin-1 is read as its superset windows-1252.
pub fn encoding(name: &str) -> std::result::Result<&'static Encoding, String> {
    let lower = name.trim().to_lowercase().replace('_', "-");
    let usual = match lower.as_str() {
        "latin-1" => "latin1",
        "latin-9" | "latin9" => "iso-8859-15",
        "ansi" => "windows-1252",
        "u8" | "utf-8-sig" | "cp65001" => "utf-8",
        "utf-16-le" | "utf16le" | "utf16" => "utf-16le",
        "utf-16-be" | "utf16be" => "utf-16be",
        "cp874" => "windows-874",
        "cp932" => "shift-jis",
        "cp936" => "gbk",
        "cp949" | "uhc" => "euc-kr",
        "cp950" | "big5hkscs" => "big5",
        "eucjp" => "euc-jp",
        "iso2022-jp" => "iso-2022-jp",
        "mac-roman" | "macroman" => "macintosh",
        "mac-cyrillic" => "x-mac-cyrillic",
        other => other,
    };
    let spelled = |name: &str| Encoding::for_label(name.as_bytes());
    let found =
        spelled(usual).or_else(|| spelled(&usual.replace('-', ""))).or_else(|| spelled(&usual.replacen("iso", "iso-", 1)));
    found
        .filter(|encoding| encoding.name() != "replacement")
        .ok_or_else(|| "use a name such as utf-8, utf-16le, cp1252, latin-1, cp1251, gbk or shift-jis".to_string())
}
