//! The walk over a graph, and the merging of what rules say with what the file declares.

use super::call::{Call, list};
use super::control;
use super::error::{ShapeError, ShapeErrors};
use super::fact::{Fact, MAX_DIM_SIZE, MAX_RANK, unknown};
use super::rules::{self, Fault};
use super::types::Declarations;
use super::{Context, Shapes, ValueType};
use crate::dim::Dim;
use crate::ir::{Graph, Node, NodeId, Origin, ValueId};
use crate::onnx::schema::{FunctionProto, OperatorSetIdProto};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Nodes of nested graphs and functions that are looked at in one inference, in a graph of any size and
/// for each node of it. Functions that call each other can unfold without end; what lies beyond stays
/// unknown.
const BODIES_OF_ANY: usize = 1 << 18;
const BODIES_OF_A_NODE: usize = 16;
/// Contradictions that are kept. Each body that unfolds may repeat them.
const MAX_ERRORS: usize = 1000;
/// The version taken where a model names none.
const NEWEST_OPSET: i64 = 26;

/// What holds for the graph and everything nested in it.
pub(super) struct World<'a> {
    pub functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    sizes: BTreeMap<Arc<str>, Dim>,
    /// Symbols of the outermost graph's inputs.
    given: RefCell<BTreeSet<Arc<str>>>,
    /// Symbols made up here.
    own: RefCell<HashSet<String>>,
    unknown_ops: RefCell<BTreeSet<(String, String)>>,
    pub budget: Cell<usize>,
}

/// Infers the types of all values of a graph, in time near-linear in its size.
///
/// # Errors
/// Every contradiction: between two operands, between an operator and its operands, between what
/// inference finds and what the file declares, and sizes below 1 in the context.
pub fn infer(graph: &Graph, context: &Context<'_>) -> Result<Shapes, ShapeErrors> {
    let mut errors = match inferred(graph, context) {
        Ok(shapes) => return Ok(shapes),
        Err(errors) => errors,
    };
    let nothing = BTreeMap::new();
    let symbolic = Context {
        sizes: &nothing,
        ..*context
    };
    if !context.sizes.is_empty() && inferred(graph, &symbolic).is_ok() {
        for error in &mut errors.0 {
            error.hint = "without the sizes given there is no contradiction: check --dim";
        }
    }
    Err(errors)
}

fn inferred(graph: &Graph, context: &Context<'_>) -> Result<Shapes, ShapeErrors> {
    let world = World {
        functions: (context.functions.iter())
            .map(|f| {
                let name = f.name.as_deref().unwrap_or_default();
                let overload = f.overload.as_deref().unwrap_or_default();
                ((domain_of(f.domain.as_deref()), name, overload), f)
            })
            .collect(),
        sizes: (context.sizes.iter())
            .map(|(name, &size)| (name.clone(), Dim::from(size)))
            .collect(),
        given: RefCell::default(),
        own: RefCell::default(),
        unknown_ops: RefCell::default(),
        budget: Cell::new(
            (graph.node_count().saturating_mul(BODIES_OF_A_NODE)).saturating_add(BODIES_OF_ANY),
        ),
    };
    let small = context.sizes.iter().filter(|(_, size)| **size < 1);
    let mut errors: Vec<ShapeError> = small
        .map(|(name, size)| ShapeError {
            node: String::new(),
            op: String::new(),
            tensor: reader_of(graph, name),
            found: format!("the size '{name}' is given as {size}"),
            other: "a size is at least 1".to_owned(),
            hint: "check --dim",
        })
        .collect();
    let walk = Walk {
        graph,
        world: &world,
        opset: standard_version(context.opsets).unwrap_or(NEWEST_OPSET),
        path: "",
        depth: 0,
    };
    let facts = walk.run(HashMap::new(), &mut errors);
    if !errors.is_empty() {
        return Err(ShapeErrors(errors));
    }
    let (types, contents) = (facts.into_iter())
        .map(|fact| {
            let Fact {
                data_type,
                shape,
                contents,
            } = fact;
            (ValueType { data_type, shape }, contents)
        })
        .unzip();
    Ok(Shapes {
        types,
        contents,
        unknown_ops: world.unknown_ops.into_inner(),
    })
}

