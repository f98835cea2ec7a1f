//! Products.

use super::DataType;
use super::call::{Call, broadcast, list};
use super::fact::unknown;
use super::rules::{Fault, Outcome};
use crate::dim::Dim;

/// A longer equation of an Einsum is not read.
const MAX_EQUATION: usize = 1024;

pub(super) fn matmul(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1])?;
    let shape = match (call.shape_owned(0), call.shape_owned(1)) {
        (Some(a), Some(b)) => Some(multiplied(call, a, b)?),
        _ => None,
    };
    call.give(0, data_type, shape);
    Ok(())
}

pub(super) fn matmul_integer(call: &mut Call<'_>) -> Outcome {
    let shape = match (call.shape_owned(0), call.shape_owned(1)) {
        (Some(a), Some(b)) => Some(multiplied(call, a, b)?),
        _ => None,
    };
    call.give(0, Some(DataType::INT32), shape);
    Ok(())
}

/// `MatMul` with transposes in front: of the last two axes, or (`transBatch`) with the batch axes
/// moved behind the first of the two.
pub(super) fn fused_matmul(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1])?;
    let turned = |slot: usize, batch: &str, plain: &str| {
        let mut shape = call.shape_owned(slot)?;
        let rank = shape.len();
        if rank >= 2 {
            // contrib_ops/cpu/math: transBatch reads [a, batch..., b] as [batch..., a, b].
            if call.node.int(batch, 0) != 0 {
                shape[..rank - 1].rotate_left(1);
            }
            if call.node.int(plain, 0) != 0 {
                shape.swap(rank - 2, rank - 1);
            }
        }
        Some(shape)
    };
    let a = turned(0, "transBatchA", "transA");
    let b = turned(1, "transBatchB", "transB");
    let shape = match (a, b) {
        (Some(a), Some(b)) => Some(multiplied(call, a, b)?),
        _ => None,
    };
    call.give(0, data_type, shape);
    Ok(())
}

fn multiplied(call: &Call<'_>, mut a: Vec<Dim>, mut b: Vec<Dim>) -> Result<Vec<Dim>, Box<Fault>> {
    let mismatch = |what: &str, a: &[Dim], b: &[Dim]| {
        call.fault(
            call.name(1),
            format!("the operand is {}", list(b)),
            format!("'{}' is {}", call.name(0), list(a)),
            match what {
                "inner" => "the last axis of the first must equal the second last of the second",
                "rank" => "a product has no scalar operand",
                _ => "batch axes must be equal or 1",
            },
        )
    };
    let (from_a, from_b) = (a.clone(), b.clone());
    let (row, column) = (a.len() == 1, b.len() == 1);
    if a.is_empty() || b.is_empty() {
        return Err(mismatch("rank", &from_a, &from_b));
    }
    if row {
        a.insert(0, Dim::from(1));
    }
    if column {
        b.push(Dim::from(1));
    }
    let (inner_a, inner_b) = (a[a.len() - 1].as_const(), b[b.len() - 2].as_const());
    if let (Some(x), Some(y)) = (inner_a, inner_b)
        && x != y
    {
        return Err(mismatch("inner", &from_a, &from_b));
    }
    let lead = broadcast(&a[..a.len() - 2], &b[..b.len() - 2]);
    let mut shape = lead.map_err(|_| mismatch("batch", &from_a, &from_b))?;
    if !row {
        shape.push(a[a.len() - 2].clone());
    }
    if !column {
        shape.push(b[b.len() - 1].clone());
    }
    Ok(shape)
}

pub(super) fn gemm(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1, 2])?;
    call.want_rank(0, 2, 2)?;
    call.want_rank(1, 2, 2)?;
    let flip = |name: &str| usize::from(call.node.int(name, 0) != 0);
    let (a, b) = (flip("transA"), flip("transB"));
    call.agree((0, 1 - a), (1, b))?;
    let size =
        |slot: usize, axis: usize| call.shape(slot).map_or_else(unknown, |s| s[axis].clone());
    let shape = vec![size(0, a), size(1, 1 - b)];
    if let Some(bias) = call.shape(2)
        && broadcast(&shape, bias).is_err()
    {
        return Err(call.fault(
            call.name(2),
            format!("the bias is {}", list(bias)),
            format!("the product is {}", list(&shape)),
            "the bias must broadcast to the product",
        ));
    }
    call.give(0, data_type, Some(shape));
    Ok(())
}

