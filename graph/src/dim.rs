//! Symbolic dimensions: exact integer expressions over named sizes.
//!
//! A [`Dim`] is a polynomial with integer coefficients over atoms. An atom is a named symbol, or an
//! operation polynomials cannot express (floor and ceiling division, maximum, minimum, modulo) kept
//! whole over canonical operands. Terms are kept in one order, so `==` decides equality of
//! polynomials; expressions holding operation atoms may be equal in value and still compare unequal.
//!
//! **Symbols are sizes, at least 1**, and a divisor is taken to be nonzero: [`Dim::maximum`],
//! [`Dim::minimum`], [`Dim::dominates`] and the divisions simplify under these assumptions.
//!
//! **Overflow.** Coefficients lie in `-i64::MAX..=i64::MAX` and expressions are bounded in size and
//! nesting. A result out of these bounds, or a division by the constant 0, is the *undefined*
//! dimension (see [`Dim::is_undefined`]): absorbing under every operation, printed as `⊤`, never
//! constant, never evaluated, never dominating. Nothing here panics or silently wraps.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::Arc;

use poly::{Mono, Terms, add_term, floor_i64, floor_i128, gcd, product, sum};

mod poly;
mod text;

/// Most atoms and terms, counted through nesting, an expression may have.
const MAX_SIZE: usize = 2048;
/// Deepest nesting of operation atoms.
const MAX_DEPTH: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Op {
    FloorDiv,
    CeilDiv,
    Mod,
    Max,
    Min,
}

/// An operation over canonical operands; the last three fields follow from the first two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct OpAtom {
    op: Op,
    args: Vec<Dim>,
    /// A proven lower bound, 0 or 1.
    low: Option<i64>,
    size: usize,
    depth: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Symbol(Arc<str>),
    Op(Arc<OpAtom>),
}

impl Atom {
    fn low(&self) -> Option<i64> {
        match self {
            Atom::Symbol(_) => Some(1),
            Atom::Op(op) => op.low,
        }
    }
    fn size(&self) -> usize {
        match self {
            Atom::Symbol(_) => 1,
            Atom::Op(op) => op.size,
        }
    }
    fn depth(&self) -> usize {
        match self {
            Atom::Symbol(_) => 0,
            Atom::Op(op) => op.depth,
        }
    }
}

/// A symbolic dimension in canonical form. See the [module](self) for what is assumed of symbols
/// and what happens on overflow. The order given by `Ord` is structural, not by
/// value, and so are `Ord::max` and `Ord::min`: take [`Dim::maximum`] and [`Dim::minimum`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim {
    /// Nonzero coefficients by monomial; `None` is the undefined dimension. Shared, because most
    /// dimensions of a graph are copies of others.
    shared: Option<Arc<Terms>>,
}

impl From<i64> for Dim {
    /// The constant `value`; `i64::MIN` is outside the coefficient range, hence undefined.
    fn from(value: i64) -> Self {
        let mut terms = Terms::new();
        let added = add_term(&mut terms, Mono::default(), value);
        Dim {
            shared: added.map(|()| Arc::new(terms)),
        }
    }
}

impl Dim {
    /// The symbol called `name`; any text is a name.
    pub fn symbol(name: &str) -> Self {
        Dim::atom(Atom::Symbol(name.into()))
    }

    fn atom(atom: Atom) -> Self {
        Dim {
            shared: Some(Arc::new(Terms::from([(Mono(vec![(atom, 1)]), 1)]))),
        }
    }

    fn terms(&self) -> Option<&Terms> {
        self.shared.as_deref()
    }

    fn undefined() -> Self {
        Dim { shared: None }
    }

    fn of(terms: Option<Terms>) -> Self {
        let fits = |t: &Terms| {
            let atoms = t.keys().flat_map(|m| &m.0).map(|(a, _)| a.size());
            atoms.fold(t.len(), usize::saturating_add) <= 2 * MAX_SIZE
        };
        Dim {
            shared: terms.filter(fits).map(Arc::new),
        }
    }

    /// Whether this is the result of an overflow or of a division by the constant 0.
    pub fn is_undefined(&self) -> bool {
        self.shared.is_none()
    }

