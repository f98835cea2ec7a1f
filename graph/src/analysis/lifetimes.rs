//! Lifetimes of buffers over a schedule, and the peak of the live bytes.
//!
//! The model, which the runtime obeys: a buffer is born when the node that makes it starts and dies
//! when the last node that reads it, or a view of it, has finished; outputs of the graph live to the
//! end. Inputs, initialisers and constants lie outside. An element-wise node writes over an input
//! that dies there and has the same number of bytes. A node that reads only a shape keeps nothing.

mod envelope;

use super::buffers::Buffers;
use super::saved::needs_bytes;
use crate::dim::Dim;
use crate::ir::{Graph, Node, NodeId, Use, ValueId};
use crate::shapes::Shapes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of every buffer, at sizes given to all symbols.
#[derive(Clone, Debug)]
pub struct Sizes {
    bytes: Vec<Option<i64>>,
    /// The size of every symbol.
    symbols: BTreeMap<Arc<str>, i64>,
}

impl Sizes {
    /// Evaluates the shapes, with `stand_in` for a symbol that has no size.
    pub fn new(graph: &Graph, shapes: &Shapes, stand_in: impl Fn(&str) -> i64) -> Self {
        // Few symbols stand in many shapes.
        let mut known: BTreeMap<Arc<str>, i64> = BTreeMap::new();
        let mut size = |dim: &Dim| {
            if let Some(constant) = dim.as_const() {
                return Some(constant);
            }
            for symbol in dim.symbols() {
                let unknown = !known.contains_key(&symbol);
                if unknown {
                    let stood_in = stand_in(&symbol);
                    known.insert(symbol, stood_in);
                }
            }
            dim.eval(&known)
        };
        let mut bytes = |value| {
            let kind = shapes.of(value);
            let bits = kind.data_type?.bits()?;
            let mut elements = 1i64;
            for dim in kind.shape.as_ref()? {
                elements = elements.checked_mul(size(dim)?)?;
            }
            match bits % 8 {
                0 => elements.checked_mul(bits / 8),
                _ => Some(elements.checked_mul(bits)?.checked_add(7)?.div_euclid(8)),
            }
        };
        // The sum of all, twice over, fits the number; no machine has what is beyond.
        let most = i64::MAX / 2 / (graph.value_count() as i64 + 1);
        let bytes = graph.values().map(&mut bytes);
        let bytes = (bytes.map(|b| b.filter(|b| (0..=most).contains(b)))).collect();
        Sizes {
            bytes,
            symbols: known,
        }
    }

    /// The value of a dimension at these sizes; `None` where it has a symbol that no value's shape has.
    pub fn dim(&self, dim: &Dim) -> Option<i64> {
        dim.as_const().or_else(|| dim.eval(&self.symbols))
    }

    /// The bytes of a value's buffer; `None` where they are unknown, or too many to be summed up.
    pub fn of(&self, value: ValueId) -> Option<i64> {
        self.bytes[value.index()]
    }
}

/// Who makes and reads each buffer, whatever the order; made once for the lifetimes of many orders.
#[derive(Clone, Debug)]
pub struct Uses {
    /// What is allocated, by id of the root.
    buffers: Vec<Buffer>,
    /// The readers of all buffers, one behind the other.
    readers: Vec<NodeId>,
    /// Element-wise nodes with one output: the output, and the span of `over` that holds the roots
    /// that it may be written over.
    element_wise: Vec<(NodeId, ValueId, (usize, usize))>,
    over: Vec<ValueId>,
    nodes: usize,
    values: usize,
}

/// What is allocated for one root.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The root.
    pub root: ValueId,
    /// The node that makes it.
    pub producer: NodeId,
    /// Its part of the readers of all buffers.
    readers: (usize, usize),
    /// Whether it, or a view of it, is an output of the graph.
    pub is_output: bool,
}

impl Uses {
    /// Collects the makers and readers of all buffers; constants are none.
    pub fn new(graph: &Graph, buffers: &Buffers) -> Self {
        let mut uses = Uses {
            buffers: Vec::new(),
            readers: Vec::new(),
            element_wise: Vec::new(),
            over: Vec::new(),
            nodes: graph.node_count(),
            values: graph.value_count(),
        };
        for root in buffers.roots(graph).filter(|&v| !graph.is_constant(v)) {
            let Some(producer) = graph.producer(root) else {
                continue;
            };
            let start = uses.readers.len();
            let mut is_output = false;
            for &value in buffers.members(root) {
                is_output |= graph.value(value).is_output;
                for &Use { node, slot } in &graph.value(value).users {
                    if needs_bytes(graph.node(node), slot) {
                        uses.readers.push(node);
                    }
                }
            }
            uses.buffers.push(Buffer {
                root,
                producer,
                readers: (start, uses.readers.len()),
                is_output,
            });
        }
        for &id in graph.order() {
            let node = graph.node(id);
            if let &[Some(output)] = node.outputs.as_slice()
                && element_wise(node)
            {
                let start = uses.over.len();
                let inputs = node.inputs.iter().flatten();
                uses.over.extend(inputs.map(|&input| buffers.root(input)));
                let span = (start, uses.over.len());
                uses.element_wise.push((id, output, span));
            }
        }
        uses
    }

