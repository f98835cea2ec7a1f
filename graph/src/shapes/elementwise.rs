//! Operators that work element by element, and the arithmetic on followed elements.

use super::DataType;
use super::call::Call;
use super::fact::{Fact, unknown};
use super::rules::Outcome;
use crate::dim::Dim;

/// One output of the first input's type and shape.
pub(super) fn unary(call: &mut Call<'_>) -> Outcome {
    call.like(0, 0);
    Ok(())
}

/// The same for operators whose effect on integers is followed.
pub(super) fn followed_unary(call: &mut Call<'_>) -> Outcome {
    let op = call.node.op();
    let input = call.input(0);
    let apply = |x: &Dim| match op {
        "Neg" => -x,
        "Abs" if at_least(x, 0) => x.clone(),
        "Abs" => match x.as_const().and_then(i64::checked_abs) {
            Some(x) => Dim::from(x),
            None => unknown(),
        },
        "Sign" => match x.as_const() {
            Some(x) => Dim::from(x.signum()),
            None if at_least(x, 1) => Dim::from(1),
            None => unknown(),
        },
        // Identity, and roundings of what is an integer already.
        _ => x.clone(),
    };
    let contents = input.contents.as_ref();
    let contents = contents.map(|c| c.iter().map(apply).collect());
    call.set(
        0,
        Fact::new(input.data_type, input.shape.clone()).with(contents),
    );
    Ok(())
}

pub(super) fn not(call: &mut Call<'_>) -> Outcome {
    let flip = |x: &Dim| Dim::from(1) - x;
    let contents = call.contents(0).map(|c| c.iter().map(flip).collect());
    call.set(
        0,
        Fact::new(Some(DataType::BOOL), call.shape_owned(0)).with(contents),
    );
    Ok(())
}

pub(super) fn to_bool(call: &mut Call<'_>) -> Outcome {
    call.give(0, Some(DataType::BOOL), call.shape_owned(0));
    Ok(())
}

/// Whether a value is proven to be at least `bound`.
pub(super) fn at_least(x: &Dim, bound: i64) -> bool {
    x.dominates(&Dim::from(bound))
}

/// Integer division as ONNX defines it (toward zero), where the signs are known.
fn divide(a: &Dim, b: &Dim, whole_only: bool) -> Dim {
    if let Some(exact) = a.exact_div(b).filter(|_| b.as_const() != Some(0)) {
        return exact;
    }
    if whole_only {
        return unknown();
    }
    match (a.as_const(), b.as_const()) {
        (Some(a), Some(b)) => a.checked_div(b).map_or_else(unknown, Dim::from),
        _ if at_least(a, 0) && at_least(b, 1) => a.div_floor(b),
        _ => unknown(),
    }
}

fn modulo(a: &Dim, b: &Dim) -> Dim {
    if at_least(a, 0) && at_least(b, 1) {
        return a.modulo(b);
    }
    unknown()
}

/// Elements of two operands paired; `None` unless both are followed and one is a single element or
/// both have one shape.
fn paired(
    call: &Call<'_>,
    (left, right): (usize, usize),
    apply: impl Fn(&Dim, &Dim) -> Dim,
) -> Option<Vec<Dim>> {
    let (a, b) = (call.contents(left)?, call.contents(right)?);
    let alike = call.shape(left).is_some() && call.shape(left) == call.shape(right);
    match (a, b) {
        ([a], b) => Some(b.iter().map(|b| apply(a, b)).collect()),
        (a, [b]) => Some(a.iter().map(|a| apply(a, b)).collect()),
        _ if alike && a.len() == b.len() => {
            Some(a.iter().zip(b).map(|(a, b)| apply(a, b)).collect())
        }
        _ => None,
    }
}

pub(super) fn arithmetic(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1])?;
    let shape = call.broadcast([0, 1])?;
    let real = data_type.is_some_and(DataType::is_float);
    let op = call.node.op();
    let contents = paired(call, (0, 1), |a, b| match op {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => divide(a, b, real),
        _ => modulo(a, b),
    });
    call.set(0, Fact::new(data_type, shape).with(contents));
    Ok(())
}

/// Operands of types of their own; the first one's is the result's.
pub(super) fn broadcast_first_type(call: &mut Call<'_>) -> Outcome {
    let shape = call.broadcast([0, 1])?;
    call.give(0, call.dtype(0), shape);
    Ok(())
}

pub(super) fn variadic(call: &mut Call<'_>) -> Outcome {
    let slots = 0..call.node.inputs.len();
    let data_type = call.same_type(slots.clone())?;
    let shape = call.broadcast(slots.clone())?;
    let contents = match (call.node.op(), slots.len()) {
        ("Max", 2) => paired(call, (0, 1), Dim::maximum),
        ("Min", 2) => paired(call, (0, 1), Dim::minimum),
        ("Sum", 2) => paired(call, (0, 1), |a, b| a + b),
        _ => None,
    };
    call.set(0, Fact::new(data_type, shape).with(contents));
    Ok(())
}

