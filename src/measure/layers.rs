//! Rewritten weight gradients against their formula, and against the exact ones.

use super::fidelity::{self, Fidelity};
use super::{Bench, bytes_of, chunks};
use anyhow::{Context, Result, anyhow};
use std::collections::{BTreeMap, HashMap};
use velora_graph::analysis::sites::{Form, Site};
use velora_graph::ir::{Graph, Node, ValueId};
use velora_graph::shapes::{DataType, Shapes};
use velora_passes::formula::{
    Deviation, Directions, Matrix, Parts, Rounding, compressed, even_direction, gamma, gradient,
    mean_direction, reconstructed, scale_gradient,
};
use velora_passes::proof::{DirectionState, Form as Made, Gradient, direction_state};
use velora_runtime::session::directions::{Kind as Filling, Moments, Unfilled, agreement, solve};
use velora_runtime::tensor::Tensor;

/// What was found of one layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// dW against s·v ⊗ (zᵀ dY); or X̂ against z ⊗ v where the contraction stays, and dW against what it
    /// makes of that X̂, to the last bit.
    pub formula: Deviation,
    /// z against the projections of X.
    pub compressed: Deviation,
    /// v against its definition, where the data determines it; else against a unit vector.
    pub direction: Deviation,
    /// Whether v was compared with its definition.
    pub defined: bool,
    /// The cosine of v with what this batch would give, where data filled it once; another batch may have.
    pub direction_cosine: Option<f64>,
    /// dW against the exact one.
    pub fidelity: Fidelity,
}

/// The names of what one layer is judged by.
struct Names<'a> {
    gradient: &'a Gradient,
    product: &'a Node,
    /// X, the product's operand or a view of it; and dY, where the product is replaced.
    before: Vec<String>,
    dw: String,
    z: String,
    v: String,
    direction: String,
    /// What filled v, where data did.
    filled: Option<Filling>,
    /// X̂, and the view of it that the product reads, where the product stays.
    reconstructed: Option<[String; 2]>,
    bytes: i64,
}

/// Judges every rewritten gradient; `shapes` are the original's at the batch's sizes, and `proven` the
/// graphs that the gradients were found in, whose functions may not be inlined yet.
///
/// # Errors
/// Where a graph cannot be executed, or an operand is no matrix of floating-point numbers.
pub fn judge(
    original: &Bench<'_>,
    shapes: &Shapes,
    rewritten: &Bench<'_>,
    proven: (&Graph, &Graph),
    gradients: &[Gradient],
) -> Result<Vec<Layer>> {
    let values = original.model.graph.values();
    let by_name: HashMap<&str, ValueId> = values
        .map(|v| (original.model.graph.value(v).name.as_str(), v))
        .collect();
    let bytes = |name: &str| by_name.get(name).map_or(0, |&v| bytes_of(shapes, v));
    let named = gradients
        .iter()
        .map(|gradient| names(proven, gradient, bytes));
    let named: Vec<Names<'_>> = named.collect::<Result<_>>()?;
    let mut layers = Vec::new();
    let mut cosines = BTreeMap::new();
    for chunk in chunks(named, |names| names.bytes) {
        let before = chunk.iter().flat_map(|n| n.before.iter().chain([&n.dw]));
        let before = original.values(before.map(String::as_str))?;
        let after = chunk.iter().flat_map(|n| {
            let names = [&n.z, &n.v, &n.direction, &n.dw];
            names.into_iter().chain(n.reconstructed.iter().flatten())
        });
        let after = rewritten.values(after.map(String::as_str))?;
        for names in &chunk {
            let of = || format!("the gradient '{}'", names.dw);
            layers.push(layer(original, names, &before, &after, &mut cosines).with_context(of)?);
        }
    }
    Ok(layers)
}

