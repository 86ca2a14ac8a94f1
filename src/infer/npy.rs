//! NumPy's array file, version 1.0: magic string, a Python dictionary padded to 64 bytes, the numbers.

use crate::error::Result;
use crate::files::PartialFile;

/// Writes rows of `dim` numbers.
pub fn write(file: &mut PartialFile, rows: &[f32], dim: usize) -> Result<()> {
    const BEFORE: usize = 10; // magic string, version, length of the dictionary
    let mut about = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {dim}), }}", rows.len() / dim);
    let padded = (BEFORE + about.len() + 1).next_multiple_of(64) - BEFORE;
    about.extend(std::iter::repeat_n(' ', padded - 1 - about.len()));
    about.push('\n');
    file.write(b"\x93NUMPY\x01\x00")?;
    file.write(&(padded as u16).to_le_bytes())?;
    file.write(about.as_bytes())?;
    rows.iter().try_for_each(|x| file.write(&x.to_le_bytes()))
}