/// Keeps a contradiction, unless there are many already.
pub(super) fn keep(errors: &mut Vec<ShapeError>, error: ShapeError) {
    if errors.len() < MAX_ERRORS {
        errors.push(error);
    }
}

fn domain_of(domain: Option<&str>) -> &str {
    match domain.unwrap_or_default() {
        "ai.onnx" => "",
        domain => domain,
    }
}

pub(super) fn standard_version(opsets: &[OperatorSetIdProto]) -> Option<i64> {
    let standard = opsets
        .iter()
        .find(|o| domain_of(o.domain.as_deref()).is_empty());
    standard.and_then(|o| o.version)
}

/// The first input that names a symbol, for messages.
fn reader_of(graph: &Graph, symbol: &str) -> String {
    let none = BTreeMap::new();
    let mut declarations = Declarations::new(&none);
    let names = |shape: &Vec<Dim>| shape.iter().any(|d| d.symbols().contains(symbol));
    let mut infos = graph.input_infos().iter();
    let found = infos.find(|i| declarations.read(i).shape.as_ref().is_some_and(names));
    found.map_or_else(String::new, |i| i.name().to_owned())
}

/// One graph: the model's, or one nested in it.
pub(super) struct Walk<'a> {
    pub graph: &'a Graph,
    pub world: &'a World<'a>,
    pub opset: i64,
    /// Labels of the nodes around, each followed by a slash.
    pub path: &'a str,
    pub depth: usize,
}