fn names<'a>(
    (old, new): (&'a Graph, &Graph),
    gradient: &'a Gradient,
    bytes: impl Fn(&str) -> i64,
) -> Result<Names<'a>> {
    let site = &gradient.site;
    let product = old.node(site.product);
    let missing = || anyhow!("node '{}' lacks an operand", product.label(old));
    let operand = |slot: usize| product.inputs.get(slot).copied().flatten();
    let before = match &site.form {
        // The operands of the product itself, whatever the analysis made of them.
        Form::Weight(_) => vec![operand(site.slot), operand(1 - site.slot)],
        Form::Scale(scale) => vec![Some(site.input), Some(scale.gradient)],
        Form::Reconstructed => vec![Some(site.input)],
    };
    let before = before.into_iter().map(|value| {
        let value = value.ok_or_else(missing)?;
        Ok(old.value(value).name.clone())
    });
    let before: Vec<String> = before.collect::<Result<_>>()?;
    let dw = old
        .value(site.result(old).ok_or_else(missing)?)
        .name
        .clone();
    let made = |value: ValueId| new.value(value).name.clone();
    let factors = &gradient.factors;
    let read = new
        .node(gradient.node)
        .inputs
        .get(site.slot)
        .copied()
        .flatten();
    let read = read.map(|value| new.unpinned(value));
    Ok(Names {
        gradient,
        product,
        bytes: before.iter().map(|name| bytes(name)).sum::<i64>() + 2 * bytes(&dw),
        before,
        dw,
        z: made(factors.z),
        // Handed out, directions by group lack the axis that tells them from several; the proof has shown
        // that they are copies.
        v: made(match gradient.form {
            Made::Factors => factors.direction,
            _ => factors.v,
        }),
        direction: made(factors.direction),
        filled: match (
            direction_state(new, factors.direction),
            factors.init.as_str(),
        ) {
            (DirectionState::Constant, "first-batch") => Some(Filling::Mean),
            (DirectionState::Constant, "svd") => Some(Filling::Singular),
            _ => None,
        },
        reconstructed: match (factors.reconstructed, read) {
            (Some(x), Some(read)) => Some([made(x), made(read)]),
            _ => None,
        },
    })
}

fn layer(
    original: &Bench<'_>,
    names: &Names<'_>,
    before: &BTreeMap<String, Tensor>,
    after: &BTreeMap<String, Tensor>,
    cosines: &mut BTreeMap<String, Option<f64>>,
) -> Result<Layer> {
    let Gradient { site, factors, .. } = names.gradient;
    let find = |values: &BTreeMap<String, Tensor>, name: &str| {
        let found = values.get(name).cloned();
        found.ok_or_else(|| anyhow!("no value '{name}'"))
    };
    let [dw, z, v, direction] =
        [&names.dw, &names.z, &names.v, &names.direction].map(|name| find(after, name));
    let (dw, z, v, direction) = (dw?, z?, v?, direction?);
    let rounding = rounding(&v).max(rounding(&dw));
    let groups = usize::try_from(factors.groups)?;
    let v = directions(&v)?;
    let projected_on = directions(&direction)?;
    let columns = groups.saturating_mul(v.rank);
    let z = match z.shape.len() > 2 && site.axis + 1 < z.shape.len() {
        true => features_last(&z, site.axis)?,
        false => Matrix {
            rows: z.elements() / columns.max(1),
            columns,
            elements: numbers(&z)?,
        },
    };
    let operand = |number: usize| {
        let name = names.before.get(number).map_or("", String::as_str);
        find(before, name)
    };
    let x = match &site.form {
        Form::Weight(_) => rows(names.product, &operand(0)?, site.slot)?,
        _ => features_last(&operand(0)?, site.axis)?,
    };
    let none = Matrix {
        rows: z.rows,
        ..Matrix::default()
    };
    let parts = |dy, scale| Parts {
        z: &z,
        dy,
        v: &v,
        groups,
        features: usize::try_from(site.features).unwrap_or(usize::MAX),
        scale,
        rounding,
    };
    let formula = match (&site.form, &names.reconstructed) {
        (Form::Weight(weight), _) => {
            let dy = rows(names.product, &operand(1)?, 1 - site.slot)?;
            let is = stacked(&dw, true)?;
            let is = if weight.transposed {
                is.transposed()
            } else {
                is
            };
            let scale = factors.scale * f64::from(weight.scale);
            gradient(&parts(&dy, scale), &is)
        }
        (Form::Scale(_), _) => {
            let dy = features_last(&operand(1)?, site.axis)?;
            scale_gradient(&parts(&dy, factors.scale), &numbers(&dw)?)
        }
        (Form::Reconstructed, Some([x, read])) => {
            let made = features_last(&find(after, x)?, x_axis(site, &find(after, x)?))?;
            let mut found = reconstructed(&parts(&none, 1.0), &made);
            let scaled = scaled_direction(&v, &projected_on, factors.scale, rounding);
            let maker = (names.dw.as_str(), site.slot);
            let exact = original.substituted(maker, &find(after, read)?, &names.dw)?;
            let same = exact.bytes == dw.bytes;
            for other in [scaled, if same { found } else { Deviation::beyond() }] {
                if found.within() && !other.within() {
                    found = other;
                }
            }
            found
        }
        (Form::Reconstructed, None) => Deviation::beyond(),
    };
    let own = self::rounding(&direction);
    let (defined, against) = definition(&x, groups, &factors.init, &projected_on, own);
    let direction_cosine = names.filled.and_then(|kind| {
        // Layers that share an activation share its direction.
        let known = cosines.entry(names.direction.clone());
        *known.or_insert_with(|| from_batch(&x, groups, kind, &direction.shape, &projected_on))
    });
    Ok(Layer {
        formula,
        compressed: compressed(
            &x,
            groups,
            &projected_on,
            &z,
            factors.storage,
            rounding.max(own),
        ),
        direction: against,
        defined,
        direction_cosine,
        fidelity: fidelity::of(&dw, &find(before, &names.dw)?),
    })
}

