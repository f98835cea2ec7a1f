//! What is trained in a graph, and the program that trains it.
//!
//! Three conventions become one: gradients that are outputs, gradients that ONNX Runtime's accumulators
//! keep in buffers, and graphs whose optimiser is inside, which hand out updated parameters. Afterwards
//! every trained parameter of a program has its gradient in the gradients' region
//! ([`Program::trained`]), and what the graph updates itself is written back over its input.

use crate::lower::{LowerError, Refusal, Request, lower};
use crate::ops::Op;
use crate::ops::accumulate::Accumulate;
use crate::ops::elementwise;
use crate::plan::Region;
use crate::program::{Factor, Operation, Program, Source, TensorId, Trained};
use crate::session::directions::MEASURE;
use crate::session::optimizer::{Optimizer, State};
use crate::tensor::TensorType;
use std::collections::BTreeSet;
use velora_graph::analysis::roles::Roles;
use velora_graph::ir::{Graph, Model, Node, ValueId};
use velora_graph::shapes::DataType;

/// What a training graph's inputs and outputs are to a session, by their positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The output that is the loss.
    pub loss: usize,
    /// The output called `logits`, where there is one.
    pub logits: Option<usize>,
    /// Parameters with a gradient.
    pub trained: Vec<Parameter>,
    /// Inputs that the graph updates itself, and the outputs with their new values: a graph with the
    /// optimiser inside has them in place of gradients.
    pub updated: Vec<(usize, usize)>,
    /// Inputs with a direction that moves from step to step, and the outputs with the next one.
    pub directions: Vec<(usize, usize)>,
    /// Outputs that measure activations, for directions that are still to be filled.
    pub measured: Vec<usize>,
    /// All other inputs: the batch, and parameters that are not trained.
    pub others: Vec<usize>,
}

/// A parameter with a gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The input that is the parameter.
    pub input: usize,
    /// The output that is the gradient, or the flag of its accumulator.
    pub output: usize,
    /// The input that is the accumulator's buffer.
    pub buffer: Option<usize>,
    /// Of a factored gradient: the output that is the direction, and how it cuts the parameter.
    pub factor: Option<Factored>,
}

/// How a gradient `dW = v ⊗ P` is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factored {
    /// The output that is v.
    pub direction: usize,
    /// G.
    pub groups: usize,
    /// Whether the parameter is [O, D] rather than [D, O].
    pub features_last: bool,
}

impl Signature {
    /// Reads the roles of a graph.
    pub fn new(graph: &Graph, roles: &Roles) -> Self {
        let input = |value: ValueId| {
            let value = graph.unpinned(value);
            graph.inputs().iter().position(|&v| v == value)
        };
        let output = |value: ValueId| graph.outputs().iter().position(|&v| v == value);
        let mut pairs = Vec::new();
        for &(parameter, gradient) in &roles.gradients {
            if let (Some(from), Some(to)) = (input(parameter), output(gradient)) {
                pairs.push((parameter, gradient, from, to));
            }
        }
        let inside = (pairs.iter()).any(|&(parameter, made, ..)| updates(graph, parameter, made));
        let mut signature = Signature {
            loss: output(roles.loss).unwrap_or(0),
            logits: { graph.outputs().iter() }.position(|&v| graph.value(v).name == "logits"),
            trained: Vec::new(),
            updated: Vec::new(),
            directions: Vec::new(),
            measured: Vec::new(),
            others: Vec::new(),
        };
        let mut taken = BTreeSet::new();
        for &(last, next) in &roles.directions {
            if let (Some(from), Some(to)) = (input(last), output(next)) {
                taken.insert(from);
                signature.directions.push((from, to));
            }
        }
        for (position, &value) in graph.outputs().iter().enumerate() {
            let made = graph.producer(value).map(|id| graph.node(id));
            if made.is_some_and(|node| node.velora_op() == Some(MEASURE)) {
                signature.measured.push(position);
            }
        }
        for (_, value, from, to) in pairs {
            let made = value;
            taken.insert(from);
            if inside {
                signature.updated.push((from, to));
                continue;
            }
            let accumulator = graph.producer(made).map(|id| graph.node(id));
            let accumulator = accumulator.filter(|node| accumulates(node));
            let read = |slot| {
                let node = accumulator?;
                input(node.inputs.get(slot).copied().flatten()?)
            };
            let buffer = read(0);
            taken.extend(buffer);
            // The flag that tells the accumulator to start anew.
            taken.extend(read(2));
            let factored = roles.factored.iter().find(|f| f.gradient == value);
            signature.trained.push(Parameter {
                input: from,
                output: to,
                buffer,
                factor: factored.and_then(|factored| {
                    Some(Factored {
                        direction: output(factored.direction)?,
                        groups: usize::try_from(factored.groups).ok()?,
                        features_last: factored.features_last,
                    })
                }),
            });
        }
        signature.others = (0..graph.inputs().len())
            .filter(|position| !taken.contains(position))
            .collect();
        signature
    }
}