    /// Atoms and terms, counted through nesting: what the expression costs to hold.
    pub(crate) fn size(&self) -> usize {
        let terms = self.terms();
        let atoms = terms.into_iter().flat_map(Terms::keys).flat_map(|m| &m.0);
        atoms.fold(terms.map_or(0, Terms::len), |size, (atom, _)| {
            size.saturating_add(atom.size())
        })
    }

    /// The value, where it does not depend on any symbol.
    pub fn as_const(&self) -> Option<i64> {
        let terms = self.terms()?;
        match terms.len() {
            0 => Some(0),
            1 => terms.get(&Mono::default()).copied(),
            _ => None,
        }
    }

    /// Every symbol named in the expression, inside operation atoms as well.
    pub fn symbols(&self) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        self.collect_symbols(&mut found);
        found
    }

    fn collect_symbols(&self, found: &mut BTreeSet<Arc<str>>) {
        for (atom, _) in self
            .terms()
            .into_iter()
            .flat_map(Terms::keys)
            .flat_map(|m| &m.0)
        {
            match atom {
                Atom::Symbol(name) => drop(found.insert(name.clone())),
                Atom::Op(op) => op.args.iter().for_each(|a| a.collect_symbols(found)),
            }
        }
    }

    /// Whether every symbol in the expression passes a test.
    pub(crate) fn every_symbol(&self, test: &dyn Fn(&str) -> bool) -> bool {
        let monos = self.terms().into_iter().flat_map(Terms::keys);
        monos.flat_map(|m| &m.0).all(|(atom, _)| match atom {
            Atom::Symbol(name) => test(name),
            Atom::Op(op) => op.args.iter().all(|a| a.every_symbol(test)),
        })
    }

    /// The value under `values`; `None` where a symbol has no value, a divisor is 0, the result
    /// does not fit, or the expression is undefined.
    pub fn eval(&self, values: &BTreeMap<Arc<str>, i64>) -> Option<i64> {
        i64::try_from(self.eval_wide(values)?).ok()
    }

    fn eval_wide(&self, values: &BTreeMap<Arc<str>, i64>) -> Option<i128> {
        let mut total = 0i128;
        for (mono, coef) in self.terms()? {
            let mut product = i128::from(*coef);
            for (atom, e) in &mono.0 {
                let value = match atom {
                    Atom::Symbol(name) => i128::from(*values.get(name)?),
                    Atom::Op(op) => op.eval(values)?,
                };
                product = product.checked_mul(value.checked_pow(*e)?)?;
            }
            total = total.checked_add(product)?;
        }
        Some(total)
    }

    /// Replaces symbols by expressions, all at once, and simplifies; symbols without an entry stay.
    pub fn substitute(&self, with: &BTreeMap<Arc<str>, Dim>) -> Dim {
        let Some(terms) = self.terms() else {
            return Dim::undefined();
        };
        let mut total = Dim::from(0);
        for (mono, coef) in terms {
            let mut product = Dim::from(*coef);
            for (atom, e) in &mono.0 {
                let base = match atom {
                    Atom::Symbol(name) => {
                        with.get(name).cloned().unwrap_or_else(|| Dim::symbol(name))
                    }
                    Atom::Op(op) => {
                        Dim::apply(op.op, op.args.iter().map(|a| a.substitute(with)).collect())
                    }
                };
                product = product * base.pow(*e);
            }
            total = total + product;
        }
        total
    }

    /// `self` multiplied by itself `exponent` times; the 0th power is 1.
    pub fn pow(&self, mut exponent: u32) -> Dim {
        let (mut out, mut base) = (Dim::from(1), self.clone());
        while exponent > 0 {
            if exponent & 1 == 1 {
                out = &out * &base;
            }
            exponent >>= 1;
            if exponent > 0 {
                base = &base * &base;
            }
        }
        out
    }

    /// The polynomial `q` with `q·other == self`, where there is one within the size bounds.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        let divisor = other.terms()?;
        let (lead, lead_coef) = divisor.first_key_value()?;
        let mut rest = self.terms()?.clone();
        let mut quotient = Terms::new();
        while let Some((mono, coef)) = rest.first_key_value() {
            if coef.checked_rem(*lead_coef)? != 0 {
                return None;
            }
            let step = Terms::from([(mono.div(lead)?, coef.checked_div(*lead_coef)?)]);
            rest = sum(&rest, &product(&step, divisor)?, -1)?;
            quotient.extend(step);
            if quotient.len() > MAX_SIZE {
                return None;
            }
        }
        let quotient = Dim::of(Some(quotient));
        (!quotient.is_undefined()).then_some(quotient)
    }

    /// `self / other` rounded toward negative infinity.
    pub fn div_floor(&self, other: &Dim) -> Dim {
        self.div_rounded(other, Op::FloorDiv)
    }

    /// `self / other` rounded toward positive infinity.
    pub fn div_ceil(&self, other: &Dim) -> Dim {
        self.div_rounded(other, Op::CeilDiv)
    }

    fn div_rounded(&self, other: &Dim, op: Op) -> Dim {
        if let Some(q) = self.exact_div(other) {
            return q;
        }
        let reduced = self.cancel(other).map(|(n, d)| match (d.as_const(), op) {
            (Some(c), Op::FloorDiv) => n.div_floor_const(c).unwrap_or_else(Dim::undefined),
            (Some(c), _) => (n + Dim::from(c) - Dim::from(1))
                .div_floor_const(c)
                .unwrap_or_else(Dim::undefined),
            _ => n.exact_div(&d).unwrap_or_else(|| Dim::op(op, vec![n, d])),
        });
        reduced.unwrap_or_else(Dim::undefined)
    }

    /// Both over their common monomial and integer factors, the divisor's first coefficient made
    /// positive. `None` if either is undefined or the divisor is 0.
    fn cancel(&self, other: &Dim) -> Option<(Dim, Dim)> {
        let (n, d) = (self.terms()?, other.terms()?);
        let (lead, lead_coef) = d.first_key_value()?;
        let common = n.keys().chain(d.keys()).fold(lead.clone(), |g, m| g.gcd(m));
        let content = n.values().chain(d.values()).fold(0, |g, c| gcd(g, *c));
        let factor = Terms::from([(common, content.checked_mul(lead_coef.signum())?)]);
        let factor = Dim {
            shared: Some(Arc::new(factor)),
        };
        Some((self.exact_div(&factor)?, other.exact_div(&factor)?))
    }

    /// Floor division by `d > 0`: multiples of `d` leave the atom, and what is in it has
    /// coefficients in `0..d` without a factor in common with `d`.
    fn div_floor_const(&self, d: i64) -> Option<Dim> {
        let terms = self.terms()?;
        let one = Mono::default();
        let common = terms
            .iter()
            .filter(|(m, _)| **m != one)
            .fold(d, |g, (_, c)| gcd(g, *c));
        let d = d.checked_div(common)?;
        let (mut whole, mut inside) = (Terms::new(), Terms::new());
        for (mono, coef) in terms {
            // Rounds the constant only: the other coefficients are multiples of `common`.
            let coef = floor_i64(*coef, common)?;
            add_term(&mut whole, mono.clone(), floor_i64(coef, d)?)?;
            add_term(&mut inside, mono.clone(), coef.checked_rem_euclid(d)?)?;
        }
        let inside = Dim::of(Some(inside));
        let atom = match inside.as_const() {
            Some(_) => Dim::from(0),
            None => Dim::op(Op::FloorDiv, vec![inside, Dim::from(d)]),
        };
        Some(Dim::of(Some(whole)) + atom)
    }

    /// `self - other·floor(self / other)`: the remainder with the divisor's sign, as in Python.
    pub fn modulo(&self, other: &Dim) -> Dim {
        let (Some(n), Some(d)) = (self.terms(), other.terms()) else {
            return Dim::undefined();
        };
        if d.is_empty() {
            return Dim::undefined();
        }
        if self.exact_div(other).is_some() {
            return Dim::from(0);
        }
        match (self.as_const(), other.as_const()) {
            (Some(_), Some(_)) => self - &(self.div_floor(other) * other),
            (None, Some(c)) if c > 0 => {
                let reduced = n.iter().map(|(m, k)| (m.clone(), k.rem_euclid(c)));
                let reduced = Dim::of(Some(reduced.filter(|(_, k)| *k != 0).collect()));
                // With nothing but a constant below `c` left, that constant is the remainder.
                if reduced.as_const().is_some() {
                    reduced
                } else {
                    Dim::op(Op::Mod, vec![reduced, other.clone()])
                }
            }
            _ => Dim::op(Op::Mod, vec![self.clone(), other.clone()]),
        }
    }

    /// The greater of the two; operands another one [dominates](Dim::dominates) are left out.
    pub fn maximum(&self, other: &Dim) -> Dim {
        Dim::extreme(Op::Max, &[self, other])
    }

    /// The lesser of the two; operands that [dominate](Dim::dominates) another are left out.
    pub fn minimum(&self, other: &Dim) -> Dim {
        Dim::extreme(Op::Min, &[self, other])
    }

    fn extreme(op: Op, operands: &[&Dim]) -> Dim {
        let mut all = BTreeSet::new();
        for dim in operands {
            match dim.as_op() {
                _ if dim.is_undefined() => return Dim::undefined(),
                Some(inner) if inner.op == op => all.extend(inner.args.iter().cloned()),
                _ => drop(all.insert((*dim).clone())),
            }
        }
        let wins = |a: &Dim, b: &Dim| {
            if op == Op::Max {
                a.dominates(b) || b.holds_inside(Op::Min, |arg| a.dominates(arg))
            } else {
                b.dominates(a) || b.holds_inside(Op::Max, |arg| arg.dominates(a))
            }
        };
        let mut kept: Vec<Dim> = Vec::new();
        for dim in all {
            if !kept.iter().any(|k| wins(k, &dim)) {
                kept.retain(|k| !wins(&dim, k));
                kept.push(dim);
            }
        }
        match kept.pop() {
            Some(only) if kept.is_empty() => only,
            Some(last) => {
                kept.push(last);
                Dim::op(op, kept)
            }
            None => Dim::undefined(),
        }
    }

    /// Whether this is the operation `op` and an operand of it passes the test. Absorption rests on
    /// that: `Max(x, Min(x, y)) = x = Min(x, Max(x, y))`.
    fn holds_inside(&self, op: Op, test: impl Fn(&Dim) -> bool) -> bool {
        let inner = self.as_op().filter(|inner| inner.op == op);
        inner.is_some_and(|inner| inner.args.iter().any(test))
    }

    /// The operation atom this is, if it is one and nothing else.
    fn as_op(&self) -> Option<&OpAtom> {
        let (mono, coef) = self.terms().filter(|t| t.len() == 1)?.first_key_value()?;
        match mono.0.as_slice() {
            [(Atom::Op(op), 1)] if *coef == 1 => Some(op),
            _ => None,
        }
    }

    /// The atom for operands already in canonical form.
    fn op(op: Op, args: Vec<Dim>) -> Dim {
        let atoms = || {
            args.iter()
                .filter_map(Dim::terms)
                .flat_map(Terms::keys)
                .flat_map(|m| &m.0)
        };
        let terms: usize = args.iter().filter_map(Dim::terms).map(Terms::len).sum();
        let size = atoms().fold(1 + terms, |s, (a, _)| s.saturating_add(a.size()));
        let depth = 1 + atoms().map(|(a, _)| a.depth()).max().unwrap_or(0);
        if size > MAX_SIZE || depth > MAX_DEPTH || args.iter().any(Dim::is_undefined) {
            return Dim::undefined();
        }
        let at_least = |a: &Dim, k: i64| a.dominates(&Dim::from(k));
        let holds = |k: i64| match (op, args.as_slice()) {
            (Op::FloorDiv, [n, d]) if k == 1 => at_least(d, 1) && n.dominates(d),
            (Op::FloorDiv | Op::CeilDiv, [n, d]) => at_least(n, k) && at_least(d, 1),
            (Op::Mod, [_, d]) => k == 0 && at_least(d, 1),
            (Op::Max, _) => args.iter().any(|a| at_least(a, k)),
            (Op::Min, _) => args.iter().all(|a| at_least(a, k)),
            _ => false,
        };
        let low = [1, 0].into_iter().find(|k| holds(*k));
        Dim::atom(Atom::Op(Arc::new(OpAtom {
            op,
            args,
            low,
            size,
            depth,
        })))
    }

    /// `op` over operands of any form.
    fn apply(op: Op, args: Vec<Dim>) -> Dim {
        match (op, args.as_slice()) {
            (Op::FloorDiv, [n, d]) => n.div_floor(d),
            (Op::CeilDiv, [n, d]) => n.div_ceil(d),
            (Op::Mod, [n, d]) => n.modulo(d),
            (Op::Max | Op::Min, _) => Dim::extreme(op, &args.iter().collect::<Vec<_>>()),
            _ => Dim::undefined(),
        }
    }

    /// Whether `self >= other` is proven for every assignment of sizes (at least 1) to the symbols.
    ///
    /// Sound and incomplete: each negative term of the difference must be covered by positive terms
    /// whose monomials are multiples of its own. `false` means not proven.
    pub fn dominates(&self, other: &Dim) -> bool {
        let difference = self - other;
        let Some(difference) = difference.terms() else {
            return false;
        };
        let mut atoms = difference.keys().flat_map(|m| &m.0);
        if atoms.any(|(a, _)| a.low().is_none()) {
            return false;
        }
        // Lowest degrees first, so that terms able to cover more are spent last.
        let mut positive: Vec<(&Mono, i64)> = difference
            .iter()
            .rev()
            .filter(|(_, c)| **c > 0)
            .map(|(m, c)| (m, *c))
            .collect();
        difference
            .iter()
            .filter(|(_, c)| **c < 0)
            .all(|(mono, coef)| {
                let mut owed = coef.saturating_neg();
                for (cover, left) in positive.iter_mut().filter(|(_, left)| *left > 0) {
                    let covers = cover
                        .div(mono)
                        .is_some_and(|q| q.0.iter().all(|(a, _)| a.low() == Some(1)));
                    if covers {
                        let used = owed.min(*left);
                        *left -= used;
                        owed -= used;
                    }
                }
                owed == 0
            })
    }
}