    /// What is allocated, by id of the root.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The nodes that read a buffer, once for each read.
    pub fn readers(&self, buffer: &Buffer) -> &[NodeId] {
        let (start, end) = buffer.readers;
        &self.readers[start..end]
    }

    /// Element-wise nodes with one output: the node, the output, and the roots of its inputs, over which
    /// the output may be written.
    pub fn overwrites(&self) -> impl Iterator<Item = (NodeId, ValueId, &[ValueId])> {
        let nodes = self.element_wise.iter();
        nodes.map(|&(node, output, (start, end))| (node, output, &self.over[start..end]))
    }
}

/// Roots by step, one list behind the other.
#[derive(Clone, Debug)]
struct BySteps {
    start: Vec<usize>,
    roots: Vec<ValueId>,
}

impl BySteps {
    /// Sorts roots into lists by their steps, in the order given.
    fn new(steps: usize, pairs: impl Iterator<Item = (usize, ValueId)> + Clone) -> Self {
        let mut start = vec![0; steps + 1];
        for (step, _) in pairs.clone() {
            start[step + 1] += 1;
        }
        for step in 0..steps {
            start[step + 1] += start[step];
        }
        let mut next = start.clone();
        let mut roots = vec![ValueId::from_index(0); start.last().copied().unwrap_or(0)];
        for (step, root) in pairs {
            roots[next[step]] = root;
            next[step] += 1;
        }
        BySteps { start, roots }
    }

    fn at(&self, step: usize) -> &[ValueId] {
        &self.roots[self.start[step]..self.start[step + 1]]
    }
}

/// When each buffer is born and dies, as positions in a schedule.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    /// By root: the step that makes it and the last step that needs it, inclusive; outputs end at
    /// the number of steps. `None` for what is no buffer of the step.
    spans: Vec<Option<(usize, usize)>>,
    steps: usize,
    /// By step: the roots born there.
    born: BySteps,
    /// By step, and one more for what lives to the end: the roots whose last reader it is.
    dies: BySteps,
    /// By root: the dying buffer that it is written over.
    takes_over: Vec<Option<ValueId>>,
}

/// Element-wise operators of which an output may be written over an input of the same bytes.
pub fn element_wise(node: &Node) -> bool {
    node.domain().is_empty()
        && matches!(
            node.op(),
            "Abs"
                | "Add"
                | "And"
                | "Ceil"
                | "Clip"
                | "Cos"
                | "Div"
                | "Elu"
                | "Erf"
                | "Exp"
                | "Floor"
                | "Gelu"
                | "LeakyRelu"
                | "Log"
                | "Mul"
                | "Neg"
                | "Not"
                | "Or"
                | "Pow"
                | "Reciprocal"
                | "Relu"
                | "Round"
                | "Sigmoid"
                | "Sign"
                | "Sin"
                | "Softmax"
                | "LogSoftmax"
                | "Softplus"
                | "Sqrt"
                | "Sub"
                | "Sum"
                | "Tanh"
                | "Where"
        )
}

impl Lifetimes {
    /// The lifetimes under a schedule, which lists every node after what it reads.
    pub fn new(graph: &Graph, buffers: &Buffers, sizes: &Sizes, schedule: &[NodeId]) -> Self {
        Lifetimes::of(&Uses::new(graph, buffers), sizes, schedule)
    }

    /// The same from uses collected before.
    pub fn of(uses: &Uses, sizes: &Sizes, schedule: &[NodeId]) -> Self {
        let mut step = vec![usize::MAX; uses.nodes];
        for (place, node) in schedule.iter().enumerate() {
            step[node.index()] = place;
        }
        let mut spans = vec![None; uses.values];
        let mut found = Vec::with_capacity(uses.buffers.len());
        for buffer in &uses.buffers {
            let birth = step[buffer.producer.index()];
            if birth == usize::MAX {
                continue;
            }
            let reads = uses.readers(buffer).iter().map(|n| step[n.index()]);
            let last = reads.filter(|&s| s != usize::MAX).fold(birth, usize::max);
            let last = if buffer.is_output {
                schedule.len()
            } else {
                last
            };
            spans[buffer.root.index()] = Some((birth, last));
            found.push((birth, last, buffer.root));
        }
        let mut lifetimes = Lifetimes {
            spans,
            steps: schedule.len(),
            born: BySteps::new(schedule.len(), found.iter().map(|f| (f.0, f.2))),
            dies: BySteps::new(schedule.len() + 1, found.iter().map(|f| (f.1, f.2))),
            takes_over: vec![None; uses.values],
        };
        lifetimes.alias(uses, sizes, &step);
        lifetimes
    }

