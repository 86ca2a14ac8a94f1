//! Reads the parts of a kernel source that the host needs, and writes them as Rust: the `KERNEL(name, body, arguments,
//! threads)` lines, the argument structs that they name, and constants marked `// host`. kernels/gpu.cuh describes their form.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub struct Source {
    pub path: PathBuf,
    pub stem: String,
    pub text: String,
    pub kernels: Vec<Kernel>,
    pub structs: Vec<Arguments>,
    /// Names and values.
    pub constants: Vec<(String, u32)>,
}

pub struct Kernel {
    pub name: String,
    /// Without its template parameter.
    pub arguments: String,
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

pub struct Arguments {
    pub name: String,
    pub fields: Vec<Field>,
}

pub struct Field {
    pub name: String,
    /// Its type in Rust.
    pub kind: String,
    /// Its trailing comment: the shape.
    pub comment: String,
}

impl Source {
    pub fn parse(path: &Path, text: String) -> Result<Source, String> {
        let at = |message: String| format!("{}: {message}", path.display());
        let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| at("not a plain name".into()))?.to_string();
        let lines = text.lines().filter(|line| line.starts_with("KERNEL("));
        let kernels = lines.map(|line| kernel(line).ok_or_else(|| at(format!("not understood: {line}"))));
        let kernels: Vec<Kernel> = kernels.collect::<Result<_, _>>()?;
        let names: BTreeSet<&str> = kernels.iter().map(|kernel| kernel.arguments.as_str()).collect();
        let structs = names.into_iter().map(|name| arguments(name, &text).map_err(|e| at(format!("struct {name}: {e}"))));
        let structs = structs.collect::<Result<_, _>>()?;
        let lines = text.lines().filter(|line| line.ends_with("// host"));
        let constants = lines.map(|line| constant(line).ok_or_else(|| at(format!("not understood: {line}"))));
        let constants = constants.collect::<Result<_, _>>()?;
        Ok(Source { path: path.into(), stem, text, kernels, structs, constants })
    }

    /// The kernels' names, as stored at the end of an image.
    pub fn manifest(&self) -> Vec<u8> {
        let names = self.kernels.iter().map(|kernel| format!("{}\n", kernel.name));
        format!("warpfit kernels\n{}\0", names.collect::<String>()).into_bytes()
    }
}

/// The body is left to the compiler; it may hold commas in parentheses.
fn kernel(line: &str) -> Option<Kernel> {
    let (inside, _) = line.strip_prefix("KERNEL(")?.rsplit_once(')')?;
    let (name, rest) = inside.split_once(", ")?;
    let words: Vec<&str> = rest.split(", ").collect();
    let numbers: Vec<u32> = words.iter().rev().map_while(|word| word.parse().ok()).collect();
    let arguments = words.len().checked_sub(numbers.len() + 1).map(|at| words[at])?;
    let (arguments, _) = arguments.split_once('<').unwrap_or((arguments, ""));
    let number = |at: usize| numbers.iter().rev().nth(at).copied();
    Some(Kernel { name: name.into(), arguments: arguments.into(), threads: number(0)?, shared: number(1).unwrap_or(0) })
}

/// `constexpr int NAME = 64;  // host`
fn constant(line: &str) -> Option<(String, u32)> {
    let (name, value) = line.strip_prefix("constexpr int ")?.split_once(" = ")?;
    let (value, _) = value.split_once(';')?;
    Some((name.into(), value.parse().ok()?))
}

fn arguments(name: &str, text: &str) -> Result<Arguments, String> {
    let heads = [format!("\nstruct {name} {{\n"), format!("\ntemplate <class T> struct {name} {{\n")];
    let (_, body) = heads.iter().find_map(|head| text.split_once(head)).ok_or("a kernel needs it, but it is not in this file")?;
    let (body, _) = body.split_once("\n};").ok_or("its end is missing")?;
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let fields = lines.map(|line| field(line).ok_or_else(|| format!("not a field that the host has a type for: {line}")));
    Ok(Arguments { name: name.into(), fields: fields.collect::<Result<_, _>>()? })
}

fn field(line: &str) -> Option<Field> {
    let (declaration, comment) = line.split_once(';')?;
    let (kind, name) = declaration.rsplit_once(' ')?;
    let kind = match kind {
        pointer if pointer.ends_with('*') => "Ptr",
        "int" => "i32",
        "unsigned" => "u32",
        "float" => "f32",
        "double" => "f64",
        "Drop" => "Drop",
        _ => return None,
    };
    let comment = comment.trim().trim_start_matches("//").trim();
    // An array is as long as a constant of the host.
    let (name, kind) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
        Some((name, len)) => (name, format!("[{kind}; {len}]")),
        None => (name, kind.to_string()),
    };
    Some(Field { name: name.into(), kind, comment: comment.into() })
}

/// The compiler of the kernels, and the architectures it made machine code for: "80 90a".
pub struct Built {
    pub by: &'static str,
    pub version: (u32, u32),
    pub archs: String,
}