/// The axis of X̂ with the features: that of X, unless it is made as rows.
fn x_axis(site: &Site, made: &Tensor) -> usize {
    match site.axis + 1 < made.shape.len() {
        true => site.axis,
        false => made.shape.len().saturating_sub(1),
    }
}

/// An operand of a matrix product as rows, one for each term of its sums.
fn rows(product: &Node, operand: &Tensor, slot: usize) -> Result<Matrix> {
    let flag = product.int(["transA", "transB"][slot.min(1)], 0) != 0;
    // After its own flag, operand 0 has its sum's axis last, and operand 1 the one before.
    stacked(operand, (slot == 1) != flag)
}

/// A tensor as rows of features, which are one of its axes; the other axes keep their order.
fn features_last(tensor: &Tensor, axis: usize) -> Result<Matrix> {
    let elements = numbers(tensor)?;
    let Some(&features) = tensor.shape.get(axis) else {
        return Err(anyhow!("no axis {axis} in {:?}", tensor.shape));
    };
    let inner: usize = tensor.shape.iter().skip(axis + 1).product();
    let mut matrix = Matrix::zeros(tensor.elements() / features.max(1), features);
    for (place, element) in elements.into_iter().enumerate() {
        let (outer, rest) = (
            place / (features * inner).max(1),
            place % (features * inner).max(1),
        );
        let (feature, within) = (rest / inner.max(1), rest % inner.max(1));
        matrix.elements[(outer * inner + within) * features + feature] = element;
    }
    Ok(matrix)
}

/// How a tensor's numbers are rounded beyond 32 bits.
fn rounding(tensor: &Tensor) -> Rounding {
    match tensor.data_type {
        DataType::FLOAT16 => Rounding::FLOAT16,
        DataType::BFLOAT16 => Rounding::BFLOAT16,
        _ => Rounding::default(),
    }
}

/// Compares the v that X̂ is made of with the scaled direction: two roundings.
fn scaled_direction(
    v: &Directions,
    direction: &Directions,
    scale: f64,
    rounding: Rounding,
) -> Deviation {
    if v.elements.len() != direction.elements.len() {
        return Deviation::beyond();
    }
    let mut deviation = Deviation::default();
    for (is, direction) in v.elements.iter().zip(&direction.elements) {
        let wanted = scale * direction;
        let bound = (gamma(2) + 2.0 * rounding.unit) * wanted.abs() + rounding.least;
        deviation.observe((is - wanted).abs(), bound);
    }
    deviation
}

