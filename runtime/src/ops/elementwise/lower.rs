//! From operators to expressions.

use super::draft::{Draft, computed};
use super::gradients;
use super::{Binary, Class, Comparison, Register, Unary};
use crate::lower::{Lowering, Refusal};
use crate::ops::Family;
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Abs"),
        ("", "Acos"),
        ("", "Acosh"),
        ("", "Add"),
        ("", "And"),
        ("", "Asin"),
        ("", "Asinh"),
        ("", "Atan"),
        ("", "Atanh"),
        ("", "BitShift"),
        ("", "BitwiseAnd"),
        ("", "BitwiseNot"),
        ("", "BitwiseOr"),
        ("", "BitwiseXor"),
        ("", "Cast"),
        ("", "CastLike"),
        ("", "Ceil"),
        ("", "Celu"),
        ("", "Clip"),
        ("", "Cos"),
        ("", "Cosh"),
        ("", "Div"),
        ("", "Elu"),
        ("", "Equal"),
        ("", "Erf"),
        ("", "Exp"),
        ("", "Expand"),
        ("", "Floor"),
        ("", "Gelu"),
        ("", "Greater"),
        ("", "GreaterOrEqual"),
        ("", "HardSigmoid"),
        ("", "HardSwish"),
        ("", "IsInf"),
        ("", "IsNaN"),
        ("", "LeakyRelu"),
        ("", "Less"),
        ("", "LessOrEqual"),
        ("", "Log"),
        ("", "Max"),
        ("", "Mean"),
        ("", "Min"),
        ("", "Mish"),
        ("", "Mod"),
        ("", "Mul"),
        ("", "Neg"),
        ("", "Not"),
        ("", "Or"),
        ("", "PRelu"),
        ("", "Pow"),
        ("", "Reciprocal"),
        ("", "Relu"),
        ("", "Round"),
        ("", "Selu"),
        ("", "Shrink"),
        ("", "Sigmoid"),
        ("", "Sign"),
        ("", "Sin"),
        ("", "Sinh"),
        ("", "Softplus"),
        ("", "Softsign"),
        ("", "Sqrt"),
        ("", "Sub"),
        ("", "Sum"),
        ("", "Swish"),
        ("", "Tan"),
        ("", "Tanh"),
        ("", "ThresholdedRelu"),
        ("", "Where"),
        ("", "Xor"),
        ("com.microsoft", "BiasAdd"),
        ("com.microsoft", "BiasFastGelu"),
        ("com.microsoft", "BiasFastGeluGrad_dX"),
        ("com.microsoft", "BiasGelu"),
        ("com.microsoft", "BiasGeluGrad_dX"),
        ("com.microsoft", "FastGelu"),
        ("com.microsoft", "FastGeluGrad"),
        ("com.microsoft", "Gelu"),
        ("com.microsoft", "GeluGrad"),
        ("com.microsoft", "QuickGelu"),
        ("com.microsoft", "QuickGeluGrad"),
        ("com.microsoft", "ReluGrad"),
        ("com.microsoft", "Scale"),
        ("com.microsoft", "SigmoidGrad"),
        ("com.microsoft", "TanhGrad"),
    ],
    lower,
};

/// The most operands of a variadic operator that go into one expression.
const GROUP: usize = 16;

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    if node.int("broadcast", 0) != 0 && node.attribute("axis").is_some() {
        return Err(Refusal::new(
            "attribute 'axis' of operator sets before 7: expected broadcasting from the right",
        ));
    }
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    match node.op() {
        "Cast" | "CastLike" | "Expand" => copy(lowering, node, output, &ty),
        "Sum" | "Mean" | "Max" | "Min" => variadic(lowering, node, output, &ty),
        _ => {
            let mut draft = Draft::new(ty.shape.clone());
            let mut operands = Vec::new();
            for slot in 0..node.inputs.len() {
                let tensor = lowering.optional_input(node, slot)?;
                operands.push(match tensor {
                    Some(tensor) => Some(draft.load(lowering, tensor)?),
                    None => None,
                });
            }
            let value = compute(node, &mut draft, &Operands(operands), &ty)?;
            draft.emit(lowering, &[(value, output)])
        }
    }
}