fn accumulates(node: &Node) -> bool {
    node.domain() == "com.microsoft" && node.op() == "InPlaceAccumulatorV2"
}

/// Whether an output is a parameter plus or minus something, as an optimiser makes it: the parameter
/// itself, or its product with a number (weight decay), is an operand of the last sum.
fn updates(graph: &Graph, parameter: ValueId, output: ValueId) -> bool {
    let node_of = |value| {
        graph
            .producer(graph.unpinned(value))
            .map(|id| graph.node(id))
    };
    let mut last = node_of(output);
    while let Some(node) = last.filter(|n| matches!(n.op(), "Identity" | "Cast" | "Reshape")) {
        last = node.inputs.first().copied().flatten().and_then(node_of);
    }
    let Some(node) = last.filter(|n| n.domain().is_empty() && matches!(n.op(), "Add" | "Sub"))
    else {
        return false;
    };
    node.inputs.iter().flatten().any(|&operand| {
        let operand = graph.unpinned(operand);
        let decayed = node_of(operand).filter(|n| n.op() == "Mul");
        let factors = decayed.map_or(&[][..], |n| &n.inputs);
        let mut factors = factors.iter().flatten();
        operand == parameter || factors.any(|&f| graph.unpinned(f) == parameter)
    })
}

/// How gradients are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// Each step's gradients are written where the optimiser reads them.
    Fresh,
    /// Gradients of several steps are summed up; the flag [`Program::reset`] says when a sum
    /// starts anew.
    Summed,
}

/// What a program has places for beside parameters and gradients.
#[derive(Clone, Copy, Default)]
pub struct Keeps<'a> {
    /// The optimiser; without one nothing is kept.
    pub optimizer: Option<Optimizer>,
    /// By name, whether a parameter's gradient is to be compressed, where the optimiser does so; without it
    /// all of them are.
    pub project: Option<&'a dyn Fn(&str) -> bool>,
}

/// A program that trains, and what a session must know of it.
#[derive(Clone, Debug)]
pub struct Wired {
    /// The program.
    pub program: Program,
    /// The loss.
    pub loss: TensorId,
    /// The logits, where the graph gives them.
    pub logits: Option<TensorId>,
    /// What measures activations, last among the program's outputs.
    measured: Vec<TensorId>,
}

impl Wired {
    /// Leaves the measurements out.
    pub fn forget_measurements(&mut self) {
        let program = &mut self.program;
        program
            .outputs
            .truncate(program.outputs.len() - self.measured.len());
        if !self.measured.is_empty() {
            self.measured.clear();
            program.drop_dead();
            program.drop_unread_inputs();
        }
    }

    /// Leaves only the measurements to be computed.
    pub fn measure(&mut self) {
        self.program.outputs = self.measured.clone();
        self.forget_gradients();
    }

    /// Leaves only the loss and the logits to be computed. Gradients keep their places, so that the
    /// plan's parameters lie where those of a training plan do.
    pub fn forget_gradients(&mut self) {
        let program = &mut self.program;
        for number in 0..program.trained.len() {
            let ty = program.ty(program.trained[number].gradient).clone();
            let kept = Source::Kept(Region::Gradients);
            program.trained[number].gradient = program.add("gradient", ty, kept);
            program.trained[number].factor = None;
        }
        program.carried.clear();
        program.reset = None;
        program.drop_dead();
        program.drop_unread_inputs();
    }
}