pub(super) fn einsum(call: &mut Call<'_>) -> Outcome {
    let count = call.node.inputs.len();
    let data_type = call.same_type(0..count)?;
    let equation = call.text("equation", "");
    let shape = match equation.len() <= MAX_EQUATION {
        true => {
            let equation: String = equation.split_whitespace().collect();
            einsum_shape(call, &equation, count)?
        }
        false => None,
    };
    call.give(0, data_type, shape);
    Ok(())
}

/// The labels of one term; the ellipsis becomes `.`.
fn labels(term: &str) -> Vec<char> {
    term.replace("...", ".").chars().collect()
}

fn einsum_shape(
    call: &Call<'_>,
    equation: &str,
    count: usize,
) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation, None),
    };
    let terms: Vec<Vec<char>> = left.split(',').map(labels).collect();
    let wrong = |slot: usize, found: String, other: String| {
        let hint = "check the equation of the Einsum";
        Err(call.fault(call.name(slot), found, other, hint))
    };
    if terms.len() != count {
        let other = format!("the node has {count} inputs");
        return wrong(
            0,
            format!("the equation '{equation}' has {} terms", terms.len()),
            other,
        );
    }
    let mut sizes: Vec<(char, usize, Dim)> = Vec::new();
    let mut dots: Vec<Dim> = Vec::new();
    for (slot, term) in terms.iter().enumerate() {
        let Some(shape) = call.shape(slot) else {
            return Ok(None);
        };
        let named = term.iter().filter(|&&c| c != '.').count();
        let spare = match term.iter().filter(|&&c| c == '.').count() {
            0 if named == shape.len() => 0,
            1 if named <= shape.len() => shape.len() - named,
            _ => {
                let found = format!("the rank is {}", shape.len());
                return wrong(
                    slot,
                    found,
                    format!("its term in '{equation}' has {named} axes"),
                );
            }
        };
        let mut axis = 0;
        for &label in term {
            if label == '.' {
                let part = &shape[axis..axis + spare];
                let Ok(joined) = broadcast(&dots, part) else {
                    let found = format!("the axes of the ellipsis are {}", list(part));
                    return wrong(
                        slot,
                        found,
                        format!("those of other inputs are {}", list(&dots)),
                    );
                };
                dots = joined;
                axis += spare;
                continue;
            }
            let here = shape[axis].clone();
            axis += 1;
            match sizes.iter_mut().find(|(c, ..)| *c == label) {
                None => sizes.push((label, slot, here)),
                Some((_, first, size)) => match (size.as_const(), here.as_const()) {
                    (Some(x), Some(y)) if x != y && x != 1 && y != 1 => {
                        let other = format!("'{label}' is {x} in '{}'", call.name(*first));
                        return wrong(slot, format!("'{label}' is {y}"), other);
                    }
                    (Some(1), _) | (None, Some(2..)) => *size = here,
                    _ if size.is_undefined() => *size = here,
                    _ => {}
                },
            }
        }
    }
    let output = match right {
        Some(right) => labels(right),
        None => {
            // The implicit output: the ellipsis, then the labels that occur once, in order.
            let once = |c: &char| terms.iter().flatten().filter(|d| *d == c).count() == 1;
            let mut output: Vec<char> = terms
                .iter()
                .flatten()
                .filter(|c| **c != '.')
                .copied()
                .collect();
            output.retain(once);
            output.sort_unstable();
            output.insert(0, '.');
            output
        }
    };
    let mut shape = Vec::new();
    for label in output {
        match sizes.iter().find(|(c, ..)| *c == label) {
            Some((.., size)) => shape.push(size.clone()),
            None if label == '.' => shape.extend(dots.iter().cloned()),
            None => {
                let other = "no input has it".to_owned();
                return wrong(
                    0,
                    format!("the output of '{equation}' has an axis '{label}'"),
                    other,
                );
            }
        }
    }
    Ok(Some(shape))
}