/// Casts and expansions; a view where neither type nor number of elements changes.
fn copy(
    lowering: &mut Lowering<'_>,
    node: &Node,
    output: TensorId,
    ty: &TensorType,
) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let from = lowering.ty(source);
    if from.data_type == ty.data_type && from.elements() == ty.elements() {
        return lowering.view(node, 0, source);
    }
    let mut draft = Draft::new(ty.shape.clone());
    let value = draft.load(lowering, source)?;
    draft.emit(lowering, &[(value, output)])
}

/// Operators of any number of operands, in groups where there are many.
fn variadic(
    lowering: &mut Lowering<'_>,
    node: &Node,
    output: TensorId,
    ty: &TensorType,
) -> Result<(), Refusal> {
    let binary = match node.op() {
        "Max" => Binary::Max,
        "Min" => Binary::Min,
        _ => Binary::Add,
    };
    let count = node.inputs.len();
    if count == 0 {
        return Err(Refusal::new("no operands: expected at least one"));
    }
    // Between groups the sum keeps the width that it is computed in.
    let wide = TensorType::new(computed(ty.data_type), ty.shape.clone());
    let mut sum: Option<TensorId> = None;
    for first in (0..count).step_by(GROUP) {
        let last = (first + GROUP).min(count);
        let mut draft = Draft::new(ty.shape.clone());
        let mut value = match sum {
            Some(sum) => Some(draft.load(lowering, sum)?),
            None => None,
        };
        for slot in first..last {
            let tensor = lowering.input(node, slot)?;
            let operand = draft.load(lowering, tensor)?;
            let operand = draft.widen(operand);
            value = Some(match value {
                Some(value) => draft.binary(binary, value, operand),
                None => operand,
            });
        }
        let Some(mut value) = value else { break };
        if last == count {
            if node.op() == "Mean" && count > 1 {
                let count = draft.number(draft.ty(value), count as f64);
                value = draft.binary(Binary::Div, value, count);
            }
            return draft.emit(lowering, &[(value, output)]);
        }
        let partial = lowering.temporary("partial", wide.clone());
        draft.emit(lowering, &[(value, partial)])?;
        sum = Some(partial);
    }
    Ok(())
}

/// The operands of a node as values.
pub(super) struct Operands(Vec<Option<Register>>);

impl Operands {
    /// An operand that may be absent.
    pub(super) fn optional(&self, slot: usize) -> Option<Register> {
        self.0.get(slot).copied().flatten()
    }

    /// An operand as it is.
    pub(super) fn plain(&self, slot: usize) -> Result<Register, Refusal> {
        self.optional(slot)
            .ok_or_else(|| Refusal(format!("input {slot} is missing")))
    }

    /// An operand in the width that is computed in.
    pub(super) fn wide(&self, draft: &mut Draft, slot: usize) -> Result<Register, Refusal> {
        Ok(draft.widen(self.plain(slot)?))
    }
}

fn compute(
    node: &Node,
    draft: &mut Draft,
    operands: &Operands,
    ty: &TensorType,
) -> Result<Register, Refusal> {
    if node.domain() == "com.microsoft" {
        return gradients::compute(node, draft, operands);
    }
    if let Some(unary) = simple(node.op()) {
        let x = operands.wide(draft, 0)?;
        check_float(node.op(), unary, draft.ty(x))?;
        return Ok(draft.unary(unary, x));
    }
    if let Some(value) = pair(node, draft, operands, ty)? {
        return Ok(value);
    }
    activation(node, draft, operands)
}