impl Walk<'_> {
    /// Facts about all values; `known` holds those that the surroundings tell of inputs.
    pub fn run(
        &self,
        mut known: HashMap<ValueId, Fact>,
        errors: &mut Vec<ShapeError>,
    ) -> Vec<Fact> {
        let mut facts = self.declared(errors);
        for &input in self.graph.inputs() {
            if let Some(fact) = known.remove(&input) {
                let here = std::mem::take(&mut facts[input.index()]);
                facts[input.index()] = self.settle(input, fact, here, None, errors);
            }
        }
        self.constants(&mut facts, errors);
        let inputs = self.graph.inputs().iter();
        for &value in inputs {
            self.name_sizes(value, &mut facts[value.index()]);
        }
        if self.depth == 0 {
            let inputs = self.graph.inputs().iter();
            let shapes = inputs.filter_map(|v| facts[v.index()].shape.as_ref());
            let symbols = shapes.flatten().flat_map(Dim::symbols).collect();
            self.world.given.replace(symbols);
        }
        let order = self.graph.topological_order();
        let order = order.unwrap_or_else(|_| self.graph.order().to_vec());
        for id in order {
            let outputs = self.node(id, &facts, errors);
            let slots = self.graph.node(id).outputs.iter();
            for (value, inferred) in slots.zip(outputs) {
                if let Some(value) = *value {
                    let declared = std::mem::take(&mut facts[value.index()]);
                    facts[value.index()] = self.settle(value, inferred, declared, Some(id), errors);
                }
            }
        }
        facts
    }

    /// What the file says of every value; unknown sizes are undefined.
    fn declared(&self, errors: &mut Vec<ShapeError>) -> Vec<Fact> {
        let graph = self.graph;
        let mut facts = vec![Fact::default(); graph.value_count()];
        let by_name: HashMap<&str, ValueId> = (graph.values())
            .map(|v| (graph.value(v).name.as_str(), v))
            .collect();
        let mut declarations = Declarations::new(&self.world.sizes);
        let infos = graph.input_infos().iter().chain(graph.output_infos());
        for info in infos.chain(graph.value_infos()) {
            let Some(&value) = by_name.get(info.name()) else {
                continue;
            };
            let found = declarations.read(info);
            let shape = found.shape.filter(|s| s.len() <= MAX_RANK);
            let fact = Fact::new(found.data_type, shape);
            let so_far = std::mem::take(&mut facts[value.index()]);
            facts[value.index()] = if so_far == Fact::default() {
                self.sane(value, fact, None, errors)
            } else {
                self.merge(value, so_far, fact, None, errors)
            };
        }
        facts
    }

    fn constants(&self, facts: &mut [Fact], errors: &mut Vec<ShapeError>) {
        let graph = self.graph;
        let defaults: HashMap<&str, ValueId> = (graph.inputs().iter())
            .map(|&v| (graph.value(v).name.as_str(), v))
            .collect();
        let mut of: Vec<Option<ValueId>> = (graph.initializers().iter())
            .map(|t| defaults.get(t.name()).copied())
            .collect();
        for value in graph.values() {
            match graph.value(value).origin {
                Origin::Initializer(index) => {
                    if let Some(slot) = of.get_mut(index) {
                        *slot = Some(value);
                    }
                }
                Origin::SparseInitializer(_) => self.name_sizes(value, &mut facts[value.index()]),
                _ => {}
            }
        }
        for (tensor, value) in graph.initializers().iter().zip(of) {
            let Some(value) = value else {
                continue;
            };
            let mut fact = match Fact::of_tensor(tensor, tensor.name()) {
                Ok(fact) => fact,
                Err(fault) => {
                    keep(errors, self.error(*fault, None));
                    continue;
                }
            };
            // A default can be replaced by the caller: its elements are not to be relied on.
            if matches!(graph.value(value).origin, Origin::Input(_)) {
                fact.contents = None;
            }
            let declared = std::mem::take(&mut facts[value.index()]);
            facts[value.index()] = self.settle(value, fact, declared, None, errors);
        }
    }

    /// What a node's outputs are by its rule.
    fn node(&self, id: NodeId, facts: &[Fact], errors: &mut Vec<ShapeError>) -> Vec<Fact> {
        let node = self.graph.node(id);
        let mut call = Call {
            graph: self.graph,
            node,
            opset: self.opset,
            facts,
            outputs: vec![Fact::default(); node.outputs.len()],
        };
        let (domain, op) = (node.domain(), node.op());
        if rules::has_body(domain, op) {
            return control::branches(self, &call, errors);
        }
        if let Some(rule) = rules::rule(domain, op) {
            return match rule(&mut call) {
                Ok(()) => call.outputs,
                Err(fault) => {
                    keep(errors, self.error(*fault, Some(node)));
                    vec![Fact::default(); node.outputs.len()]
                }
            };
        }
        let overload = node.proto.overload.as_deref().unwrap_or_default();
        if let Some(function) = self.world.functions.get(&(domain, op, overload)) {
            return control::function(self, &call, function, errors);
        }
        let unknown = (domain.to_owned(), op.to_owned());
        self.world.unknown_ops.borrow_mut().insert(unknown);
        call.outputs
    }

    /// Whether bodies are no longer looked at.
    pub fn is_spent(&self) -> bool {
        self.world.budget.get() == 0 || self.depth >= control::DEPTH_LIMIT
    }

    pub fn error(&self, fault: Fault, node: Option<&Node>) -> ShapeError {
        let label = node.map(|n| format!("{}{}", self.path, n.label(self.graph)));
        ShapeError {
            node: label.unwrap_or_else(|| self.path.trim_end_matches('/').to_owned()),
            op: node.map_or_else(String::new, |n| n.op().to_owned()),
            tensor: fault.tensor,
            found: fault.found,
            other: fault.other,
            hint: fault.hint,
        }
    }

    /// Inferred and declared as one, every size named.
    fn settle(
        &self,
        value: ValueId,
        inferred: Fact,
        declared: Fact,
        node: Option<NodeId>,
        errors: &mut Vec<ShapeError>,
    ) -> Fact {
        let inferred = self.sane(value, inferred, node, errors);
        let mut fact = self.merge(value, inferred, declared, node, errors);
        self.name_sizes(value, &mut fact);
        fact
    }

    /// Sizes that nothing tells become symbols named after the value and the axis.
    fn name_sizes(&self, value: ValueId, fact: &mut Fact) {
        let open = fact.shape.iter_mut().flatten().enumerate();
        for (axis, dim) in open.filter(|(_, d)| d.is_undefined()) {
            let mut name = format!("{}{}#{axis}", self.path, self.graph.value(value).name);
            while self.world.given.borrow().contains(name.as_str()) {
                name.push('\'');
            }
            *dim = Dim::symbol(&name);
            self.world.own.borrow_mut().insert(name);
        }
    }

    /// A fact without what no tensor can have and without what would grow from node to node.
    fn sane(
        &self,
        value: ValueId,
        mut fact: Fact,
        node: Option<NodeId>,
        errors: &mut Vec<ShapeError>,
    ) -> Fact {
        if fact.shape.as_ref().is_some_and(|s| s.len() > MAX_RANK) {
            fact.shape = None;
        }
        for (axis, dim) in fact.shape.iter_mut().flatten().enumerate() {
            if let Some(size) = dim.as_const().filter(|&s| s < 0) {
                let fault = Fault {
                    tensor: self.graph.value(value).name.clone(),
                    found: format!("axis {axis} would be {size}"),
                    other: "no size is negative".to_owned(),
                    hint: "check the sizes of the inputs",
                };
                keep(
                    errors,
                    self.error(fault, node.map(|id| self.graph.node(id))),
                );
                *dim = unknown();
            } else if dim.size() > MAX_DIM_SIZE {
                *dim = unknown();
            }
        }
        if fact
            .contents
            .as_ref()
            .is_some_and(|c| c.iter().any(|d| d.size() > MAX_DIM_SIZE))
        {
            fact.contents = None;
        }
        fact
    }

    /// How much a size tells; see the module's documentation.
    fn telling(&self, dim: &Dim) -> u8 {
        if dim.is_undefined() {
            return 0;
        }
        if dim.as_const().is_some() {
            return 4;
        }
        let (given, own) = (self.world.given.borrow(), self.world.own.borrow());
        if dim.every_symbol(&|s| given.contains(s)) {
            3
        } else if dim.every_symbol(&|s| !own.contains(s)) {
            2
        } else {
            1
        }
    }

    fn merge(
        &self,
        value: ValueId,
        inferred: Fact,
        declared: Fact,
        node: Option<NodeId>,
        errors: &mut Vec<ShapeError>,
    ) -> Fact {
        let mut report = |found: String, other: String, hint: &'static str| {
            let fault = Fault {
                tensor: self.graph.value(value).name.clone(),
                found,
                other,
                hint,
            };
            keep(
                errors,
                self.error(fault, node.map(|id| self.graph.node(id))),
            );
        };
        // After a contradiction neither is believed, so that one error is reported once.
        let data_type = match (inferred.data_type, declared.data_type) {
            (Some(a), Some(b)) if a != b => {
                let hint = "the declaration is stale, or a Cast is missing in front of the node";
                report(
                    format!("the element type is {a}"),
                    format!("the file declares {b}"),
                    hint,
                );
                None
            }
            (a, b) => a.or(b),
        };
        let stale = "the declaration is stale: export the model again, or drop its value_info";
        let shape = match (inferred.shape, declared.shape) {
            (Some(a), Some(b)) if a.len() != b.len() => {
                let found = format!("the shape {} has rank {}", list(&a), a.len());
                report(
                    found,
                    format!("the file declares {}, rank {}", list(&b), b.len()),
                    stale,
                );
                None
            }
            (Some(a), Some(b)) => {
                let mut shape = Vec::with_capacity(a.len());
                for (axis, (x, y)) in a.iter().zip(&b).enumerate() {
                    shape.push(match (x.as_const(), y.as_const()) {
                        _ if x == y => x.clone(),
                        (Some(m), Some(n)) => {
                            let found = format!("axis {axis} is {m} in the shape {}", list(&a));
                            report(
                                found,
                                format!("the file declares {n} in {}", list(&b)),
                                stale,
                            );
                            unknown()
                        }
                        (Some(_), None) => x.clone(),
                        (None, Some(_)) => y.clone(),
                        _ if self.telling(x) >= self.telling(y) => x.clone(),
                        _ => y.clone(),
                    });
                }
                Some(shape)
            }
            (a, b) => a.or(b),
        };
        Fact {
            data_type,
            shape,
            contents: inferred.contents,
        }
    }
}
