//! Random numbers by counter: any number of any stream can be computed alone, in any order, on any
//! device, so that a draw does not depend on how work is split.
//!
//! The generator is Philox4x32-10 (J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel
//! random numbers: as easy as 1, 2, 3; SC 2011): ten rounds turn a 128-bit counter and a 64-bit key
//! into 128 random bits. The key is the seed, the counter a stream (upper half) and a position in it.

use std::f64::consts::TAU;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by in each round: the golden ratio and the square root of three, less one.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The generator's ten rounds, on words in the order of the paper.
#[inline]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
    }
    counter
}

/// Block number `block` of a stream: four words of 32 random bits.
#[inline]
pub fn block(seed: u64, stream: u64, block: u64) -> [u32; 4] {
    philox(
        [
            block as u32,
            (block >> 32) as u32,
            stream as u32,
            (stream >> 32) as u32,
        ],
        [seed as u32, (seed >> 32) as u32],
    )
}

/// The stream for a purpose and an instance of it, for example the initial values of one parameter:
/// the 64-bit FNV-1a hash of both. Equal names give equal draws, whatever the order of the names.
pub fn stream(purpose: &str, instance: &[u8]) -> u64 {
    const OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01B3;
    let bytes = purpose.bytes().chain([0]).chain(instance.iter().copied());
    bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// A number in `[0, 1)`, a multiple of 2⁻²⁴; number `index` of a stream. Block `index / 4` holds it.
#[inline]
pub fn uniform(seed: u64, stream: u64, index: u64) -> f32 {
    unit(block(seed, stream, index / 4)[(index % 4) as usize])
}

/// 32 random bits as a number in `[0, 1)`; every multiple of 2⁻²⁴ is equally likely.
#[inline]
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// A whole number below `bound`, or 0 where `bound` is 0; number `index` of a stream.
///
/// 64 random bits times the bound, of which the upper half is taken: no value is likelier than
/// another by more than `bound` in 2⁶⁴.
#[inline]
pub fn below(seed: u64, stream: u64, index: u64, bound: u64) -> u64 {
    let bits = wide(block(seed, stream, index / 2), index % 2 == 1);
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// A number from the standard normal distribution; number `index` of a stream.
///
/// By the method of Box and Muller in double precision, so that the smallest probability that can
/// occur is 2⁻⁵³ and no number is farther out than 8.6. Sine, cosine and logarithm are those of the
/// platform: between platforms the last bit of the double may differ.
pub fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    normal_pair(seed, stream, index / 2)[(index % 2) as usize]
}

/// Numbers 2 · `pair` and 2 · `pair` + 1 of [`normal`], which come together.
pub fn normal_pair(seed: u64, stream: u64, pair: u64) -> [f64; 2] {
    let words = block(seed, stream, pair);
    let unit = |upper| (wide(words, upper) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
    // In (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - unit(false)).ln()).sqrt();
    let angle = TAU * unit(true);
    [radius * angle.cos(), radius * angle.sin()]
}

/// The lower or the upper two words of a block.
#[inline]
fn wide(words: [u32; 4], upper: bool) -> u64 {
    let [a, b, c, d] = words.map(u64::from);
    if upper { c | d << 32 } else { a | b << 32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library (`kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Mean and variance within five standard errors, and a tail that is there.
    #[test]
    fn distributions() {
        let n = 100_000u64;
        let stream = stream("test", b"");
        let uniform: Vec<f64> = (0..n).map(|i| uniform(7, stream, i).into()).collect();
        let normal: Vec<f64> = (0..n).map(|i| normal(7, stream, i)).collect();
        let moments = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            (mean, variance)
        };
        let root = (n as f64).sqrt();
        let (mean, variance) = moments(&uniform);
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12f64).sqrt() / root);
        // The variance of (x - 1/2)² is 1/180.
        assert!((variance - 1.0 / 12.0).abs() < 5.0 * (1.0 / 180f64).sqrt() / root);
        assert!(uniform.iter().all(|&x| (0.0..1.0).contains(&x)));
        let (mean, variance) = moments(&normal);
        assert!(mean.abs() < 5.0 / root);
        assert!((variance - 1.0).abs() < 5.0 * 2f64.sqrt() / root);
        let beyond = normal.iter().filter(|x| x.abs() > 1.959_964).count() as f64 / n as f64;
        assert!((beyond - 0.05).abs() < 5.0 * (0.05f64 * 0.95).sqrt() / root);
        // Neighbours come from one pair of uniform numbers, and must not be correlated.
        let product = normal.chunks(2).map(|p| p[0] * p[1]).sum::<f64>();
        assert!((product / (n / 2) as f64).abs() < 5.0 / ((n / 2) as f64).sqrt());
    }

    #[test]
    fn bounds() {
        let mut counts = [0u32; 7];
        for i in 0..70_000 {
            counts[below(1, 2, i, 7) as usize] += 1;
        }
        // Five standard deviations of a binomial with n = 70000, p = 1/7.
        for count in counts {
            assert!(count.abs_diff(10_000) < 463, "{counts:?}");
        }
        assert_eq!(below(1, 2, 3, 0), 0);
        assert_eq!(below(1, 2, 3, 1), 0);
    }

    #[test]
    fn streams_differ() {
        assert_ne!(stream("a", b"b"), stream("ab", b""));
        assert_ne!(block(1, 2, 3), block(2, 1, 3));
        assert_ne!(block(1, 2, 3), block(1, 3, 2));
    }
}
