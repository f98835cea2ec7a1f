//! Numbers of bytes or operations at the given dimensions.

use std::collections::BTreeMap;
use std::ops::{Add, Sub};
use std::sync::Arc;
use velora_graph::dim::Dim;

/// What an open dimension counts as where amounts must be ordered or drawn.
pub const NOMINAL: i64 = 64;

/// A count of bytes or of operations: a number, an expression while a dimension is open, or unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// `None` is unknown; an overflow is unknown too.
    dim: Option<Dim>,
}

impl From<Option<Dim>> for Amount {
    fn from(dim: Option<Dim>) -> Amount {
        Amount {
            dim: dim.filter(|dim| !dim.is_undefined()),
        }
    }
}

impl From<Dim> for Amount {
    fn from(dim: Dim) -> Amount {
        Amount::from(Some(dim))
    }
}

impl From<i64> for Amount {
    fn from(number: i64) -> Amount {
        Amount::from(Dim::from(number))
    }
}

/// Unknown where either is.
impl Add for &Amount {
    type Output = Amount;
    fn add(self, other: &Amount) -> Amount {
        Amount::from(
            self.dim
                .as_ref()
                .zip(other.dim.as_ref())
                .map(|(a, b)| a + b),
        )
    }
}

/// Unknown where either is.
impl Sub for &Amount {
    type Output = Amount;
    fn sub(self, other: &Amount) -> Amount {
        Amount::from(
            self.dim
                .as_ref()
                .zip(other.dim.as_ref())
                .map(|(a, b)| a - b),
        )
    }
}

impl Amount {
    /// The number, where there is one.
    pub fn exact(&self) -> Option<i64> {
        self.dim.as_ref()?.as_const()
    }

    /// The expression, where a dimension is open. [`Dim::parse`] reads it.
    pub fn symbolic(&self) -> Option<String> {
        let dim = self.dim.as_ref()?;
        dim.as_const().is_none().then(|| dim.to_string())
    }

    /// What it is, where it is known.
    pub fn dim(&self) -> Option<&Dim> {
        self.dim.as_ref()
    }

    /// The number with every open dimension at [`NOMINAL`]; to order and draw amounts, not to show.
    pub fn nominal(&self) -> Option<i64> {
        self.at(NOMINAL)
    }

    /// The number at the given sizes, with every other dimension at [`NOMINAL`].
    pub fn at_sizes(&self, given: &BTreeMap<Arc<str>, i64>) -> Option<i64> {
        let dim = self.dim.as_ref()?;
        let size = |name: &Arc<str>| given.get(name).copied().unwrap_or(NOMINAL);
        let sizes = dim.symbols().into_iter().map(|s| (s.clone(), size(&s)));
        dim.eval(&sizes.collect())
    }

    fn at(&self, size: i64) -> Option<i64> {
        let dim = self.dim.as_ref()?;
        let sizes: BTreeMap<_, _> = dim.symbols().into_iter().map(|s| (s, size)).collect();
        dim.eval(&sizes)
    }

    /// `self / other` where that is one number whatever the open dimensions are.
    pub fn ratio(&self, other: &Amount) -> Option<f64> {
        // Proportional polynomials are proportional at 1 by the same factor.
        let (a, b) = (self.at(1)?, other.at(1)?);
        let proportional =
            self.dim.as_ref()? * &Dim::from(b) == other.dim.as_ref()? * &Dim::from(a);
        (proportional && b != 0).then(|| a as f64 / b as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Amount {
        Amount::from(Dim::parse(text))
    }

    #[test]
    fn an_amount_is_a_number_an_expression_or_unknown() {
        let closed = amount("4*512");
        assert_eq!((closed.exact(), closed.symbolic()), (Some(2048), None));
        let open = amount("4*batch*512");
        assert_eq!(open.exact(), None);
        assert_eq!(open.symbolic().as_deref(), Some("2048·batch"));
        let overflow = Amount::from(Dim::from(i64::MAX) * Dim::from(2));
        assert_eq!((overflow.exact(), overflow.symbolic()), (None, None));
        assert_eq!(overflow, Amount::default());
        assert_eq!(&closed + &overflow, Amount::default());
        assert_eq!(&closed + &open, amount("2048*batch + 2048"));
    }

    #[test]
    fn a_ratio_exists_where_it_does_not_depend_on_open_dimensions() {
        assert_eq!(
            amount("3*b*s + b").ratio(&amount("12*b*s + 4*b")),
            Some(0.25)
        );
        assert_eq!(amount("10").ratio(&amount("40")), Some(0.25));
        assert_eq!(amount("3*b*s + 1").ratio(&amount("12*b*s")), None);
        assert_eq!(amount("0").ratio(&amount("0")), None);
        assert_eq!(Amount::default().ratio(&amount("1")), None);
    }
}
