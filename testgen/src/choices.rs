//! Decisions read from bytes, and numbers that look random.

/// Bytes as a stream of decisions; behind their end every decision is the first one, so that fewer and
/// smaller bytes make a simpler graph.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    bytes: Vec<u8>,
    place: usize,
}

impl Choices {
    /// The decisions that the bytes stand for.
    pub fn new(bytes: &[u8]) -> Self {
        Choices {
            bytes: bytes.to_vec(),
            place: 0,
        }
    }

    /// One of `count` possibilities.
    pub fn below(&mut self, count: u8) -> u8 {
        let byte = self.bytes.get(self.place).copied().unwrap_or(0);
        self.place += 1;
        byte % count.max(1)
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// Yes once in `count` times.
    pub fn seldom(&mut self, count: u8) -> bool {
        self.below(count) == count - 1
    }

    /// One of the items.
    pub fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items[usize::from(self.below(items.len() as u8))].clone()
    }
}

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Uniform in [-1, 1), exact in 32-bit floats.
    pub fn entry(&mut self) -> f64 {
        (self.bits() >> 41) as f64 / (1u64 << 22) as f64 - 1.0
    }

    /// An index below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.bits() % count.max(1) as u64) as usize
    }
}