impl OpAtom {
    fn eval(&self, values: &BTreeMap<Arc<str>, i64>) -> Option<i128> {
        let args: Vec<i128> = self
            .args
            .iter()
            .map(|a| a.eval_wide(values))
            .collect::<Option<_>>()?;
        match (self.op, args.as_slice()) {
            (Op::FloorDiv, [n, d]) => floor_i128(*n, *d),
            (Op::CeilDiv, [n, d]) => floor_i128(n.checked_neg()?, *d)?.checked_neg(),
            (Op::Mod, [n, d]) => n.checked_sub(floor_i128(*n, *d)?.checked_mul(*d)?),
            (Op::Max, _) => args.into_iter().max(),
            (Op::Min, _) => args.into_iter().min(),
            _ => None,
        }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $with:expr) => {
        impl $trait<&Dim> for &Dim {
            type Output = Dim;
            fn $method(self, other: &Dim) -> Dim {
                let (Some(a), Some(b)) = (self.terms(), other.terms()) else {
                    return Dim::undefined();
                };
                Dim::of($with(a, b))
            }
        }
        impl $trait<Dim> for Dim {
            type Output = Dim;
            fn $method(self, other: Dim) -> Dim {
                $trait::$method(&self, &other)
            }
        }
        impl $trait<&Dim> for Dim {
            type Output = Dim;
            fn $method(self, other: &Dim) -> Dim {
                $trait::$method(&self, other)
            }
        }
        impl $trait<Dim> for &Dim {
            type Output = Dim;
            fn $method(self, other: Dim) -> Dim {
                $trait::$method(self, &other)
            }
        }
    };
}

operator!(Add, add, |a, b| sum(a, b, 1));
operator!(Sub, sub, |a, b| sum(a, b, -1));
operator!(Mul, mul, product);

impl Neg for &Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::from(0) - self
    }
}

impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        -&self
    }
}
