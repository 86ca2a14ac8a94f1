//! The structs of arguments: nvcc lays them out as Rust does. The virtual GPU cannot see a difference, as g++ compiles its
//! kernels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use tempfile::TempDir;
use warpfit::cuda::LAYOUTS;

use super::source::Source;
use super::{Nvcc, archs, built, cuobjdump, folder, nvcc, run, sources};

/// A source that nvcc refuses unless the arguments of every kernel have these sizes and offsets. Only what stands between
/// the kernels' headers is compiled: KERNEL gives a name to the type of the arguments, and no kernel is made.
fn assertions(sources: &[Source], layouts: &[(&str, usize, &[(&str, usize)])]) -> String {
    let mut text = "#include \"mma.cuh\"\n#include <cstddef>\n#undef KERNEL\n".to_string();
    text.push_str("#define KERNEL(name, body, Args, threads) using name##_args = Args;\n");
    for Source { stem, kernels, .. } in sources {
        let _ = writeln!(text, "namespace {stem}_source {{\n#include \"{stem}.cu\"");
        for kernel in kernels {
            let (name, arguments) = (&kernel.name, &kernel.arguments);
            let (_, size, fields) = layouts.iter().find(|layout| layout.0 == arguments).expect("every struct has a layout");
            let _ = writeln!(text, "static_assert(sizeof({name}_args) == {size}, \"size of {arguments} of {name}\");");
            for (field, offset) in *fields {
                let place = format!("offsetof({name}_args, {field})");
                let _ = writeln!(text, "static_assert({place} == {offset}, \"{field} in {arguments} of {name}\");");
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
    compile(&nvcc, &assertions(&sources, LAYOUTS)).unwrap();

    // A field or a size that is another one is seen.
    let (name, size, fields) = LAYOUTS.iter().find(|layout| layout.0 == "AttnFwd").unwrap();
    let moved: Vec<_> = fields.iter().map(|&(field, offset)| (field, offset + 4 * usize::from(field == "drop.scale"))).collect();
    for (size, fields, message) in
        [(size + 8, *fields, "size of AttnFwd of attn_fwd_d32_f32"), (*size, &moved, "drop.scale in AttnFwd of attn_fwd_d32_f32")]
    {
        let others = LAYOUTS.iter().filter(|layout| layout.0 != *name).copied();
        let layouts: Vec<_> = others.chain([(*name, size, fields)]).collect();
        let error = compile(&nvcc, &assertions(&sources, &layouts)).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

/// Bytes of arguments of each kernel in what `cuobjdump -elf` prints.
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
fn the_machine_code_takes_arguments_of_the_sizes_that_the_host_passes() {
    let arch = format!("sm_{}", archs().last().expect("built without nvcc; README.md says how to get one"));
    for (source, _) in built() {
        let elf = cuobjdump(&source, "-elf", &arch);
        let expected = source.kernels.iter().map(|kernel| {
            let (_, size, _) = LAYOUTS.iter().find(|layout| layout.0 == kernel.arguments).unwrap();
            (kernel.name.as_str(), *size)
        });
        assert_eq!(parameter_sizes(&elf), expected.collect(), "{arch}");
    }
}