/// Operators that are one function of one number.
fn simple(op: &str) -> Option<Unary> {
    Some(match op {
        "Abs" => Unary::Abs,
        "Acos" => Unary::Acos,
        "Acosh" => Unary::Acosh,
        "Asin" => Unary::Asin,
        "Asinh" => Unary::Asinh,
        "Atan" => Unary::Atan,
        "Atanh" => Unary::Atanh,
        "BitwiseNot" | "Not" => Unary::Not,
        "Ceil" => Unary::Ceil,
        "Cos" => Unary::Cos,
        "Cosh" => Unary::Cosh,
        "Erf" => Unary::Erf,
        "Exp" => Unary::Exp,
        "Floor" => Unary::Floor,
        "IsNaN" => Unary::IsNan,
        "Log" => Unary::Log,
        "Neg" => Unary::Neg,
        "Reciprocal" => Unary::Reciprocal,
        "Round" => Unary::Round,
        "Sigmoid" => Unary::Sigmoid,
        "Sign" => Unary::Sign,
        "Sin" => Unary::Sin,
        "Sinh" => Unary::Sinh,
        "Softplus" => Unary::Softplus,
        "Sqrt" => Unary::Sqrt,
        "Tan" => Unary::Tan,
        "Tanh" => Unary::Tanh,
        _ => return None,
    })
}

fn check_float(op: &str, unary: Unary, ty: DataType) -> Result<(), Refusal> {
    let integers = matches!(unary, Unary::Abs | Unary::Neg | Unary::Sign | Unary::Not);
    let floats = unary != Unary::Not;
    let fits = match Class::of(ty) {
        Some(Class::F32 | Class::F64) => floats,
        Some(Class::I64 | Class::U64) => integers,
        Some(Class::Bool) => unary == Unary::Not,
        None => false,
    };
    if fits {
        return Ok(());
    }
    Err(Refusal(format!(
        "{op} of elements of type {}: the operator does not take them",
        ty.0
    )))
}

/// Operators of two or three operands.
fn pair(
    node: &Node,
    draft: &mut Draft,
    operands: &Operands,
    ty: &TensorType,
) -> Result<Option<Register>, Refusal> {
    let binary = match node.op() {
        "Add" => Binary::Add,
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Div" => Binary::Div,
        "And" | "BitwiseAnd" => Binary::And,
        "Or" | "BitwiseOr" => Binary::Or,
        "Xor" | "BitwiseXor" => Binary::Xor,
        "Mod" if node.int("fmod", 0) != 0 => Binary::Rem,
        "Mod" => Binary::Mod,
        "BitShift" => match text(node, "direction", "") {
            "LEFT" => Binary::ShiftLeft,
            "RIGHT" => Binary::ShiftRight,
            other => {
                return Err(Refusal(format!(
                    "attribute 'direction' is '{other}': expected LEFT or RIGHT"
                )));
            }
        },
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            let (a, b) = (operands.wide(draft, 0)?, operands.wide(draft, 1)?);
            same_class(draft, a, b)?;
            return Ok(Some(match node.op() {
                "Equal" => draft.compare(Comparison::Equal, a, b),
                "Less" => draft.compare(Comparison::Less, a, b),
                "LessOrEqual" => draft.compare(Comparison::LessOrEqual, a, b),
                "Greater" => draft.compare(Comparison::Less, b, a),
                _ => draft.compare(Comparison::LessOrEqual, b, a),
            }));
        }
        "Where" => {
            let condition = operands.plain(0)?;
            let (a, b) = (operands.plain(1)?, operands.plain(2)?);
            if draft.ty(condition) != DataType::BOOL || draft.ty(a) != draft.ty(b) {
                return Err(Refusal::new(
                    "expected booleans first, and two operands of one type",
                ));
            }
            return Ok(Some(draft.select(condition, a, b)));
        }
        "Pow" => return power(draft, operands, ty).map(Some),
        _ => return Ok(None),
    };
    let (a, b) = (operands.wide(draft, 0)?, operands.wide(draft, 1)?);
    same_class(draft, a, b)?;
    let class = Class::of(draft.ty(a));
    let bits = matches!(
        binary,
        Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight
    );
    let logical = matches!(binary, Binary::And | Binary::Or | Binary::Xor);
    let fits = match class {
        Some(Class::Bool) => logical,
        Some(Class::F32 | Class::F64) => !bits,
        _ => true,
    };
    if !fits {
        return Err(Refusal(format!(
            "elements of type {}: the operator does not take them",
            draft.ty(a).0
        )));
    }
    Ok(Some(draft.binary(binary, a, b)))
}

fn same_class(draft: &Draft, a: Register, b: Register) -> Result<(), Refusal> {
    let (a, b) = (draft.ty(a), draft.ty(b));
    if a == b {
        return Ok(());
    }
    Err(Refusal(format!(
        "operands of types {} and {}: expected one type",
        a.0, b.0
    )))
}