    fn alias(&mut self, uses: &Uses, sizes: &Sizes, step: &[usize]) {
        for &(node, output, (start, end)) in &uses.element_wise {
            let place = step[node.index()];
            let bytes = sizes.of(output);
            if self.spans[output.index()].is_none() || bytes.is_none() {
                continue;
            }
            let over = uses.over[start..end].iter().find(|root| {
                let dies = self.spans[root.index()]
                    .is_some_and(|(birth, last)| last == place && birth < place);
                dies && sizes.of(**root) == bytes
            });
            self.takes_over[output.index()] = over.copied();
        }
    }

    /// The step that makes a buffer and the last step that needs it; outputs end at the number of
    /// steps.
    pub fn span(&self, root: ValueId) -> Option<(usize, usize)> {
        self.spans[root.index()]
    }

    /// The dying buffer that a new one is written over.
    pub fn takes_over(&self, root: ValueId) -> Option<ValueId> {
        self.takes_over[root.index()]
    }

    /// The live bytes while each step runs: its inputs, its outputs, and everything needed later.
    /// Buffers of unknown size count nothing; [`Lifetimes::unknown`] names them.
    pub fn live(&self, sizes: &Sizes) -> Vec<i64> {
        let bytes = |root: &ValueId| sizes.of(*root).unwrap_or(0);
        let mut live = 0i64;
        let mut series = Vec::with_capacity(self.steps);
        for step in 0..self.steps {
            let (born, dies) = (self.born.at(step), self.dies.at(step));
            for root in born {
                live = live.saturating_add(bytes(root));
                if let Some(old) = self.takes_over(*root) {
                    live -= bytes(&old);
                }
            }
            series.push(live);
            for root in dies {
                if !born.iter().any(|b| self.takes_over(*b) == Some(*root)) {
                    live -= bytes(root);
                }
            }
        }
        series
    }

    /// The highest of the live bytes, and the first step that reaches it.
    pub fn peak(&self, sizes: &Sizes) -> (i64, usize) {
        let mut best = (0, 0);
        for (step, live) in self.live(sizes).into_iter().enumerate() {
            if live > best.0 {
                best = (live, step);
            }
        }
        best
    }

    /// The roots that live while a step runs.
    pub fn live_at(&self, step: usize) -> Vec<ValueId> {
        let mut alive = Vec::new();
        for (index, span) in self.spans.iter().enumerate() {
            if span.is_some_and(|(birth, last)| birth <= step && step <= last) {
                alive.push(ValueId::from_index(index));
            }
        }
        alive
    }

    /// The peak as an expression over open sizes: the maximum over those steps whose live bytes
    /// could be the highest. `None` where a size is unknown.
    pub fn symbolic_peak(&self, shapes: &Shapes) -> Option<Dim> {
        let bytes = |root: &ValueId| shapes.bytes(*root);
        let mut live = Dim::from(0);
        let mut rising: Vec<Dim> = Vec::new();
        let mut fell = true;
        for step in 0..self.steps {
            let (born, dies) = (self.born.at(step), self.dies.at(step));
            for root in born {
                live = live + bytes(root)?;
                if let Some(old) = self.takes_over(*root) {
                    live = live - bytes(&old)?;
                }
            }
            // Only a step after which something is freed can be a maximum.
            if fell {
                rising.push(live.clone());
            } else if let Some(last) = rising.last_mut() {
                last.clone_from(&live);
            }
            fell = false;
            for root in dies {
                if !born.iter().any(|b| self.takes_over(*b) == Some(*root)) {
                    live = live - bytes(root)?;
                    fell = true;
                }
            }
        }
        rising.sort();
        rising.dedup();
        let kept = envelope::of_lines(&rising).unwrap_or_else(|| envelope::undominated(rising));
        kept.into_iter().reduce(|peak, step| peak.maximum(&step))
    }

    /// The roots of all buffers, in the order in which they are born.
    pub fn buffers(&self) -> impl Iterator<Item = ValueId> {
        self.born.roots.iter().copied()
    }

    /// Buffers whose size is unknown.
    pub fn unknown(&self, sizes: &Sizes) -> Vec<ValueId> {
        self.buffers()
            .filter(|&root| sizes.of(root).is_none())
            .collect()
    }
}