/// Lowers a training graph.
///
/// `batch` are the positions of the inputs that come with every step; the rest of
/// [`Signature::others`] stays. `keeps` says what the optimiser keeps for parameters.
///
/// # Errors
/// [`LowerError`] where the graph cannot be executed.
pub fn wire(
    model: &Model,
    signature: &Signature,
    request: &Request<'_>,
    batch: &BTreeSet<usize>,
    gradients: Gradients,
    keeps: Keeps<'_>,
) -> Result<Wired, LowerError> {
    let mut program = lower(model, request)?;
    let graph = &model.graph;
    let at = |program: &Program, position: usize| program.inputs.get(position).copied().flatten();
    for &position in &signature.others {
        if !batch.contains(&position) {
            program.input_regions[position] = Region::Parameters;
        }
    }
    let outputs = std::mem::take(&mut program.outputs);
    let loss = outputs[signature.loss];
    let logits = signature.logits.map(|position| outputs[position]);
    let mut results = vec![loss];
    results.extend(logits.filter(|&l| l != loss));
    program.outputs = results;
    let measured = signature.measured.iter().map(|&position| outputs[position]);
    let measured: Vec<TensorId> = measured.collect();
    program.outputs.extend(&measured);
    for &(input, output) in &signature.directions {
        program.input_regions[input] = Region::Parameters;
        write_back(&mut program, graph, (input, output), &outputs)?;
    }
    let mut scratch = 0;
    for parameter in &signature.trained {
        program.input_regions[parameter.input] = Region::Parameters;
        let name = graph.value(graph.inputs()[parameter.input]).name.clone();
        let missing = |what: &str| LowerError::Value {
            name: name.clone(),
            refusal: Refusal(what.to_owned()),
        };
        let Some(weight) = at(&program, parameter.input) else {
            return Err(missing(
                "the parameter is trained, and no operation reads it",
            ));
        };
        // Of an accumulator, what it adds; its buffer is ours to give.
        let gradient = match parameter.buffer.and_then(|buffer| at(&program, buffer)) {
            Some(buffer) => {
                let place = program.operations.iter().position(|operation| {
                    matches!(operation.op, Op::Accumulate(_))
                        && operation.inputs.first() == Some(&Some(buffer))
                });
                let added = place.and_then(|place| {
                    let operation = program.operations.remove(place);
                    operation.inputs.get(1).copied().flatten()
                });
                added.ok_or_else(|| missing("its gradient's accumulator adds nothing"))?
            }
            None => outputs[parameter.output],
        };
        let ty = program.ty(weight).clone();
        if ty.data_type != DataType::FLOAT || program.ty(gradient).data_type != DataType::FLOAT {
            return Err(missing(&format!(
                "the parameter is {ty} and its gradient {}; the optimisers here train float ones",
                program.ty(gradient)
            )));
        }
        let factor = match &parameter.factor {
            Some(factored) => {
                let direction = outputs[factored.direction];
                let types = [&ty, program.ty(gradient), program.ty(direction)];
                let cut = factor(factored, direction, types);
                Some(cut.map_err(|problem| missing(&problem))?)
            }
            None if program.ty(gradient).elements() == ty.elements() => None,
            None => {
                return Err(missing(&format!(
                    "the gradient is {} and the parameter {ty}",
                    program.ty(gradient)
                )));
            }
        };
        let of_gradient = program.ty(gradient).clone();
        let gradient = match gradients {
            Gradients::Fresh => fresh(&mut program, gradient, &name),
            Gradients::Summed => {
                let flag = match program.reset {
                    Some(flag) => flag,
                    None => {
                        let ty = TensorType::new(DataType::BOOL, [1]);
                        program.add("reset", ty, Source::Kept(Region::Inputs))
                    }
                };
                program.reset = Some(flag);
                summed(&mut program, gradient, flag, &name)
            }
        };
        // A gradient may have its elements in another shape; what is compressed is the matrix.
        let shape = match keeps.optimizer.and_then(|o| o.rank()) {
            Some(_) => &ty.shape,
            None => &of_gradient.shape,
        };
        let wanted = keeps.project.is_none_or(|project| project(&name));
        let projected = wanted && keeps.optimizer.is_some_and(|o| o.projects(shape));
        let layout = keeps.optimizer.map(|o| o.layout(shape, projected));
        let state = (layout.into_iter().flatten().enumerate())
            .map(|(number, State { shape, .. })| {
                let name = format!("{name}/state{number}");
                let ty = TensorType::new(DataType::FLOAT, shape);
                program.add(name, ty, Source::Kept(Region::Optimizer))
            })
            .collect();
        let needs = keeps.optimizer.map_or(0, |o| o.scratch(shape, projected));
        scratch = scratch.max(needs);
        program.trained.push(Trained {
            parameter: weight,
            gradient,
            state,
            projected,
            factor,
        });
    }
    if scratch > 0 {
        let ty = TensorType::new(DataType::FLOAT, [scratch]);
        let source = Source::Kept(Region::Optimizer);
        program.scratch = Some(program.add("optimizer/scratch", ty, source));
    }
    carry(&mut program, graph, signature, &outputs)?;
    program.drop_dead();
    program.drop_unread_inputs();
    Ok(Wired {
        program,
        loss,
        logits,
        measured,
    })
}

