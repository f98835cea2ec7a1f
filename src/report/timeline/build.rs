//! From an order and its lifetimes to a course.

use super::{Buffer, Category, Course, Described, Ordered, Resident, Step};
use crate::report::Amount;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use velora_graph::analysis::lifetimes::Uses;
use velora_graph::analysis::{Analyses, symbols};
use velora_graph::ir::{Graph, Model, Origin, ValueId};
use velora_graph::shapes::Shapes;
use velora_graph::text::element_type_name;
use velora_passes::pipeline::ASSUMED_SIZE;
use velora_runtime::training::Signature;

/// What a model's buffers are for, and how many bytes they have.
struct Tensors<'a> {
    graph: &'a Graph,
    analyses: &'a Analyses,
    /// The types with no size given, where some were.
    open: Option<&'a Shapes>,
    given: &'a BTreeMap<Arc<str>, i64>,
    ordered: &'a Ordered,
    categories: HashMap<ValueId, Category>,
}

/// The course of one model; `open` are its types with no size given, where some were.
pub fn course(
    model: &Model,
    analyses: &Analyses,
    open: Option<&Shapes>,
    given: &BTreeMap<Arc<str>, i64>,
    ordered: &Ordered,
) -> Course {
    let graph = &model.graph;
    let signature = Signature::new(graph, &analyses.roles);
    let tensors = Tensors {
        graph,
        analyses,
        open,
        given,
        ordered,
        categories: categories(graph, analyses, &signature),
    };
    let steps = ordered.order.iter().map(|&id| {
        let node = graph.node(id);
        Step {
            node: node.label(graph),
            op: node.op().to_owned(),
            half: analyses.partition.half(id),
        }
    });
    Course {
        steps: steps.collect(),
        buffers: buffers(&tensors),
        held: held(&tensors, &signature),
    }
}

/// The size of every symbol in some course: as given, or what an open one counts as; and the symbols of the
/// graph's inputs.
pub fn symbol_sizes<'a>(
    graph: &Graph,
    given: &BTreeMap<Arc<str>, i64>,
    courses: impl Iterator<Item = &'a Course>,
) -> (BTreeMap<Arc<str>, i64>, Vec<Arc<str>>) {
    let of_inputs = symbols(graph);
    let mut found = of_inputs.clone();
    for course in courses {
        let made = course.buffers.iter().map(|buffer| &buffer.tensor);
        let held = course.held.iter().map(|resident| &resident.tensor);
        for tensor in made.chain(held) {
            let open = tensor.open_bytes.dim();
            found.extend(open.into_iter().flat_map(|dim| dim.symbols()));
        }
    }
    let size = |name: &Arc<str>| given.get(name).copied().unwrap_or(ASSUMED_SIZE);
    let sizes = found.iter().map(|name| (name.clone(), size(name)));
    (sizes.collect(), of_inputs.into_iter().collect())
}

/// What buffers are for that are no temporaries, by their roots.
fn categories(
    graph: &Graph,
    analyses: &Analyses,
    signature: &Signature,
) -> HashMap<ValueId, Category> {
    let mut found = HashMap::new();
    let root = |value: ValueId| analyses.buffers.root(graph.unpinned(value));
    for parameter in &signature.trained {
        let output = graph.outputs()[parameter.output];
        // An accumulator keeps a sum: what enters it is the gradient, what leaves it a flag.
        let accumulator = (graph.producer(output)).filter(|_| parameter.buffer.is_some());
        let added = accumulator.and_then(|id| graph.node(id).inputs.get(1).copied().flatten());
        found.insert(root(added.unwrap_or(output)), Category::Gradients);
        let direction = parameter
            .factor
            .map(|factor| graph.outputs()[factor.direction]);
        found.extend(direction.map(|direction| (root(direction), Category::Gradients)));
    }
    for &(input, output) in &signature.updated {
        found.insert(
            root(graph.outputs()[output]),
            updated(graph, analyses, input),
        );
    }
    let contracted: BTreeSet<ValueId> = (analyses.sites.sites.iter().map(|s| s.activation))
        .chain(analyses.sites.unfit.iter().map(|u| u.activation))
        .collect();
    for saved in &analyses.saved {
        let made = graph.producer(saved.buffer).map(|id| graph.node(id));
        let compressed = made.is_some_and(|node| node.metadata("velora.tensor").is_some());
        let category = match compressed || contracted.contains(&saved.buffer) {
            true => Category::SavedLinear,
            false => Category::SavedOther,
        };
        found.insert(saved.buffer, category);
    }
    found
}