/// Powers. Constant exponents that are common are products, roots or quotients.
fn power(draft: &mut Draft, operands: &Operands, ty: &TensorType) -> Result<Register, Refusal> {
    let x = operands.wide(draft, 0)?;
    let y = operands.wide(draft, 1)?;
    let floats = |ty| matches!(Class::of(ty), Some(Class::F32 | Class::F64));
    if !floats(draft.ty(x)) && floats(draft.ty(y)) {
        // Integers to a real power: computed as real numbers.
        let x = draft.convert(x, DataType::DOUBLE);
        let y = draft.convert(y, DataType::DOUBLE);
        let power = draft.binary(Binary::Pow, x, y);
        return Ok(draft.convert(power, ty.data_type));
    }
    let exponent = draft.immediate(y).and_then(|bits| {
        Some(match Class::of(draft.ty(y))? {
            Class::F32 => f64::from(f32::from_bits(bits as u32)),
            Class::F64 => f64::from_bits(bits),
            Class::I64 | Class::U64 => bits as i64 as f64,
            Class::Bool => return None,
        })
    });
    let real = floats(draft.ty(x));
    if exponent == Some(1.0) {
        return Ok(x);
    } else if exponent == Some(2.0) {
        return Ok(draft.mul(x, x));
    } else if exponent == Some(3.0) {
        let square = draft.mul(x, x);
        return Ok(draft.mul(square, x));
    } else if exponent == Some(-1.0) && real {
        return Ok(draft.unary(Unary::Reciprocal, x));
    } else if exponent == Some(0.5) && real {
        // Unlike the root, the power of -0 is 0 and that of -∞ is ∞.
        let root = draft.unary(Unary::Sqrt, x);
        let root = draft.plus(root, 0.0);
        let least = draft.number(draft.ty(x), f64::NEG_INFINITY);
        let most = draft.number(draft.ty(x), f64::INFINITY);
        let lowest = draft.compare(Comparison::Equal, x, least);
        return Ok(draft.select(lowest, most, root));
    }
    let y = draft.convert(y, draft.ty(x));
    Ok(draft.binary(Binary::Pow, x, y))
}

