//! Alignment in shared memory, which the virtual GPU cannot check: the address of an array on the CPU tells nothing about its
//! address under nvcc. An access of N bytes needs an array declared with an alignment of N.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use tempfile::TempDir;

/// Faulty accesses to shared memory in a PTX module. Any value computed from the address of an array counts as an address in
/// it, in any order of the instructions and on any path.
fn faults(ptx: &str) -> Vec<String> {
    let arrays: BTreeMap<&str, usize> = ptx.lines().filter_map(array).collect();
    let kernels = ptx.split(".entry ").skip(1).map(|text| text.split_once('(').expect("a kernel has parameters"));
    kernels.flat_map(|(name, text)| kernel_faults(name, text, &arrays)).collect()
}

/// `.shared .align 16 .b8 parts[4096];`, static or dynamic, or `.shared .align 1 .u8 flag;`.
fn array(line: &str) -> Option<(&str, usize)> {
    let (align, rest) = line.split_once(".shared .align ")?.1.split_once(' ')?;
    let (_, name) = rest.split(['[', ';']).next()?.split_once(' ')?;
    Some((name, align.parse().ok()?))
}

fn kernel_faults(kernel: &str, text: &str, arrays: &BTreeMap<&str, usize>) -> Vec<String> {
    let lines = || text.lines().map(str::trim).filter_map(|line| line.strip_suffix(';')).map(unconditional);
    // The values computed from each register or array.
    let mut computed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (opcode, operands) in lines() {
        if is_access(opcode) || opcode.starts_with('.') {
            continue;
        }
        let words = operands.split([' ', '\t', ',', '{', '}', '[', ']', '+', '|']);
        let mut names = words.filter(|word| word.starts_with('%') || arrays.contains_key(word));
        let Some(result) = names.next() else { continue };
        names.for_each(|source| computed.entry(source).or_default().push(result));
    }
    let mut arrays_of: BTreeMap<&str, BTreeSet<&str>> = arrays.keys().map(|&array| (array, [array].into())).collect();
    for &array in arrays.keys() {
        let mut reached = vec![array];
        while let Some(source) = reached.pop() {
            for &result in computed.get(source).into_iter().flatten() {
                if arrays_of.entry(result).or_default().insert(array) {
                    reached.push(result);
                }
            }
        }
    }
    let accesses = lines().filter(|(opcode, _)| is_access(opcode));
    let fault = |(opcode, operands): (&str, &str)| {
        let width = width(opcode);
        let address = operands.split_once('[')?.1.split_once(']').expect("an address ends").0;
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        let wrong = match arrays_of.get(base) {
            None if opcode.split('.').any(|part| part == "shared") => "an address in an unknown array".to_string(),
            None => return None,
            Some(_) if offset.parse::<i64>().expect("an offset is a number") % width as i64 != 0 => {
                format!("an offset of {offset}")
            }
            Some(names) => {
                let (&array, align) = names.iter().map(|array| (array, arrays[array])).min_by_key(|&(_, align)| align)?;
                (align < width).then(|| format!("{array} is aligned to {align} bytes"))?
            }
        };
        Some(format!("{kernel}: {opcode} [{address}] moves {width} bytes: {wrong}"))
    };
    accesses.filter_map(fault).collect()
}

/// Opcode and operands, without a predicate.
fn unconditional(instruction: &str) -> (&str, &str) {
    let instruction = if instruction.starts_with('@') { instruction.split_once(' ').map_or("", |it| it.1) } else { instruction };
    instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""))
}

fn is_access(opcode: &str) -> bool {
    ["ld.", "st.", "ldmatrix.", "cp.async.c", "atom.", "red."].iter().any(|prefix| opcode.starts_with(prefix))
}

/// Bytes per thread of an access: 16 for ld.shared.v4.f32, ldmatrix and the cp.async used here.
fn width(opcode: &str) -> usize {
    if opcode.starts_with("ldmatrix.") || opcode.starts_with("cp.async.") {
        return 16;
    }
    let mut parts = opcode.split('.').rev();
    let bits: usize = parts.next().and_then(|kind| kind[1..].parse().ok()).expect("a type with its bits");
    let count = parts.find_map(|part| part.strip_prefix('v')?.parse().ok()).unwrap_or(1);
    count * bits / 8
}

#[test]
fn underaligned_arrays_are_reported() {
    let kernel = "
.extern .shared .align 16 .b8 q_bytes[];
.visible .entry sums(
    .param .align 8 .b8 sums_param_0[32]
)
{
    .reg .b32   %r<8>;
    .shared .align 4 .b8 _ZZ4sumsE5parts[4096];
    mov.u32 	%r1, %tid.x;
    shl.b32 	%r2, %r1, 4;
    mov.u32 	%r3, _ZZ4sumsE5parts;
    add.s32 	%r4, %r3, %r2;
    mov.u32 	%r5, q_bytes;
    st.shared.v4.f32    [%r4+16], {%f1, %f2, %f3, %f4};
    ld.shared.v4.f32    {%f1, %f2, %f3, %f4}, [%r5+32];
    @%p1 ld.shared.f32  %f5, [%r4+4];
    ld.global.v4.f32    {%f1, %f2, %f3, %f4}, [%rd1];
    ret;
}
";
    let one = |text: &str, part: &str| {
        let faults = faults(text);
        assert!(faults.len() == 1 && faults[0].contains(part), "{part}: {faults:?}");
    };
    one(kernel, "sums: st.shared.v4.f32 [%r4+16] moves 16 bytes: _ZZ4sumsE5parts is aligned to 4 bytes");
    let aligned = kernel.replace("align 4 ", "align 16 ");
    assert_eq!(faults(&aligned), [""; 0]);
    one(&aligned.replace("[%r5+32]", "[%r5+24]"), "an offset of 24");
    one(&aligned.replace("[%r5+32]", "[%r6]"), "an unknown array");
    let flag =
        aligned.replace(".reg", ".shared .align 1 .u8 flag;\n    .reg").replace("ret;", "st.shared.u8 [flag], %rs1;\n    ret;");
    assert_eq!(faults(&flag), [""; 0]);
    one(&flag.replace("shared.u8 [flag]", "shared.u32 [flag]"), "flag is aligned to 1 bytes");
    one(&aligned.replace("ld.global.v4.f32    {%f1, %f2, %f3, %f4}, [%rd1]", "ld.v4.f64 {%d1}, [%r4]"), "moves 32 bytes");
    let copy = "cp.async.cg.shared.global [%r4], [%rd2], 16, %r7;\n    ret;";
    one(
        &aligned.replace("ret;", copy).replace("align 16 .b8 _", "align 8 .b8 _").replace("st.shared.v4", "st.shared.v2"),
        "cp.async",
    );
}

#[test]
#[ignore = "needs nvcc"]
fn shared_arrays_are_aligned_to_their_widest_access() {
    let (nvcc, folder) = (super::nvcc(), TempDir::new().unwrap());
    let out = folder.path().join("ptx");
    let (mut wrong, mut wide) = (Vec::new(), 0);
    for source in super::sources() {
        let mut command = Command::new(&nvcc.path);
        command.args(["-ptx", "-std=c++17", "-arch=compute_80", "-o"]).arg(&out).arg(&source.path);
        super::run(&mut command).unwrap();
        let ptx = fs::read_to_string(&out).unwrap();
        wide += ptx.matches("shared.v4.").count();
        wrong.extend(faults(&ptx));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(wide > 500, "{wide} wide accesses are too few for all kernels");
}
