//! The operators.

use super::{Data, Machine, Tensor, constant, indexed};
use velora_graph::onnx::schema::NodeProto;

fn attribute<'n>(
    node: &'n NodeProto,
    name: &str,
) -> Option<&'n velora_graph::onnx::schema::AttributeProto> {
    node.attribute.iter().find(|a| a.name() == name)
}

fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).and_then(|a| a.i).unwrap_or(default)
}

fn float(node: &NodeProto, name: &str, default: f32) -> f64 {
    attribute(node, name)
        .and_then(|a| a.f)
        .unwrap_or(default)
        .into()
}

fn axis(axis: i64, rank: usize) -> usize {
    (if axis < 0 { axis + rank as i64 } else { axis }) as usize
}

/// The shape that two shapes broadcast to.
fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], at: usize| match (at + shape.len()).checked_sub(rank) {
        Some(at) => shape[at],
        None => 1,
    };
    let sizes = (0..rank).map(|at| match (size(a, at), size(b, at)) {
        (a, b) if a == b || b == 1 => a,
        (1, b) => b,
        (a, b) => panic!("{a} and {b} do not broadcast"),
    });
    sizes.collect()
}

/// All index vectors of a shape, row by row.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &size in shape {
        all = all
            .into_iter()
            .flat_map(|index: Vec<usize>| (0..size).map(move |i| [index.as_slice(), &[i]].concat()))
            .collect();
    }
    all
}

/// The place of an index vector in a tensor that is broadcast to the vector's shape.
fn place(shape: &[usize], index: &[usize]) -> usize {
    let index = &index[index.len() - shape.len()..];
    let steps = shape.iter().zip(index);
    steps.fold(0, |at, (&size, &i)| {
        at * size + if size == 1 { 0 } else { i }
    })
}

/// The elements at given places, whatever their type.
fn gather(x: &Tensor, shape: &[usize], places: &[usize]) -> Tensor {
    match &x.data {
        Data::Float(e) => Tensor::floats(shape, places.iter().map(|&p| e[p]).collect()),
        Data::Int(e) => Tensor::ints(shape, places.iter().map(|&p| e[p]).collect()),
        Data::Bool(e) => Tensor::bools(shape, places.iter().map(|&p| e[p]).collect()),
    }
}

/// The same elements under another shape.
fn view(x: &Tensor, shape: Vec<usize>) -> Tensor {
    assert_eq!(
        shape.iter().product::<usize>(),
        x.shape.iter().product::<usize>()
    );
    Tensor { shape, ..x.clone() }
}

fn expand(x: &Tensor, shape: &[usize]) -> Tensor {
    let shape = broadcast(&x.shape, shape);
    let places: Vec<usize> = indices(&shape).iter().map(|i| place(&x.shape, i)).collect();
    gather(x, &shape, &places)
}

fn transpose(x: &Tensor, perm: &[usize]) -> Tensor {
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p]).collect();
    let places = indices(&shape).into_iter().map(|index| {
        let mut source = vec![0; index.len()];
        for (to, &from) in perm.iter().enumerate() {
            source[from] = index[to];
        }
        place(&x.shape, &source)
    });
    gather(x, &shape, &places.collect::<Vec<_>>())
}

/// e^(-x²) and its series: erf x = 2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·5···(2n+1)).
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

