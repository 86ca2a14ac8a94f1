//! The report of `ptxas -v` about kernels: registers, shared memory, spills.

use std::collections::BTreeMap;
use std::fmt;

/// Resources of a kernel on an architecture, in bytes except for the registers.
#[derive(Debug, PartialEq)]
pub struct Usage {
    pub registers: u32,
    /// Static.
    pub shared: u32,
    /// Local memory and spills to it: traffic to device memory that is not in the source.
    pub stack: u32,
    pub stores: u32,
    pub loads: u32,
}

impl Usage {
    pub fn local_memory(&self) -> bool {
        self.stack + self.stores + self.loads > 0
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Usage { registers, stack, stores, loads, .. } = self;
        write!(f, "{registers} registers, {stack} bytes of local memory, {stores} of spill stores, {loads} of spill loads")
    }
}

/// Usage by (kernel, "sm_80").
pub fn usages(report: &str) -> Result<BTreeMap<(String, String), Usage>, String> {
    let before = |line: &str, what: &str| line.split_once(what)?.0.split([' ', ',']).next_back()?.parse().ok();
    let mut usages = BTreeMap::new();
    let mut lines = report.lines();
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once("Compiling entry function '") else { continue };
        let mut usage = || {
            let (kernel, arch) = rest.strip_suffix('\'')?.split_once("' for '")?;
            let stack = lines.find(|line| line.contains(" bytes stack frame"))?;
            let used = lines.find(|line| line.contains(" registers"))?;
            let usage = Usage {
                registers: before(used, " registers")?,
                shared: before(used, " bytes smem").unwrap_or(0),
                stack: before(stack, " bytes stack frame")?,
                stores: before(stack, " bytes spill stores")?,
                loads: before(stack, " bytes spill loads")?,
            };
            usages.insert((kernel.to_string(), arch.to_string()), usage).is_none().then_some(())
        };
        usage().ok_or_else(|| format!("ptxas: not understood: {line}"))?;
    }
    Ok(usages)
}
