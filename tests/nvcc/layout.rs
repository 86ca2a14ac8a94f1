//! The argument structs have the same layout under nvcc as in Rust. The virtual GPU cannot detect a difference, as g++ compiles
//! its kernels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use tempfile::TempDir;
use warpfit::cuda::{Arguments, LAYOUTS};

use super::source::Source;
use super::{Nvcc, archs, built, cuobjdump, folder, nvcc, run, sources};

fn host(name: &str) -> &Arguments {
    LAYOUTS.iter().find(|arguments| arguments.name == name).expect("every struct has a layout")
}

/// A source that nvcc refuses unless the arguments of every kernel have the sizes and offsets of the host, `change`d. KERNEL
/// only names the type of the arguments here.
fn assertions(sources: &[Source], change: impl Fn(&str, usize) -> usize) -> String {
    let mut text = "#include \"mma.cuh\"\n#include \"norm.cuh\"\n#include <cstddef>\n#undef KERNEL\n".to_string();
    text.push_str("#define KERNEL(name, body, Args, threads, ...) using name##_args = Args;\n");
    for Source { stem, kernels, .. } in sources {
        let _ = writeln!(text, "namespace {stem}_source {{\n#include \"{stem}.cu\"");
        for kernel in kernels {
            let (name, arguments) = (&kernel.name, &kernel.arguments);
            let Arguments { size, fields, .. } = host(arguments);
            let whole = [("size", format!("sizeof({name}_args)"), *size)];
            let fields = fields.iter().map(|&(field, offset)| (field, format!("offsetof({name}_args, {field})"), offset));
            for (what, of_device, of_host) in whole.into_iter().chain(fields) {
                let what = format!("{what} of {arguments} of {name}");
                let _ = writeln!(text, "static_assert({of_device} == {}, \"{what}\");", change(&what, of_host));
            }
        }
        text.push_str("}\n");
    }
    text
}

fn compile(nvcc: &Nvcc, text: &str) -> Result<String, String> {
    let folder_of_test = TempDir::new().unwrap();
    let path = folder_of_test.path().join("layout.cu");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(&nvcc.path);
    command.args(["-ptx", "-std=c++17", "-arch=compute_80", "-I"]).arg(folder());
    run(command.arg("-o").arg(path.with_extension("ptx")).arg(&path))
}

#[test]
#[ignore = "needs nvcc"]
fn nvcc_lays_out_arguments_as_rust_does() {
    let (nvcc, sources) = (nvcc(), sources());
    compile(&nvcc, &assertions(&sources, |_, host| host)).unwrap();
    for changed in ["size of AttnFwd of attn_fwd_d32_f32", "drop.scale of AttnFwd of attn_fwd_d32_f32"] {
        let error = compile(&nvcc, &assertions(&sources, |what, host| host + 4 * usize::from(what == changed))).unwrap_err();
        assert!(error.contains(changed), "{error}");
    }
}

/// Bytes of arguments of each kernel in the output of `cuobjdump -elf`.
fn parameter_sizes(elf: &str) -> BTreeMap<&str, usize> {
    let infos = elf.split("\n.nv.info.").skip(1).filter_map(|info| {
        let name = info.split(|c: char| c.is_whitespace()).next()?;
        let (_, attribute) = info.split_once("EIATTR_CBANK_PARAM_SIZE")?;
        let (_, size) = attribute.split_once("0x")?;
        Some((name, usize::from_str_radix(size.split_whitespace().next()?, 16).ok()?))
    });
    infos.collect()
}

#[test]
#[ignore = "needs a build with nvcc, and cuobjdump and nvdisasm beside it"]
fn the_machine_code_expects_the_argument_sizes_of_the_host() {
    let arch = format!("sm_{}", archs().last().expect("built without nvcc; docs/gpu.md describes how to install it"));
    for (source, _) in built() {
        let elf = cuobjdump(&source, "-elf", &arch);
        let expected = source.kernels.iter().map(|kernel| (kernel.name.as_str(), host(&kernel.arguments).size));
        assert_eq!(parameter_sizes(&elf), expected.collect(), "{arch}");
    }
}