/// The host side of all sources and their headers. Each source has an image for each of `targets`.
pub fn host(sources: &[Source], headers: &str, built: Option<&Built>, targets: &[String]) -> Result<String, String> {
    let kernels: Vec<&Kernel> = sources.iter().flat_map(|source| &source.kernels).collect();
    let common = |name| arguments(name, headers).map_err(|e| format!("struct {name}: {e}"));
    let common = [common("Drop")?, common("Status")?];
    let structs: Vec<&Arguments> = common.iter().chain(sources.iter().flat_map(|source| &source.structs)).collect();
    unique(kernels.iter().map(|kernel| kernel.name.as_str()))?;
    unique(structs.iter().map(|arguments| arguments.name.as_str()))?;

    let mut rust = String::new();
    let compiler = built.map(|built| (built.by, built.version));
    let archs = built.map_or("", |built| &built.archs);
    let _ = writeln!(rust, "/// The compiler of the kernels and its version.");
    let _ = writeln!(rust, "pub const COMPILER: Option<(&str, (u32, u32))> = {compiler:?};");
    let _ = writeln!(rust, "/// The architectures with machine code: \"80 90a\".\npub const ARCHS: &str = {archs:?};\n");
    for Arguments { name, fields } in &structs {
        let _ = writeln!(rust, "#[repr(C)]\n#[derive(Clone, Copy, Debug)]\npub struct {name} {{");
        for Field { name, kind, comment } in fields {
            let comment = if comment.is_empty() { String::new() } else { format!("    /// {comment}\n") };
            let _ = writeln!(rust, "{comment}    pub {name}: {kind},");
        }
        let _ = writeln!(
            rust,
            "}}\n// SAFETY: plain old data, laid out as the kernel's own.\nunsafe impl DeviceRepr for {name} {{}}\n"
        );
    }
    for (name, value) in sources.iter().flat_map(|source| &source.constants) {
        let _ = writeln!(rust, "pub const {name}: usize = {value};");
    }
    layouts(&structs, &mut rust);
    table(&kernels, &mut rust)?;
    let _ = writeln!(rust, "pub const IMAGES: &[Image] = &[");
    for Source { stem, kernels, .. } in sources {
        let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        let code =
            |target: &String| format!("({target:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.{target}.image\")))");
        let codes: Vec<String> = targets.iter().map(code).collect();
        let codes = codes.join(", ");
        let _ = writeln!(rust, "    Image {{ file: \"{stem}.cu\", kernels: &{names:?}, codes: &[{codes}] }},");
    }
    let _ = writeln!(rust, "];");
    Ok(rust)
}

/// Offsets of the fields of each struct on the host.
fn layouts(structs: &[&Arguments], rust: &mut String) {
    rust.push_str(
        "/// The layout of each argument struct. A test compares it with nvcc's.\npub const LAYOUTS: &[Arguments] = &[\n",
    );
    for Arguments { name, fields } in structs {
        let paths = fields.iter().flat_map(|Field { name, kind, .. }| {
            let inner = structs.iter().find(|inner| &inner.name == kind);
            let inner = inner.map(|inner| inner.fields.iter().map(|field| format!("{name}.{}", field.name)).collect());
            inner.unwrap_or_else(|| vec![name.clone()])
        });
        let fields = paths.map(|path| format!("(\"{path}\", std::mem::offset_of!({name}, {path})), ")).collect::<String>();
        let _ = writeln!(rust, "    Arguments {{ name: \"{name}\", size: size_of::<{name}>(), fields: &[{fields}] }},");
    }
    rust.push_str("];\n\n");
}

/// Endings of kernels that differ in the type of activations alone.
const TYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// One field per kernel; `x_f32`, `x_bf16` and `x_f16` are one field `x`, as are the last two without the first.
fn table(kernels: &[&Kernel], rust: &mut String) -> Result<(), String> {
    let find = |name: String| kernels.iter().find(|kernel| kernel.name == name);
    let load = |kernel: &Kernel| format!("loader.kernel(\"{}\", {}, {})?", kernel.name, kernel.threads, kernel.shared);
    let (mut fields, mut values) = (String::new(), String::new());
    for kernel in kernels {
        let Kernel { name, arguments, .. } = kernel;
        let stem = TYPES.iter().find_map(|kind| name.strip_suffix(kind)?.strip_suffix('_')).unwrap_or(name);
        let alike = TYPES.map(|kind| find(format!("{stem}_{kind}")).map(|kernel| (kind, kernel)));
        let group = match alike {
            [Some(_), Some(_), Some(_)] => "Typed",
            [None, Some(_), Some(_)] => "Half",
            _ => {
                let _ = writeln!(fields, "    pub {name}: Kernel<{arguments}>,");
                let _ = writeln!(values, "            {name}: {},", load(kernel));
                continue;
            }
        };
        let mut group_of = alike.into_iter().flatten();
        if let Some((kind, other)) = group_of.clone().find(|(_, other)| other.arguments != *arguments) {
            return Err(format!("{name}: its argument is {arguments}, but {} in {kind}; one struct for all", other.arguments));
        }
        // The first takes the place of all.
        if group_of.clone().next().is_some_and(|(_, first)| first.name == *name) {
            let _ = writeln!(fields, "    pub {stem}: {group}<{arguments}>,");
            let loads: Vec<String> = group_of.by_ref().map(|(kind, kernel)| format!("{kind}: {}", load(kernel))).collect();
            let _ = writeln!(values, "            {stem}: {group} {{ {} }},", loads.join(", "));
        }
    }
    let _ = writeln!(rust, "/// Every kernel, looked up once.\npub struct Kernels {{\n{fields}}}\n");
    let _ = writeln!(rust, "impl Kernels {{\n    pub fn load(loader: &Loader) -> Result<Kernels> {{");
    let _ = writeln!(rust, "        Ok(Kernels {{\n{values}        }})\n    }}\n}}\n");
    Ok(())
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{name} is defined twice in kernels/*.cu"));
        }
    }
    Ok(())
}
