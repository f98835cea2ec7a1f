//! Division by numbers that are known when a plan is prepared, as a multiplication.

use super::encode::Unsupported;
use bytemuck::{Pod, Zeroable};

/// `Divider` of the kernels: the quotient of `n` is `(⌊n · factor / 2³²⌋ + n) >> shift`.
///
/// With `shift` = ⌈log2 d⌉ and `factor` = ⌊2³² · (2^shift - d) / d⌋ + 1 it is exact for all `n` below 2³¹, where
/// the sum does not overflow (T. Granlund, P. L. Montgomery: Division by invariant integers using
/// multiplication; PLDI 1994).
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Divider {
    /// The divisor.
    pub size: u32,
    factor: u32,
    shift: u32,
}

impl Divider {
    /// Divides numbers below 2³¹ by `size`; by 0, which nothing is divided by, as by 1.
    ///
    /// # Errors
    /// [`Unsupported`] where the size is 2³¹ or more.
    pub fn new(size: usize) -> Result<Self, Unsupported> {
        let divisor = narrow(size)?.max(1);
        let shift = u32::BITS - (divisor - 1).leading_zeros();
        let rest = (1u64 << shift) - u64::from(divisor);
        // Below 2^32: the rest is less than the divisor.
        let factor = ((rest << 32) / u64::from(divisor) + 1) as u32;
        Ok(Divider {
            size: divisor,
            factor,
            shift,
        })
    }
}

/// A size below 2³¹, so that kernels can count with 32 bits.
///
/// # Errors
/// [`Unsupported`] where it is larger.
pub fn narrow(size: usize) -> Result<u32, Unsupported> {
    match i32::try_from(size) {
        Ok(size) => Ok(size.unsigned_abs()),
        Err(_) => Err(Unsupported(format!(
            "{size} elements at once: expected less than 2^31"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The multiplication of the kernels against the machine's division, at the edges of every quotient
    /// that can go wrong: multiples of the divisor and their neighbours.
    #[test]
    fn quotients_are_exact() -> Result<(), Unsupported> {
        let most = i32::MAX.unsigned_abs();
        let divisors = (1..200).chain([255, 256, 641, 65_535, 65_537, most / 2, most - 1, most]);
        for size in divisors {
            let by = Divider::new(size as usize)?;
            let last = most / size;
            for multiple in (0..last.min(300)).chain(last - last.min(300)..=last) {
                let at = multiple * size;
                for n in [at.saturating_sub(1), at, (at + 1).min(most)] {
                    let high = (u64::from(n) * u64::from(by.factor)) >> 32;
                    let found = (high as u32 + n) >> by.shift;
                    assert_eq!(found, n / size, "{n} / {size}");
                }
            }
        }
        Ok(())
    }
}
