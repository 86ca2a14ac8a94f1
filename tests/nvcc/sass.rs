//! Instructions of the machine code for sm_90a, compared with instructions.txt: this detects, without a GPU, a 16-byte access
//! split into four, a loop that is no longer unrolled, or an additional call of Philox in attention. Counts may differ by 4 %,
//! for other versions of nvcc. After an intended change, RENEW=1 rewrites the file; check its diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{built, cuobjdump};

struct Instruction<'a> {
    address: usize,
    opcode: &'a str,
    operands: &'a str,
}

/// The code of each kernel in the output of `cuobjdump -sass`.
fn kernels(sass: &str) -> BTreeMap<&str, Vec<Instruction<'_>>> {
    let functions = sass.split("Function : ").skip(1).map(|function| function.split_once('\n').expect("a name, then code"));
    functions.map(|(name, code)| (name.trim(), code.lines().filter_map(instruction).collect())).collect()
}

/// `/*0040*/  @P2 S2R R6, SR_CTAID.Y ;`
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let (address, rest) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    let address = usize::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    let text = text.trim();
    let text = if text.starts_with('@') { text.split_once(' ')?.1.trim() } else { text };
    let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction { address, opcode, operands })
}

/// The instructions of the innermost loop with tensor cores: from a backward branch's target to the branch.
fn loop_of_tensor_cores<'a, 'b>(code: &'a [Instruction<'b>]) -> Option<&'a [Instruction<'b>]> {
    let at = |address| code.iter().position(|instruction| instruction.address == address);
    let back = code.iter().enumerate().filter(|(_, instruction)| instruction.opcode.starts_with("BRA"));
    let loops = back.filter_map(|(end, branch)| {
        let (_, target) = branch.operands.rsplit_once("0x")?;
        let start = at(usize::from_str_radix(target.trim(), 16).ok()?)?;
        (start < end).then(|| &code[start..=end])
    });
    loops.filter(|code| count(code, "HMMA", "") > 0).min_by_key(|code| code.len())
}

/// Opcodes that begin with `name`, and end with `ending`.
fn count(code: &[Instruction], name: &str, ending: &str) -> usize {
    let fits = |opcode: &str| opcode.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    code.iter().filter(|instruction| fits(instruction.opcode) && instruction.opcode.contains(ending)).count()
}

/// Nonzero counts by instruction, for each kernel and each "kernel loop".
type Counts = BTreeMap<String, BTreeMap<String, usize>>;

fn counts(sass: &str) -> Counts {
    let mut counts = Counts::new();
    for (name, code) in kernels(sass) {
        let wide = ["LDG", "STG", "LDGSTS", "LDS", "STS"].map(|access| (format!("{access}.128"), count(&code, access, ".128")));
        let all = wide.into_iter().chain([("HMMA".to_string(), count(&code, "HMMA", ""))]);
        counts.insert(name.to_string(), all.filter(|&(_, count)| count > 0).collect());
        if let Some(code) = loop_of_tensor_cores(&code) {
            let parts = ["HMMA", "IMAD.WIDE", "LOP3", "MUFU"].map(|part| (part.to_string(), count(code, part, "")));
            let all = [("instructions".to_string(), code.len())].into_iter().chain(parts);
            counts.insert(format!("{name} loop"), all.collect());
        }
    }
    counts
}

fn write(counts: &Counts) -> String {
    let mut text = String::new();
    for (part, counts) in counts {
        let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        let _ = writeln!(text, "{}", format!("{part:<31}{}", counts.join("  ")).trim_end());
    }
    text
}

fn read(text: &str) -> Counts {
    let line = |line: &str| {
        let (part, counts) = line.split_at(line.len().min(31));
        let words: Vec<&str> = counts.split_whitespace().collect();
        let counts = words.chunks(2).map(|pair| (pair[0].to_string(), pair[1].parse().expect("a count")));
        (part.trim().to_string(), counts.collect())
    };
    text.lines().map(line).collect()
}

/// The differences between the two.
fn differences(found: &Counts, golden: &Counts) -> Vec<String> {
    let parts: BTreeSet<&String> = found.keys().chain(golden.keys()).collect();
    let mut differences = Vec::new();
    for part in parts {
        let (Some(found), Some(golden)) = (found.get(part), golden.get(part)) else {
            differences.push(format!("{part} is in only one of the two"));
            continue;
        };
        for what in found.keys().chain(golden.keys()).collect::<BTreeSet<_>>() {
            let [found, golden] = [found, golden].map(|counts| counts.get(what).copied().unwrap_or(0));
            if found.abs_diff(golden) * 25 > golden {
                differences.push(format!("{part}: {found} {what}, but {golden} are expected"));
            }
        }
    }
    differences
}