/// What an input is that the graph updates itself: no forward node reads the state of an optimiser.
fn updated(graph: &Graph, analyses: &Analyses, input: usize) -> Category {
    use velora_graph::analysis::partition::Half;
    let users = &graph.value(graph.inputs()[input]).users;
    let half = |user: &velora_graph::ir::Use| analyses.partition.half(user.node);
    match users.iter().any(|user| half(user) == Half::Forward) {
        true => Category::Parameters,
        false => Category::Optimizer,
    }
}

impl Tensors<'_> {
    fn describe(&self, value: ValueId, category: Category) -> Described {
        let kind = self.analyses.shapes.of(value);
        let bytes = Amount::from(self.analyses.shapes.bytes(value));
        let counted = self.ordered.sizes.of(value);
        let open = self.open.map(|open| Amount::from(open.bytes(value)));
        let open_bytes = open.filter(|open| open.at_sizes(self.given) == counted);
        let open_shape = self.open.filter(|_| open_bytes.is_some());
        let open_shape = open_shape.map_or(&kind.shape, |open| &open.of(value).shape);
        let dtype = kind.data_type.and_then(|t| element_type_name(t.0));
        Described {
            tensor: self.graph.value(value).name.clone(),
            shape: kind.shape.clone(),
            open_shape: open_shape.clone(),
            dtype: dtype.map(str::to_owned),
            category,
            is_fixed: self.open.is_some() && open_bytes.is_none(),
            open_bytes: open_bytes.unwrap_or_else(|| bytes.clone()),
            bytes,
            counted,
        }
    }
}

fn buffers(tensors: &Tensors<'_>) -> Vec<Buffer> {
    let (graph, ordered) = (tensors.graph, tensors.ordered);
    let mut step = vec![usize::MAX; graph.node_count()];
    for (place, node) in ordered.order.iter().enumerate() {
        step[node.index()] = place;
    }
    let uses = Uses::new(graph, &tensors.analyses.buffers);
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for buffer in uses.buffers() {
        let reads = uses.readers(buffer).iter().map(|node| step[node.index()]);
        let mut reads: Vec<usize> = reads.filter(|&at| at != usize::MAX).collect();
        reads.sort_unstable();
        reads.dedup();
        readers.insert(buffer.root, reads);
    }
    let lifetimes = &ordered.lifetimes;
    let roots: Vec<ValueId> = lifetimes.buffers().collect();
    let number: HashMap<ValueId, usize> = { roots.iter().enumerate() }
        .map(|(number, &root)| (root, number))
        .collect();
    let mut candidates: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (node, output, over) in uses.overwrites() {
        let here = step[node.index()];
        let dies = |root: &&ValueId| {
            let span = lifetimes.span(**root);
            span.is_some_and(|(born, last)| last == here && born < here)
        };
        let dying = over.iter().filter(dies).filter_map(|root| number.get(root));
        candidates.insert(output, dying.copied().collect());
    }
    let buffer = |&root: &ValueId| {
        let category = tensors.categories.get(&root).copied();
        let (born, last) = lifetimes.span(root)?;
        Some(Buffer {
            tensor: tensors.describe(root, category.unwrap_or(Category::Temporaries)),
            born,
            last,
            over: (lifetimes.takes_over(root)).and_then(|old| number.get(&old).copied()),
            over_if_equal: candidates.remove(&root).unwrap_or_default(),
            readers: readers.remove(&root).unwrap_or_default(),
        })
    };
    roots.iter().filter_map(buffer).collect()
}

/// Inputs and initialisers. What no node reads is left out, but for buffers that gradients are added to.
fn held(tensors: &Tensors<'_>, signature: &Signature) -> Vec<Resident> {
    let (graph, analyses) = (tensors.graph, tensors.analyses);
    let mut known: HashMap<ValueId, (Category, bool)> = HashMap::new();
    for &(input, _) in &signature.updated {
        known.insert(
            graph.inputs()[input],
            (updated(graph, analyses, input), false),
        );
    }
    for parameter in &signature.trained {
        known.insert(
            graph.inputs()[parameter.input],
            (Category::Parameters, true),
        );
        let buffer = parameter.buffer.map(|buffer| graph.inputs()[buffer]);
        known.extend(buffer.map(|buffer| (buffer, (Category::Gradients, false))));
    }
    for base in crate::report::build::bases(graph, analyses) {
        known.insert(base, (Category::Parameters, true));
    }
    let outside = graph
        .values()
        .filter(|&value| match graph.value(value).origin {
            Origin::Input(_) => true,
            Origin::Initializer(_) | Origin::SparseInitializer(_) => {
                !graph.value(value).users.is_empty()
            }
            _ => false,
        });
    outside
        .map(|value| {
            let kind = known.get(&value).copied();
            let (category, trained) = kind.unwrap_or((Category::Inputs, false));
            Resident {
                tensor: tensors.describe(value, category),
                trained,
            }
        })
        .collect()
}