pub(super) fn compare(call: &mut Call<'_>) -> Outcome {
    call.same_type([0, 1])?;
    let shape = call.broadcast([0, 1])?;
    let op = call.node.op();
    let contents = paired(call, (0, 1), |a, b| {
        // Proven above, proven below, or equal; anything else is open.
        let above = at_least(&(a - b), 1);
        let below = at_least(&(b - a), 1);
        let equal = a == b && !a.is_undefined();
        let truth = match op {
            "Equal" if equal => Some(true),
            "Equal" => (above || below).then_some(false),
            "Greater" if above => Some(true),
            "Greater" => (equal || below).then_some(false),
            "GreaterOrEqual" if above || equal => Some(true),
            "GreaterOrEqual" => below.then_some(false),
            "Less" if below => Some(true),
            "Less" => (equal || above).then_some(false),
            _ if below || equal => Some(true),
            _ => above.then_some(false),
        };
        truth.map_or_else(unknown, |t| Dim::from(i64::from(t)))
    });
    call.set(0, Fact::new(Some(DataType::BOOL), shape).with(contents));
    Ok(())
}

pub(super) fn logic(call: &mut Call<'_>) -> Outcome {
    let shape = call.broadcast([0, 1])?;
    let op = call.node.op();
    let contents = paired(call, (0, 1), |a, b| {
        match (op, a.as_const(), b.as_const()) {
            ("And", Some(0), _) | ("And", _, Some(0)) => Dim::from(0),
            ("Or", Some(1), _) | ("Or", _, Some(1)) => Dim::from(1),
            ("And", Some(1), Some(1)) => Dim::from(1),
            ("Or", Some(0), Some(0)) => Dim::from(0),
            ("Xor", Some(a), Some(b)) => Dim::from(i64::from(a != b)),
            _ => unknown(),
        }
    });
    call.set(0, Fact::new(Some(DataType::BOOL), shape).with(contents));
    Ok(())
}

pub(super) fn select(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([1, 2])?;
    let shape = call.broadcast([0, 1, 2])?;
    let contents = selected(call);
    call.set(0, Fact::new(data_type, shape).with(contents));
    Ok(())
}

fn selected(call: &Call<'_>) -> Option<Vec<Dim>> {
    let [condition, yes, no] = [call.contents(0)?, call.contents(1)?, call.contents(2)?];
    let length = condition.len().max(yes.len()).max(no.len());
    let vectors = (0..3).all(|slot| call.rank(slot).is_some_and(|rank| rank <= 1));
    let fits = |c: &[Dim]| c.len() == length || c.len() == 1;
    if !vectors || !fits(condition) || !fits(yes) || !fits(no) {
        return None;
    }
    let at = |c: &[Dim], i: usize| if c.len() == 1 { c.first() } else { c.get(i) }.cloned();
    let choose = |i: usize| {
        let (yes, no) = (at(yes, i)?, at(no, i)?);
        Some(match at(condition, i)?.as_const() {
            Some(0) => no,
            Some(_) => yes,
            None if yes == no => yes,
            None => unknown(),
        })
    };
    (0..length).map(choose).collect()
}

pub(super) fn clip(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1, 2])?;
    let bound = |slot: usize| match call.contents(slot) {
        Some([only]) => Some(only.clone()),
        _ if call.has(slot) => Some(unknown()),
        _ => None,
    };
    let (low, high) = (bound(1), bound(2));
    let attributes = ["min", "max"]
        .iter()
        .any(|a| call.node.attribute(a).is_some());
    let clip = |x: &Dim| {
        let x = low.as_ref().map_or_else(|| x.clone(), |low| x.maximum(low));
        high.as_ref()
            .map_or_else(|| x.clone(), |high| x.minimum(high))
    };
    let contents = call.contents(0).filter(|_| !attributes);
    let contents = contents.map(|c| c.iter().map(clip).collect());
    call.set(0, Fact::new(data_type, call.shape_owned(0)).with(contents));
    Ok(())
}

/// Elements survive a change of type where the new type holds the integers that sizes are.
fn converted(call: &mut Call<'_>, to: Option<DataType>) {
    let wide = [
        DataType::INT64,
        DataType::INT32,
        DataType::FLOAT,
        DataType::DOUBLE,
    ];
    let contents = call.contents(0);
    let contents = match to {
        Some(DataType::BOOL) => contents.map(|c| c.iter().map(truth).collect()),
        Some(to) if wide.contains(&to) => contents.map(<[Dim]>::to_vec),
        _ => None,
    };
    call.set(0, Fact::new(to, call.shape_owned(0)).with(contents));
}

fn truth(x: &Dim) -> Dim {
    match x.as_const() {
        Some(x) => Dim::from(i64::from(x != 0)),
        None if at_least(x, 1) => Dim::from(1),
        None => unknown(),
    }
}

pub(super) fn cast(call: &mut Call<'_>) -> Outcome {
    let to = i32::try_from(call.node.int("to", 0)).ok();
    converted(call, to.filter(|&t| t != 0).map(DataType));
    Ok(())
}

pub(super) fn cast_like(call: &mut Call<'_>) -> Outcome {
    converted(call, call.dtype(1));
    Ok(())
}