/// Operators that are several instructions.
fn activation(node: &Node, draft: &mut Draft, operands: &Operands) -> Result<Register, Refusal> {
    let x = operands.wide(draft, 0)?;
    let ty = draft.ty(x);
    let class = Class::of(ty);
    let attribute = |name, default: f32| f64::from(node.float(name, default));
    let real = matches!(class, Some(Class::F32 | Class::F64));
    if !real && !matches!(node.op(), "Relu" | "Clip" | "PRelu") {
        return Err(Refusal(format!(
            "{} of elements of type {}: expected floating-point numbers",
            node.op(),
            ty.0
        )));
    }
    let zero = draft.number(ty, 0.0);
    Ok(match node.op() {
        "Relu" => draft.binary(Binary::Max, x, zero),
        "Clip" => {
            let mut value = x;
            for (slot, name, binary) in [(1, "min", Binary::Max), (2, "max", Binary::Min)] {
                let bound = match (operands.optional(slot), node.attribute(name)) {
                    (Some(bound), _) => draft.widen(bound),
                    (None, Some(attribute)) => {
                        draft.number(ty, f64::from(attribute.f.unwrap_or(0.0)))
                    }
                    (None, None) => continue,
                };
                value = draft.binary(binary, value, bound);
            }
            value
        }
        "LeakyRelu" => {
            let scaled = draft.times(x, attribute("alpha", 0.01));
            negative(draft, x, scaled)
        }
        "PRelu" => {
            let slope = operands.wide(draft, 1)?;
            let scaled = draft.mul(x, slope);
            negative(draft, x, scaled)
        }
        "ThresholdedRelu" => {
            let alpha = draft.number(ty, attribute("alpha", 1.0));
            let above = draft.compare(Comparison::Less, alpha, x);
            draft.select(above, x, zero)
        }
        "Elu" => {
            let value = exponential_minus_one(draft, x, 1.0);
            let value = draft.times(value, attribute("alpha", 1.0));
            negative(draft, x, value)
        }
        "Celu" => {
            let alpha = attribute("alpha", 1.0);
            let value = exponential_minus_one(draft, x, alpha);
            let value = draft.times(value, alpha);
            negative(draft, x, value)
        }
        "Selu" => {
            // The defaults of the operator, in 32 bits.
            let alpha = attribute("alpha", 1.673_263_2);
            let gamma = attribute("gamma", 1.050_701);
            let value = exponential_minus_one(draft, x, 1.0);
            let value = draft.times(value, alpha);
            let value = negative(draft, x, value);
            draft.times(value, gamma)
        }
        "Shrink" => {
            let bias = attribute("bias", 0.0);
            let lambda = attribute("lambd", 0.5);
            let (low, high) = (draft.number(ty, -lambda), draft.number(ty, lambda));
            let (up, down) = (draft.plus(x, bias), draft.plus(x, -bias));
            let below = draft.compare(Comparison::Less, x, low);
            let above = draft.compare(Comparison::Less, high, x);
            let value = draft.select(above, down, zero);
            draft.select(below, up, value)
        }
        "Softsign" => {
            let size = draft.unary(Unary::Abs, x);
            let size = draft.plus(size, 1.0);
            draft.binary(Binary::Div, x, size)
        }
        "HardSigmoid" => hard_sigmoid(draft, x, attribute("alpha", 0.2), attribute("beta", 0.5)),
        "HardSwish" => {
            let gate = hard_sigmoid(draft, x, 1.0 / 6.0, 0.5);
            draft.mul(x, gate)
        }
        "Swish" => {
            let scaled = draft.times(x, attribute("alpha", 1.0));
            let gate = draft.unary(Unary::Sigmoid, scaled);
            draft.mul(x, gate)
        }
        "Mish" => {
            let soft = draft.unary(Unary::Softplus, x);
            let gate = draft.unary(Unary::Tanh, soft);
            draft.mul(x, gate)
        }
        "Gelu" if text(node, "approximate", "none") == "tanh" => gradients::fast_gelu(draft, x),
        "Gelu" => gradients::gelu(draft, x),
        "IsInf" => {
            let positive = draft.number(ty, f64::INFINITY);
            let value = match (
                node.int("detect_negative", 1) != 0,
                node.int("detect_positive", 1) != 0,
            ) {
                (true, true) => draft.unary(Unary::Abs, x),
                (true, false) => draft.unary(Unary::Neg, x),
                (false, true) => x,
                (false, false) => zero,
            };
            draft.compare(Comparison::Equal, value, positive)
        }
        op => return Err(Refusal(format!("{op} has no lowering"))),
    })
}

/// `value` where x is negative, and else x.
fn negative(draft: &mut Draft, x: Register, value: Register) -> Register {
    let zero = draft.number(draft.ty(x), 0.0);
    let below = draft.compare(Comparison::Less, x, zero);
    draft.select(below, value, x)
}

/// `exp(x / alpha) - 1`.
fn exponential_minus_one(draft: &mut Draft, x: Register, alpha: f64) -> Register {
    let mut scaled = x;
    if alpha != 1.0 {
        let alpha = draft.number(draft.ty(x), alpha);
        scaled = draft.binary(Binary::Div, x, alpha);
    }
    let power = draft.unary(Unary::Exp, scaled);
    draft.plus(power, -1.0)
}

/// `max(0, min(1, alpha x + beta))`.
fn hard_sigmoid(draft: &mut Draft, x: Register, alpha: f64, beta: f64) -> Register {
    let ty = draft.ty(x);
    let (zero, one) = (draft.number(ty, 0.0), draft.number(ty, 1.0));
    let value = draft.times(x, alpha);
    let value = draft.plus(value, beta);
    let value = draft.binary(Binary::Min, value, one);
    draft.binary(Binary::Max, value, zero)
}

/// A text attribute, or the operator's default.
fn text<'n>(node: &'n Node, name: &str, default: &'n str) -> &'n str {
    (node.attribute(name))
        .and_then(|attribute| attribute.s.as_deref())
        .map_or(default, |bytes| std::str::from_utf8(bytes).unwrap_or(""))
}