/// How a direction cuts a parameter; `types` are those of the parameter, P and the direction.
fn factor(
    factored: &Factored,
    direction: TensorId,
    types: [&TensorType; 3],
) -> Result<Factor<TensorId>, String> {
    let [weight, factors, v] = types;
    let fits = |features: usize, outputs: usize| {
        let size = features.div_ceil(factored.groups.max(1));
        let own = factored.groups.checked_mul(size)?;
        let expected = match factored.features_last {
            true => [outputs, factored.groups],
            false => [factored.groups, outputs],
        };
        let valid = factored.groups > 0
            && factors.shape == expected
            && v.data_type == DataType::FLOAT
            && (v.elements() == size || v.elements() == own);
        valid.then_some(Factor {
            direction,
            groups: factored.groups,
            features,
            outputs,
            features_last: factored.features_last,
        })
    };
    let cut = match (weight.shape.as_slice(), factored.features_last) {
        (&[outputs, features], true) | (&[features, outputs], false) => fits(features, outputs),
        _ => None,
    };
    cut.ok_or_else(|| {
        format!(
            "its gradient is factored as {factors} and {v} in {} groups, and the parameter {weight}",
            factored.groups
        )
    })
}

/// A gradient with bytes of its own, which live in the gradients' region.
fn fresh(program: &mut Program, gradient: TensorId, parameter: &str) -> TensorId {
    let root = program.root(gradient);
    let own = matches!(program.value(root).source, Source::Computed)
        && program.ty(root).elements() == program.ty(gradient).elements()
        && !program
            .trained
            .iter()
            .any(|t| program.root(t.gradient) == root);
    if own {
        return gradient;
    }
    let name = format!("{parameter}/gradient");
    let ty = program.ty(gradient).clone();
    let to = program.add(name, ty, Source::Computed);
    copy(program, gradient, to, parameter);
    to
}

/// The sum of gradients over several steps, in a buffer that stays.
fn summed(program: &mut Program, gradient: TensorId, flag: TensorId, parameter: &str) -> TensorId {
    let ty = program.ty(gradient).clone();
    let name = format!("{parameter}/gradient");
    let buffer = program.add(name.clone(), ty.clone(), Source::Kept(Region::Gradients));
    let sum = program.add(name, ty, Source::Update(buffer));
    program.operations.push(Operation {
        op: Op::Accumulate(Accumulate::Overwrite),
        inputs: vec![Some(buffer), Some(gradient), Some(flag)],
        outputs: vec![Some(sum)],
        node: parameter.to_owned(),
        backward: true,
    });
    sum
}

/// Writes what the graph updates back over its inputs.
fn carry(
    program: &mut Program,
    graph: &Graph,
    signature: &Signature,
    outputs: &[TensorId],
) -> Result<(), LowerError> {
    // The parameters are what the forward half reads; the rest is the optimiser's state.
    let mut forward = vec![false; program.values.len()];
    for operation in program.operations.iter().filter(|o| !o.backward) {
        for &id in operation.inputs.iter().flatten() {
            forward[program.root(id).index()] = true;
        }
    }
    for &(input, output) in &signature.updated {
        let Some(into) = program.inputs[input] else {
            continue;
        };
        program.input_regions[input] = match forward.get(into.index()) {
            Some(true) => Region::Parameters,
            _ => Region::Optimizer,
        };
        write_back(program, graph, (input, output), outputs)?;
    }
    Ok(())
}

/// Writes an output over the input whose next value it is.
fn write_back(
    program: &mut Program,
    graph: &Graph,
    (input, output): (usize, usize),
    outputs: &[TensorId],
) -> Result<(), LowerError> {
    let Some(into) = program.inputs[input] else {
        return Ok(());
    };
    let (from, name) = (
        outputs[output],
        graph.value(graph.inputs()[input]).name.clone(),
    );
    let (old, new) = (program.ty(into).clone(), program.ty(from).clone());
    if old != new {
        return Err(LowerError::Value {
            name,
            refusal: Refusal(format!("the graph updates {old} with {new}")),
        });
    }
    let to = program.add(name.clone(), old, Source::Update(into));
    copy(program, from, to, &name);
    program.carried.push(to);
    Ok(())
}

fn copy(program: &mut Program, from: TensorId, to: TensorId, node: &str) {
    let op = Op::Elementwise(elementwise::copy(program.ty(from)));
    program.operations.push(Operation {
        op,
        inputs: vec![Some(from)],
        outputs: vec![Some(to)],
        node: node.to_owned(),
        backward: true,
    });
}
