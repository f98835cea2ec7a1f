//! Fixed random directions.

/// A unit vector, uniform on the sphere: normalised Gaussians by Box and Muller from SplitMix64. Each
/// tensor has a stream of its own, so that its direction does not depend on what else is rewritten.
pub fn random_direction(seed: u64, tensor: &str, length: usize) -> Vec<f32> {
    // FNV-1a: any fixed hash serves, as long as it is the same everywhere and always.
    let hash = tensor
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut state = seed ^ hash;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut gaussian = || {
        let radius = (-2.0 * uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform()).cos()
    };
    let entries: Vec<f64> = (0..length).map(|_| gaussian()).collect();
    let norm = entries.iter().map(|e| e * e).sum::<f64>().sqrt();
    entries.iter().map(|e| (e / norm) as f32).collect()
}
