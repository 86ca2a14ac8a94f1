//! Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random bits as a pure function of a
//! key and a counter. Dropout needs no stored mask and no generator state: forward and backward, CPU and GPU recompute the same
//! bits. Seven rounds are the fewest that pass all of BigCrush, by the paper's table 2.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const ROUNDS: usize = 7;
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words per counter. Generic over the lanes computed in parallel: word `w` of lane `l` is `[w][l]`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes of words, not a sequence
pub fn philox<const LANES: usize>(mut key: [u32; 2], mut counter: [[u32; LANES]; 4]) -> [[u32; LANES]; 4] {
    for _ in 0..ROUNDS {
        for l in 0..LANES {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0][l]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2][l]);
            counter[0][l] = (b >> 32) as u32 ^ counter[1][l] ^ key[0];
            counter[1][l] = b as u32;
            counter[2][l] = (a >> 32) as u32 ^ counter[3][l] ^ key[1];
            counter[3][l] = a as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The key of one micro-batch: every (seed, update, micro-batch) has dropout masks of its own.
pub fn step_key(seed: u64, update: u64, micro: u32) -> [u32; 2] {
    let counter = [[update as u32], [(update >> 32) as u32], [micro], [0]];
    let [[a], [b], _, _] = philox([seed as u32, (seed >> 32) as u32], counter);
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 library.
    #[test]
    fn philox_known_answers() {
        let one = |key, c: [u32; 4]| philox::<1>(key, c.map(|w| [w])).map(|[w]| w);
        assert_eq!(one([0, 0], [0; 4]), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        assert_eq!(one([!0, !0], [!0; 4]), [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(one([0xa409_3822, 0x299f_31d0], pi), [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }

    #[test]
    fn lanes_agree_with_single() {
        let counter = [[1, 2, 3, 4], [5; 4], [6; 4], [7; 4]];
        let wide = philox([8, 9], counter);
        for l in 0..4 {
            let one = philox::<1>([8, 9], [0, 1, 2, 3].map(|w| [counter[w][l]]));
            assert_eq!([0, 1, 2, 3].map(|w| wide[w][l]), one.map(|[w]| w));
        }
    }
}
