//! Directions that stand in the file as constants.

use crate::proto::metadata;
use crate::select::{Directions, Init, LayerSettings, sub_token_size};
use velora_graph::onnx::make::float_tensor;
use velora_graph::onnx::schema::TensorProto;

/// A constant of directions: v `[M]`, or [R, M], or [G, R, M] where each group has its own.
///
/// Directions that a batch has yet to fill are the first of [`basis`] until then; the metadata of the
/// constant says what fills it (`velora.init`), from which value (`velora.input`, `velora.features`), and
/// that nothing has (`velora.calibrated`).
pub fn constant(
    name: &str,
    (tensor, input): (&str, &str),
    features: i64,
    settings: &LayerSettings,
) -> TensorProto {
    let groups = settings.grouping.groups(features);
    let size = sub_token_size(features, groups);
    let (length, rank) = (size as usize, settings.rank as usize);
    let sets = match settings.directions {
        Directions::Shared => 1,
        Directions::Group => groups as usize,
    };
    let entries = match settings.init {
        Init::Random | Init::Uniform => {
            let mut draw = Stream::new(settings.seed, tensor);
            let entry = match settings.init {
                Init::Uniform => Stream::uniform,
                _ => Stream::gaussian,
            };
            let sets = (0..sets).map(|_| orthonormal(length, rank, || entry(&mut draw)));
            sets.flatten().collect()
        }
        _ => basis(length, rank).repeat(sets),
    };
    let mut constant = float_tensor(name, dims(features, settings), &entries);
    if settings.init.is_calibrated() {
        constant.metadata_props = vec![
            metadata("init", settings.init.name()),
            metadata("input", input),
            metadata("features", &features.to_string()),
            metadata("groups", &groups.to_string()),
            metadata("calibrated", "no"),
        ];
    }
    constant
}

/// A constant of the same shape that holds no direction.
pub fn zeros(name: &str, features: i64, settings: &LayerSettings) -> TensorProto {
    let dims = dims(features, settings);
    let length = dims.iter().product::<i64>();
    float_tensor(name, dims, &vec![0.0; length as usize])
}

fn dims(features: i64, settings: &LayerSettings) -> Vec<i64> {
    let groups = settings.grouping.groups(features);
    let size = sub_token_size(features, groups);
    match settings.directions {
        Directions::Shared if settings.has_one_direction() => vec![size],
        Directions::Shared => vec![settings.rank, size],
        Directions::Group => vec![groups, settings.rank, size],
    }
}

/// The first `rank` vectors of the cosine basis: the even one, 1/√M, and then ever finer waves
/// (DCT-II, orthonormal), one behind the other.
fn basis(length: usize, rank: usize) -> Vec<f32> {
    let entry = |wave: usize, place: usize| {
        let angle = std::f64::consts::PI * wave as f64 * (place as f64 + 0.5) / length as f64;
        let norm = if wave == 0 { 1.0f64 } else { 2.0 };
        (angle.cos() * (norm / length as f64).sqrt()) as f32
    };
    let waves = (0..rank).map(|wave| (0..length).map(move |place| entry(wave, place)));
    waves.flatten().collect()
}

/// `rank` orthonormal vectors by Gram and Schmidt from drawn ones, one behind the other.
fn orthonormal(length: usize, rank: usize, mut entry: impl FnMut() -> f64) -> Vec<f32> {
    let mut found: Vec<Vec<f64>> = Vec::new();
    while found.len() < rank.min(length) {
        let mut vector: Vec<f64> = (0..length).map(|_| entry()).collect();
        let drawn = norm(&vector);
        // Twice: once leaves rounding errors of the size of what was taken away.
        for _ in 0..2 {
            for other in &found {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector
                    .iter_mut()
                    .zip(other)
                    .for_each(|(a, b)| *a -= along * b);
            }
        }
        let rest = norm(&vector);
        // One that lies in the span of the others is drawn again.
        if rest > 1e-6 * drawn {
            vector.iter_mut().for_each(|e| *e /= rest);
            found.push(vector);
        }
    }
    found.into_iter().flatten().map(|e| e as f32).collect()
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|e| e * e).sum::<f64>().sqrt()
}

/// Random numbers from a seed and the name of a tensor: each tensor has a stream of its own, so that its
/// directions do not depend on what else is rewritten.
struct Stream(u64);

impl Stream {
    fn new(seed: u64, tensor: &str) -> Self {
        // FNV-1a: any fixed hash serves, as long as it is the same everywhere and always.
        let hash = tensor
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Stream(seed ^ hash)
    }

    /// Between 0 and 1, by SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Of the normal distribution, by Box and Muller.
    fn gaussian(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vectors: &[f32], length: usize) {
        for (number, a) in vectors.chunks(length).enumerate() {
            for (other, b) in vectors.chunks(length).enumerate() {
                let dot: f64 = { a.iter().zip(b) }
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                let wanted = if number == other { 1.0 } else { 0.0 };
                assert!((dot - wanted).abs() < 1e-6, "{number}, {other}: {dot}");
            }
        }
    }

    #[test]
    fn constant_directions_are_orthonormal() {
        for (length, rank) in [(1, 1), (8, 1), (8, 8), (24, 5), (13, 4)] {
            assert_eq!(basis(length, rank).len(), length * rank);
            check(&basis(length, rank), length);
            let mut stream = Stream::new(3, "x");
            check(&orthonormal(length, rank, || stream.gaussian()), length);
            check(&orthonormal(length, rank, || stream.uniform()), length);
        }
    }

    #[test]
    fn a_direction_depends_on_seed_and_tensor() {
        let draw = |seed, tensor| {
            let mut stream = Stream::new(seed, tensor);
            orthonormal(16, 1, || stream.gaussian())
        };
        assert_eq!(draw(1, "x"), draw(1, "x"));
        assert_ne!(draw(1, "x"), draw(2, "x"));
        assert_ne!(draw(1, "x"), draw(1, "y"));
    }
}