impl Machine<'_> {
    fn map(&self, x: &Tensor, f: impl Fn(f64) -> f64) -> Tensor {
        Tensor::floats(&x.shape, x.f().iter().map(|&e| self.round(f(e))).collect())
    }

    /// Two tensors element by element.
    fn zip(
        &self,
        a: &Tensor,
        b: &Tensor,
        floats: impl Fn(f64, f64) -> f64,
        ints: impl Fn(i64, i64) -> i64,
    ) -> Tensor {
        let shape = broadcast(&a.shape, &b.shape);
        let (a, b) = (expand(a, &shape), expand(b, &shape));
        match (&a.data, &b.data) {
            (Data::Float(a), Data::Float(b)) => {
                let entries = a.iter().zip(&**b).map(|(&a, &b)| self.round(floats(a, b)));
                Tensor::floats(&shape, entries.collect())
            }
            (Data::Int(a), Data::Int(b)) => {
                let entries = a.iter().zip(&**b).map(|(&a, &b)| ints(a, b));
                Tensor::ints(&shape, entries.collect())
            }
            _ => panic!("operands of different types"),
        }
    }

    fn compare(&self, a: &Tensor, b: &Tensor, holds: impl Fn(f64, f64) -> bool) -> Tensor {
        let shape = broadcast(&a.shape, &b.shape);
        let (a, b) = (expand(a, &shape), expand(b, &shape));
        Tensor::bools(
            &shape,
            a.f()
                .iter()
                .zip(b.f())
                .map(|(&a, &b)| holds(a, b))
                .collect(),
        )
    }

    fn reduce(&self, x: &Tensor, axes: &[usize], keep: bool) -> Tensor {
        let kept: Vec<usize> = x
            .shape
            .iter()
            .enumerate()
            .map(|(a, &s)| if axes.contains(&a) { 1 } else { s })
            .collect();
        let count = kept.iter().product();
        let places: Vec<usize> = indices(&x.shape).iter().map(|i| place(&kept, i)).collect();
        let left = kept
            .iter()
            .enumerate()
            .filter(|(a, _)| keep || !axes.contains(a));
        let shape: Vec<usize> = left.map(|(_, &s)| s).collect();
        match &x.data {
            Data::Float(entries) => {
                let mut sums = vec![0.0; count];
                for (&place, &entry) in places.iter().zip(&**entries) {
                    sums[place] = self.round(sums[place] + entry);
                }
                Tensor::floats(&shape, sums)
            }
            Data::Int(entries) => {
                let mut sums = vec![0; count];
                for (&place, &entry) in places.iter().zip(&**entries) {
                    sums[place] += entry;
                }
                Tensor::ints(&shape, sums)
            }
            Data::Bool(_) => panic!("a sum of booleans"),
        }
    }

    /// The matrix product over the last two axes, one element after the other.
    pub(super) fn matmul(&self, a: &Tensor, b: &Tensor) -> Tensor {
        if b.shape.len() == 1 {
            let column = view(b, vec![b.shape[0], 1]);
            let product = self.matmul(a, &column);
            let shape = product.shape[..product.shape.len() - 1].to_vec();
            return view(&product, shape);
        }
        let ([.., n, k], [.., l, m]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            panic!("a product of {:?} and {:?}", a.shape, b.shape);
        };
        assert_eq!(k, l, "inner sizes");
        let lead = broadcast(&a.shape[..a.shape.len() - 2], &b.shape[..b.shape.len() - 2]);
        let shape = [lead.as_slice(), &[*n, *m]].concat();
        let entries = indices(&shape).into_iter().map(|index| {
            let (batch, [row, column]) = index.split_at(index.len() - 2) else {
                panic!("no matrix");
            };
            let mut sum = 0.0;
            for inner in 0..*k {
                let left = a.f()[place(&a.shape, &[batch, &[*row, inner]].concat())];
                let right = b.f()[place(&b.shape, &[batch, &[inner, *column]].concat())];
                sum = self.round(sum + self.round(left * right));
            }
            sum
        });
        let entries = entries.collect();
        Tensor::floats(&shape, entries)
    }

    fn softmax(&self, x: &Tensor, along: usize, logarithm: bool) -> Tensor {
        let mut entries = vec![0.0; x.f().len()];
        let mut lines = std::collections::BTreeMap::<Vec<usize>, Vec<usize>>::new();
        for (at, mut index) in indices(&x.shape).into_iter().enumerate() {
            index.remove(along);
            lines.entry(index).or_default().push(at);
        }
        for line in lines.values() {
            let top = line
                .iter()
                .map(|&at| x.f()[at])
                .fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = line.iter().map(|&at| (x.f()[at] - top).exp()).sum();
            for &at in line {
                let shifted = x.f()[at] - top;
                entries[at] = self.round(if logarithm {
                    shifted - total.ln()
                } else {
                    shifted.exp() / total
                });
            }
        }
        Tensor::floats(&x.shape, entries)
    }

    fn slice(&self, x: &Tensor, starts: &[i64], ends: &[i64], axes: &[i64]) -> Tensor {
        let mut from = vec![0; x.shape.len()];
        let mut shape = x.shape.clone();
        for (at, &a) in axes.iter().enumerate() {
            let a = axis(a, x.shape.len());
            let size = x.shape[a] as i64;
            let clamp = |bound: i64| (if bound < 0 { bound + size } else { bound }).clamp(0, size);
            from[a] = clamp(starts[at]) as usize;
            shape[a] = (clamp(ends[at]) as usize).saturating_sub(from[a]);
        }
        let places = indices(&shape).into_iter().map(|index| {
            let source: Vec<usize> = index.iter().zip(&from).map(|(i, f)| i + f).collect();
            source
                .iter()
                .zip(&x.shape)
                .fold(0, |at, (i, size)| at * size + i)
        });
        gather(x, &shape, &places.collect::<Vec<_>>())
    }

    fn concat(&self, parts: &[&Tensor], along: i64) -> Tensor {
        let first = parts[0];
        if matches!(first.data, Data::Int(_)) {
            // Of vectors only.
            assert!(parts.iter().all(|p| p.shape.len() == 1));
            let entries: Vec<i64> = parts.iter().flat_map(|p| p.i().iter().copied()).collect();
            return Tensor::ints(&[entries.len()], entries);
        }
        let along = axis(along, first.shape.len());
        let mut shape = first.shape.clone();
        shape[along] = parts.iter().map(|p| p.shape[along]).sum();
        let mut entries = Vec::new();
        for outer in 0..shape[..along].iter().product() {
            for part in parts {
                let size: usize = part.shape[along..].iter().product();
                entries.extend_from_slice(&part.f()[outer * size..(outer + 1) * size]);
            }
        }
        Tensor::floats(&shape, entries)
    }

    fn pad(&self, x: &Tensor, pads: &[i64]) -> Tensor {
        let rank = x.shape.len();
        let shape: Vec<usize> = (0..rank)
            .map(|a| x.shape[a] + (pads[a] + pads[a + rank]) as usize)
            .collect();
        let entries = indices(&shape).into_iter().map(|index| {
            let source: Option<Vec<usize>> = (0..rank)
                .map(|a| {
                    index[a]
                        .checked_sub(pads[a] as usize)
                        .filter(|&i| i < x.shape[a])
                })
                .collect();
            source.map_or(0.0, |s| {
                x.f()[s
                    .iter()
                    .zip(&x.shape)
                    .fold(0, |at, (i, size)| at * size + i)]
            })
        });
        Tensor::floats(&shape, entries.collect())
    }

    /// One operator, by its definition.
    pub(super) fn operator(&self, node: &NodeProto, inputs: &[Option<&Tensor>]) -> Tensor {
        let x = || inputs[0].unwrap();
        let y = || inputs[1].unwrap();
        let given = |slot: usize| inputs.get(slot).copied().flatten();
        let axes = |slot: usize, rank: usize| -> Vec<usize> {
            let axes = match (given(slot), attribute(node, "axes")) {
                (Some(axes), _) => axes.i().to_vec(),
                (None, Some(axes)) => axes.ints.clone(),
                (None, None) => (0..rank as i64).collect(),
            };
            axes.iter().map(|&a| axis(a, rank)).collect()
        };
        match node.op_type() {
            "Add" | "Sum" => {
                let first = x().clone();
                inputs[1..].iter().fold(first, |sum, next| {
                    self.zip(&sum, next.unwrap(), |a, b| a + b, |a, b| a + b)
                })
            }
            "Sub" => self.zip(x(), y(), |a, b| a - b, |a, b| a - b),
            "Mul" => self.zip(x(), y(), |a, b| a * b, |a, b| a * b),
            "Div" => self.zip(x(), y(), |a, b| a / b, |a, b| a / b),
            "Mod" => self.zip(x(), y(), |a, b| a.rem_euclid(b), |a, b| a.rem_euclid(b)),
            "Less" => self.compare(x(), y(), |a, b| a < b),
            "LessOrEqual" => self.compare(x(), y(), |a, b| a <= b),
            "Greater" => self.compare(x(), y(), |a, b| a > b),
            "Neg" => self.map(x(), |e| -e),
            "Relu" => self.map(x(), |e| if e > 0.0 { e } else { 0.0 }),
            "Tanh" => self.map(x(), f64::tanh),
            "Sigmoid" => self.map(x(), |e| 1.0 / (1.0 + (-e).exp())),
            "Erf" => self.map(x(), erf),
            "Exp" => self.map(x(), f64::exp),
            "Sqrt" => self.map(x(), f64::sqrt),
            "Reciprocal" => self.map(x(), |e| 1.0 / e),
            "Clip" => {
                let (low, high) = (y().f()[0], given(2).unwrap().f()[0]);
                self.map(x(), |e| e.max(low).min(high))
            }
            "ReluGrad" => self.zip(x(), y(), |dy, y| if y > 0.0 { dy } else { 0.0 }, |_, _| 0),
            "Softmax" | "LogSoftmax" => {
                let along = axis(int(node, "axis", -1), x().shape.len());
                self.softmax(x(), along, node.op_type() == "LogSoftmax")
            }
            "Where" => {
                let shape = broadcast(&broadcast(&x().shape, &y().shape), &given(2).unwrap().shape);
                let (condition, then, otherwise) = (
                    expand(x(), &shape),
                    expand(y(), &shape),
                    expand(given(2).unwrap(), &shape),
                );
                let entries = condition.b().iter().enumerate();
                let entries =
                    entries.map(|(at, &c)| if c { then.f()[at] } else { otherwise.f()[at] });
                Tensor::floats(&shape, entries.collect())
            }
            "Cast" => cast(x(), int(node, "to", 1)),
            "MatMul" => self.matmul(x(), y()),
            "Gemm" | "FusedMatMul" => {
                let flip = |t: &Tensor, name: &str| match int(node, name, 0) {
                    0 => t.clone(),
                    _ => {
                        let rank = t.shape.len();
                        let mut perm: Vec<usize> = (0..rank).collect();
                        perm.swap(rank - 2, rank - 1);
                        transpose(t, &perm)
                    }
                };
                let product = self.matmul(&flip(x(), "transA"), &flip(y(), "transB"));
                let alpha = float(node, "alpha", 1.0);
                let product = self.map(&product, |e| alpha * e);
                match given(2) {
                    Some(c) => {
                        let beta = float(node, "beta", 1.0);
                        let c = self.map(c, |e| beta * e);
                        self.zip(&product, &c, |a, b| a + b, |a, b| a + b)
                    }
                    None => product,
                }
            }
            "Transpose" => {
                let rank = x().shape.len();
                let reversed = || (0..rank as i64).rev().collect();
                let perm: Vec<i64> =
                    attribute(node, "perm").map_or_else(reversed, |a| a.ints.clone());
                transpose(x(), &perm.iter().map(|&p| p as usize).collect::<Vec<_>>())
            }
            "Identity" => x().clone(),
            "Reshape" => {
                let count = x().shape.iter().product::<usize>();
                let mut shape: Vec<i64> = y().i().to_vec();
                for (at, size) in shape.iter_mut().enumerate() {
                    if *size == 0 {
                        *size = x().shape[at] as i64;
                    }
                }
                let known: i64 = shape.iter().filter(|&&s| s != -1).product();
                let rest = if known == 0 { 0 } else { count as i64 / known };
                view(
                    x(),
                    shape
                        .iter()
                        .map(|&s| if s == -1 { rest } else { s } as usize)
                        .collect(),
                )
            }
            "Flatten" => {
                let (head, tail) = x().shape.split_at(int(node, "axis", 1) as usize);
                view(x(), vec![head.iter().product(), tail.iter().product()])
            }
            "Squeeze" => {
                let axes = axes(1, x().shape.len());
                let kept = x()
                    .shape
                    .iter()
                    .enumerate()
                    .filter(|(a, _)| !axes.contains(a));
                view(x(), kept.map(|(_, &s)| s).collect())
            }
            "Unsqueeze" => {
                let rank = x().shape.len() + y().i().len();
                let mut axes = axes(1, rank);
                axes.sort();
                let mut shape = x().shape.clone();
                for axis in axes {
                    shape.insert(axis, 1);
                }
                view(x(), shape)
            }
            "ReduceSum" => self.reduce(
                x(),
                &axes(1, x().shape.len()),
                int(node, "keepdims", 1) != 0,
            ),
            "Shape" => Tensor::ints(
                &[x().shape.len()],
                x().shape.iter().map(|&s| s as i64).collect(),
            ),
            "Expand" => expand(
                x(),
                &y().i().iter().map(|&s| s as usize).collect::<Vec<_>>(),
            ),
            "Slice" => {
                let (starts, ends) = (y().i(), given(2).unwrap().i());
                let all: Vec<i64> = (0..starts.len() as i64).collect();
                self.slice(x(), starts, ends, given(3).map_or(&all, |a| a.i()))
            }
            "Concat" => {
                let parts: Vec<&Tensor> = inputs.iter().flatten().copied().collect();
                self.concat(&parts, int(node, "axis", 0))
            }
            "Pad" => self.pad(x(), y().i()),
            "Gather" => indexed::rows(x(), y()),
            "GatherElements" => indexed::elements(x(), y()),
            // Both with `reduction = add`.
            "ScatterElements" => {
                indexed::add_elements(x(), y(), given(2).unwrap(), |sum| self.round(sum))
            }
            "ScatterND" => indexed::add_rows(x(), y(), given(2).unwrap(), |sum| self.round(sum)),
            "ConstantOfShape" => {
                let shape: Vec<usize> = x().i().iter().map(|&s| s as usize).collect();
                let value = attribute(node, "value")
                    .and_then(|a| a.t.as_deref())
                    .map(constant);
                let value = value.unwrap_or_else(|| Tensor::floats(&[1], vec![0.0]));
                gather(&value, &shape, &vec![0; shape.iter().product()])
            }
            "Constant" => {
                let attribute = &node.attribute[0];
                match attribute.name() {
                    "value" => constant(attribute.t.as_deref().unwrap()),
                    "value_int" => Tensor::ints(&[], vec![attribute.i.unwrap()]),
                    "value_ints" => Tensor::ints(&[attribute.ints.len()], attribute.ints.clone()),
                    "value_float" => Tensor::floats(&[], vec![attribute.f.unwrap().into()]),
                    other => panic!("a constant by {other}"),
                }
            }
            other => panic!("the interpreter knows no {other}"),
        }
    }
}

fn cast(x: &Tensor, to: i64) -> Tensor {
    match (&x.data, to) {
        (Data::Bool(e), 1) => Tensor::floats(&x.shape, e.iter().map(|&e| e.into()).collect()),
        (Data::Int(e), 1) => {
            Tensor::floats(&x.shape, e.iter().map(|&e| f64::from(e as f32)).collect())
        }
        (Data::Float(e), 7) => Tensor::ints(&x.shape, e.iter().map(|&e| e as i64).collect()),
        (Data::Int(e), 9) => Tensor::bools(&x.shape, e.iter().map(|&e| e != 0).collect()),
        (Data::Bool(e), 7) => Tensor::ints(&x.shape, e.iter().map(|&e| e.into()).collect()),
        (Data::Int(e), 7) => Tensor::ints(&x.shape, e.to_vec()),
        (_, to) => panic!("a cast to {to}"),
    }
}
