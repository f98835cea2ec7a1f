//! A training graph as operations of the runtime, before they have an order and buffers have places.
//!
//! All sizes are numbers, shape arithmetic is gone, views share their source's storage, and dead
//! operations are dropped. [`crate::lower`] makes it; [`crate::plan`] places it.

use crate::ops::Op;
use crate::plan::Region;
use crate::tensor::{Tensor, TensorType};

/// A tensor of a [`Program`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);

impl TensorId {
    /// The position in the program's list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the bytes of a tensor come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An input of the graph, by its position.
    Input(usize),
    /// Known when the plan is made.
    Constant(Tensor),
    /// Written by an operation.
    Computed,
    /// Stays from step to step in a region, and no input of the graph names it.
    Kept(Region),
    /// The same bytes as another tensor, perhaps in another shape.
    View(TensorId),
    /// Written by an operation over the bytes of another tensor, which it also reads.
    Update(TensorId),
}

/// What is known of a tensor.
#[derive(Clone, Debug)]
pub struct Value {
    /// The name in the file, or one made up from the node's.
    pub name: String,
    /// Element type and dimensions.
    pub ty: TensorType,
    /// Where the bytes come from.
    pub source: Source,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What it does.
    pub op: Op,
    /// What it reads; `None` where an optional operand is absent.
    pub inputs: Vec<Option<TensorId>>,
    /// What it writes; `None` where nobody wants it.
    pub outputs: Vec<Option<TensorId>>,
    /// The node of the file it comes from, for messages and profiles.
    pub node: String,
    /// Whether that node belongs to the backward half.
    pub backward: bool,
}

/// Operations over tensors.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// All tensors, by id.
    pub values: Vec<Value>,
    /// The operations, each after those that it reads from.
    pub operations: Vec<Operation>,
    /// The tensors of the graph's inputs, in the file's order; `None` where nothing reads it.
    pub inputs: Vec<Option<TensorId>>,
    /// By input of the graph: the region that it lies in.
    pub input_regions: Vec<Region>,
    /// The tensors to be read back after a step: of a plain program the graph's outputs, in the file's
    /// order.
    pub outputs: Vec<TensorId>,
    /// The parameters that an optimiser outside the graph trains.
    pub trained: Vec<Trained>,
    /// New values written over inputs that the graph updates itself.
    pub carried: Vec<TensorId>,
    /// The flag (`bool[1]`) that starts the sums of gradients anew, where there are any.
    pub reset: Option<TensorId>,
    /// What the optimiser's updates need beside what stays; all parameters share it.
    pub scratch: Option<TensorId>,
}

/// A trained parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    /// The weight.
    pub parameter: TensorId,
    /// Its gradient, or P of a factored one.
    pub gradient: TensorId,
    /// What the optimiser keeps for it: [`Optimizer::layout`].
    ///
    /// [`Optimizer::layout`]: crate::session::optimizer::Optimizer::layout
    pub state: Vec<TensorId>,
    /// Whether the optimiser is to compress its gradient, where it does so.
    pub projected: bool,
    /// What makes the gradient of P.
    pub factor: Option<Factor<TensorId>>,
}

/// The direction of a factored gradient, and how the weight is cut by it; `T` is what stands for a tensor.
///
/// The gradient of a weight W of D features and O outputs is dW = v ⊗ P. The features are cut into G
/// groups of M = ⌈D/G⌉ consecutive ones; the last one that holds any may be shorter, and others after it
/// be empty (D = 5, G = 4). With the features first, W is `[D, O]`, P is `[G, O]`, and
/// dW\[g·M + i, o\] = v(g)\[i\] · P\[g, o\]; with the features last, W is `[O, D]`, P is `[O, G]`, and
/// dW\[o, g·M + i\] = v(g)\[i\] · P\[o, g\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor<T> {
    /// v, of any norm: `[M]`, for all groups, or `[G, M]`, one for each. Of a group that is short the
    /// first entries count.
    pub direction: T,
    /// G, from 1 to D.
    pub groups: usize,
    /// D.
    pub features: usize,
    /// O.
    pub outputs: usize,
    /// Whether W is `[O, D]`.
    pub features_last: bool,
}

impl<T> Factor<T> {
    /// The same cut, with another stand-in for the direction.
    pub fn with<U>(&self, direction: U) -> Factor<U> {
        Factor {
            direction,
            groups: self.groups,
            features: self.features,
            outputs: self.outputs,
            features_last: self.features_last,
        }
    }
}

impl Program {
    /// What is known of a tensor.
    pub fn value(&self, id: TensorId) -> &Value {
        &self.values[id.index()]
    }

    /// The type of a tensor.
    pub fn ty(&self, id: TensorId) -> &TensorType {
        &self.value(id).ty
    }

    /// The tensor that owns the bytes of a tensor.
    pub fn root(&self, mut id: TensorId) -> TensorId {
        while let Source::View(of) | Source::Update(of) = self.value(id).source {
            id = of;
        }
        id
    }

    /// Adds a tensor.
    pub fn add(&mut self, name: impl Into<String>, ty: TensorType, source: Source) -> TensorId {
        let id = TensorId(self.values.len() as u32);
        self.values.push(Value {
            name: name.into(),
            ty,
            source,
        });
        id
    }

    /// The operation that writes each tensor, by its position.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.values.len()];
        for (place, operation) in self.operations.iter().enumerate() {
            for output in operation.outputs.iter().flatten() {
                producers[output.index()] = Some(place);
            }
        }
        producers
    }

    /// What a step is for: the outputs, the gradients with their directions, and what the graph updates.
    pub fn wanted(&self) -> impl Iterator<Item = TensorId> {
        let gradients = self.trained.iter().flat_map(|trained| {
            let direction = trained.factor.as_ref().map(|factor| factor.direction);
            [trained.gradient].into_iter().chain(direction)
        });
        let outputs = self.outputs.iter().chain(&self.carried).copied();
        outputs.chain(gradients)
    }

    /// Drops operations that nothing wanted needs.
    ///
    /// Outputs of the operations kept that nobody reads stay: an operator has them all.
    pub fn drop_dead(&mut self) {
        let producers = self.producers();
        let mut live = vec![false; self.operations.len()];
        let mut seen = vec![false; self.values.len()];
        let mut pending: Vec<TensorId> = self.wanted().collect();
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            if let Source::View(of) | Source::Update(of) = self.value(id).source {
                pending.push(of);
            }
            if let Some(place) = producers[id.index()]
                && !std::mem::replace(&mut live[place], true)
            {
                pending.extend(self.operations[place].inputs.iter().flatten());
            }
        }
        let mut place = 0;
        self.operations.retain(|_| {
            place += 1;
            live[place - 1]
        });
    }

    /// Forgets inputs that nothing reads, unless they stay from step to step: another program of the
    /// same model may read those.
    pub fn drop_unread_inputs(&mut self) {
        let mut read = vec![false; self.values.len()];
        let operands = (self.operations.iter()).flat_map(|op| op.inputs.iter().flatten());
        for id in operands.copied().chain(self.wanted()) {
            read[self.root(id).index()] = true;
        }
        for (input, region) in self.inputs.iter_mut().zip(&self.input_regions) {
            *input = input.filter(|id| *region != Region::Inputs || read[id.index()]);
        }
    }
}
