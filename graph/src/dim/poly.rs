//! Monomials, their order, and sums and products of terms.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::{Atom, MAX_SIZE};

/// A product of atom powers, sorted by atom, exponents nonzero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Mono(pub(super) Vec<(Atom, u32)>);

impl Mono {
    pub(super) fn degree(&self) -> u64 {
        self.0.iter().map(|(_, e)| u64::from(*e)).sum()
    }

    pub(super) fn mul(&self, other: &Mono) -> Option<Mono> {
        let mut powers: BTreeMap<Atom, u32> = self.0.iter().cloned().collect();
        for (atom, e) in &other.0 {
            let slot = powers.entry(atom.clone()).or_insert(0);
            *slot = slot.checked_add(*e)?;
        }
        Some(Mono(powers.into_iter().collect()))
    }

    /// `self / other` where every power of `other` is in `self`.
    pub(super) fn div(&self, other: &Mono) -> Option<Mono> {
        let mut powers: BTreeMap<Atom, u32> = self.0.iter().cloned().collect();
        for (atom, e) in &other.0 {
            let slot = powers.get_mut(atom)?;
            *slot = slot.checked_sub(*e)?;
        }
        Some(Mono(powers.into_iter().filter(|(_, e)| *e > 0).collect()))
    }

    pub(super) fn gcd(&self, other: &Mono) -> Mono {
        let powers: BTreeMap<&Atom, u32> = other.0.iter().map(|(a, e)| (a, *e)).collect();
        let common = self
            .0
            .iter()
            .filter_map(|(a, e)| powers.get(a).map(|o| (a.clone(), *e.min(o))));
        Mono(common.collect())
    }
}

/// Graded lexicographic order, the greatest monomial first. It is compatible with multiplication,
/// so the first term of a product is the product of the first terms: exact division rests on that.
impl Ord for Mono {
    fn cmp(&self, other: &Self) -> Ordering {
        other.degree().cmp(&self.degree()).then_with(|| {
            for ((a, ea), (b, eb)) in self.0.iter().zip(&other.0) {
                let order = a.cmp(b).then(eb.cmp(ea));
                if order != Ordering::Equal {
                    return order;
                }
            }
            self.0.len().cmp(&other.0.len())
        })
    }
}

impl PartialOrd for Mono {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

pub(super) type Terms = BTreeMap<Mono, i64>;

/// Adds `coef·mono` in place; `None` on overflow.
pub(super) fn add_term(terms: &mut Terms, mono: Mono, coef: i64) -> Option<()> {
    let sum = terms.get(&mono).copied().unwrap_or(0).checked_add(coef)?;
    match sum {
        0 => drop(terms.remove(&mono)),
        i64::MIN => return None,
        _ => drop(terms.insert(mono, sum)),
    }
    (terms.len() <= MAX_SIZE).then_some(())
}

pub(super) fn sum(a: &Terms, b: &Terms, sign: i64) -> Option<Terms> {
    let mut out = a.clone();
    for (mono, coef) in b {
        add_term(&mut out, mono.clone(), coef.checked_mul(sign)?)?;
    }
    Some(out)
}

pub(super) fn product(a: &Terms, b: &Terms) -> Option<Terms> {
    let mut out = Terms::new();
    for (ma, ca) in a {
        for (mb, cb) in b {
            add_term(&mut out, ma.mul(mb)?, ca.checked_mul(*cb)?)?;
        }
    }
    Some(out)
}

pub(super) fn gcd(mut a: i64, mut b: i64) -> i64 {
    while b != 0 {
        (a, b) = (b, a.wrapping_rem(b));
    }
    a.saturating_abs()
}

/// Floor division that is defined for every pair but a zero divisor and overflow.
pub(super) fn floor_i128(n: i128, d: i128) -> Option<i128> {
    let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
    if r != 0 && ((r < 0) != (d < 0)) {
        q.checked_sub(1)
    } else {
        Some(q)
    }
}

pub(super) fn floor_i64(n: i64, d: i64) -> Option<i64> {
    i64::try_from(floor_i128(n.into(), d.into())?).ok()
}