/// Compares v with its definition, where that is computed from the batch or fixed, and the data
/// determines it; otherwise with a unit vector. The flag says which.
fn definition(
    x: &Matrix,
    groups: usize,
    init: &str,
    v: &Directions,
    rounding: Rounding,
) -> (bool, Deviation) {
    let unit = v.from_orthonormal(rounding);
    let own = v.elements.len() > v.rank * v.size;
    let (wanted, bounds): (Vec<f64>, Vec<f64>) = match init {
        "batch-average" if own => (0..groups)
            .map(|group| mean_direction(&group_of(x, group, v.size), 1))
            .fold((vec![], vec![]), |(mut vs, mut bounds), (v, bound)| {
                vs.extend(v);
                bounds.extend(bound);
                (vs, bounds)
            }),
        "batch-average" => mean_direction(x, groups),
        "none" if !own => even_direction(x.columns.div_ceil(groups.max(1))),
        _ => return (false, unit),
    };
    let determined = bounds.iter().all(|bound| bound.is_finite());
    if v.rank != 1 || !determined || !unit.within() {
        return (false, unit);
    }
    let mut deviation = Deviation::default();
    if v.elements.len() != wanted.len() {
        deviation.observe(f64::INFINITY, 0.0);
    }
    for ((is, wanted), bound) in v.elements.iter().zip(wanted).zip(bounds) {
        let bound = bound + rounding.unit * wanted.abs() + rounding.least;
        deviation.observe((is - wanted).abs(), bound);
    }
    (true, deviation)
}

/// The cosine of v with the direction that a calibration on this batch alone would find.
fn from_batch(
    x: &Matrix,
    groups: usize,
    kind: Filling,
    shape: &[usize],
    v: &Directions,
) -> Option<f64> {
    let direction = Unfilled {
        name: String::new(),
        shape: shape.to_vec(),
        kind,
        input: String::new(),
        features: x.columns,
        groups,
    };
    // Whatever else the file says of v, it is cut as X is.
    if direction.size() != v.size || v.rank > v.size {
        return None;
    }
    let moments = Moments::of(&direction, x.elements.chunks(x.columns.max(1)));
    let solved = solve(&direction, &moments).ok()?;
    agreement(&direction, &v.elements, &solved)
}

/// The sub-tokens of one group, [N, M], zero where they are padding.
fn group_of(x: &Matrix, group: usize, size: usize) -> Matrix {
    let mut part = Matrix::zeros(x.rows, size);
    for row in 0..x.rows {
        let from = x.row(row).get(group * size..).unwrap_or_default();
        let to = part.elements[row * size..][..size].iter_mut();
        to.zip(from).for_each(|(to, from)| *to = *from);
    }
    part
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let numbers = tensor.to_f64();
    numbers.ok_or_else(|| {
        anyhow!(
            "expected floating-point numbers, found {}",
            tensor.data_type
        )
    })
}

fn directions(tensor: &Tensor) -> Result<Directions> {
    let found = Directions::new(&tensor.shape, numbers(tensor)?);
    found.ok_or_else(|| {
        anyhow!(
            "expected directions [M], [R, M] or [G, R, M], found {:?}",
            tensor.shape
        )
    })
}

/// Matrices one below the other; each is turned first unless it is `upright`.
fn stacked(tensor: &Tensor, upright: bool) -> Result<Matrix> {
    let [.., rows, columns] = tensor.shape[..] else {
        return Err(anyhow!(
            "expected matrices, found the shape {:?}",
            tensor.shape
        ));
    };
    let elements = numbers(tensor)?;
    if upright {
        return Ok(Matrix {
            rows: tensor.elements() / columns.max(1),
            columns,
            elements,
        });
    }
    let mut whole = Matrix {
        rows: tensor.elements() / rows.max(1),
        columns: rows,
        elements: Vec::with_capacity(elements.len()),
    };
    for elements in elements.chunks_exact((rows * columns).max(1)) {
        let matrix = Matrix {
            rows,
            columns,
            elements: elements.to_vec(),
        };
        whole.elements.extend(matrix.transposed().elements);
    }
    Ok(whole)
}