#[test]
fn missing_and_excess_instructions_are_reported() {
    let sass = "
        Function : copy
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
        /*0010*/               @P2 LDG.E.128.CONSTANT R4, desc[UR10][R6.64] ;  /* 0x0000 */
        /*0020*/                   LDG.E.64 R6, desc[UR10][R6.64] ; /* 0x0000 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR10][R6.64] ; /* 0x0000 */
        Function : multiply
        /*0000*/                   HMMA.16816.F32.BF16 R4, R5, R6, R4 ; /* 0x0000 */
        /*0010*/                   IMAD.WIDE.U32 R6, R3, 0x8, R6 ;  /* 0x0000 */
        /*0020*/                   IMAD R6, R3, 0x8, R6 ;           /* 0x0000 */
        /*0030*/               @P0 BRA 0x10 ;                       /* 0x0000 */
        /*0040*/               @P0 BRA 0x0 ;                        /* 0x0000 */
        /*0050*/               @P0 BRA 0x60 ;                       /* 0x0000 */
        /*0060*/                   EXIT ;                           /* 0x0000 */
";
    let golden = "\
copy                           LDG.128 1  LDGSTS.128 1
multiply                       HMMA 1
multiply loop                  HMMA 1  IMAD.WIDE 1  LOP3 0  MUFU 0  instructions 5
";
    let counts = counts(sass);
    assert_eq!(write(&counts), golden);
    assert_eq!(read(golden), counts);
    assert_eq!(differences(&counts, &counts), [""; 0]);
    let narrow = self::counts(&sass.replace("LDG.E.128", "LDG.E"));
    assert_eq!(differences(&narrow, &counts), ["copy: 0 LDG.128, but 1 are expected"]);
    let golden = golden.replace("instructions 5", "instructions 100");
    let of = |instructions: usize| read(&golden.replace("100", &instructions.to_string()));
    assert_eq!(differences(&of(104), &read(&golden)), [""; 0]);
    assert_eq!(differences(&of(95), &read(&golden)), ["multiply loop: 95 instructions, but 100 are expected"]);
    assert_eq!(differences(&Counts::new(), &read("copy")), ["copy is in only one of the two"]);
}

#[test]
#[ignore = "needs a build with nvcc for sm_90a, and cuobjdump and nvdisasm beside it"]
fn the_machine_code_has_the_expected_instructions() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvcc/instructions.txt");
    let found: Counts = built().iter().flat_map(|(source, _)| counts(&cuobjdump(source, "-sass", "sm_90a"))).collect();
    print!("{}", write(&found));
    if std::env::var_os("RENEW").is_some() {
        fs::write(&path, write(&found)).unwrap();
    }
    let differences = differences(&found, &read(&fs::read_to_string(&path).unwrap()));
    assert!(differences.is_empty(), "{}\nif this is intended, RENEW=1 rewrites {}", differences.join("\n"), path.display());
}

/// Why a kernel may not be launched before the one ahead of it has ended: it must wait before its first access to memory, and
/// only then let the next one be launched. In machine code these are ACQBULK and PREEXIT.
fn does_not_wait(code: &[Instruction]) -> Option<&'static str> {
    let place = |name: &str| code.iter().position(|instruction| instruction.opcode == name);
    let accesses = ["LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED", "UBLKCP"];
    let access = code.iter().position(|i| accesses.contains(&i.opcode.split('.').next().expect("a word")));
    match (place("ACQBULK"), place("PREEXIT")) {
        (None, _) => Some("does not wait"),
        (Some(wait), _) if access.is_some_and(|access| access < wait) => Some("accesses memory before it waits"),
        (Some(wait), Some(next)) if next < wait => Some("lets the next kernel start before it waits"),
        (_, None) => Some("does not let the next kernel start"),
        _ => None,
    }
}

#[test]
fn kernels_that_do_not_wait_are_reported() {
    let verdict = |opcodes: &[&'static str]| {
        let code: Vec<_> = opcodes.iter().map(|&opcode| Instruction { address: 0, opcode, operands: "" }).collect();
        does_not_wait(&code)
    };
    assert_eq!(verdict(&["LDC", "ACQBULK", "PREEXIT", "LDG.E.128", "EXIT"]), None);
    assert_eq!(verdict(&["LDG.E", "PREEXIT"]), Some("does not wait"));
    assert_eq!(verdict(&["STG.E", "ACQBULK", "PREEXIT"]), Some("accesses memory before it waits"));
    assert_eq!(verdict(&["PREEXIT", "ACQBULK", "LDG"]), Some("lets the next kernel start before it waits"));
    assert_eq!(verdict(&["ACQBULK", "LDG"]), Some("does not let the next kernel start"));
}

#[test]
#[ignore = "needs a build with nvcc for sm_90a, and cuobjdump and nvdisasm beside it"]
fn every_kernel_waits_for_the_one_before_it() {
    let mut count = 0;
    for (source, _) in built() {
        for (name, code) in kernels(&cuobjdump(&source, "-sass", "sm_90a")) {
            assert_eq!(does_not_wait(&code), None, "{name}");
            count += 1;
        }
    }
    assert!(count > 50, "{count} kernels are too few");
}

/// The instruction of a kernel's tensor cores, if it uses them.
fn tensor_core_instruction(arch: &str, kernel: &str) -> Option<&'static str> {
    match (arch, kernel.rsplit_once("_mma_")?.1.ends_with("_bf16")) {
        ("sm_75", true) => None,
        ("sm_75", false) => Some("HMMA.1688.F32"),
        (_, true) => Some("HMMA.16816.F32.BF16"),
        (_, false) => Some("HMMA.16816.F32"),
    }
}

#[test]
#[ignore = "needs a build with nvcc for sm_75, sm_80 and sm_90a, and cuobjdump and nvdisasm beside it"]
fn the_mma_kernels_use_tensor_cores() {
    let mut using = 0;
    for (source, _) in built() {
        if !source.kernels.iter().any(|kernel| kernel.name.contains("_mma_")) {
            continue;
        }
        for arch in ["sm_75", "sm_80", "sm_90a"] {
            for (name, code) in kernels(&cuobjdump(&source, "-sass", arch)) {
                let used: BTreeSet<&str> = code.iter().map(|i| i.opcode).filter(|opcode| opcode.starts_with("HMMA")).collect();
                assert_eq!(used, tensor_core_instruction(arch, name).into_iter().collect(), "{name}, {arch}");
                using += used.len();
            }
        }
    }
    // Forward and two of the backward pass, of two widths, in two types.
    assert_eq!(using, 6 + 2 * 12);
}
