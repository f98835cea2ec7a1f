//! The order of a program's operations.

use crate::plan::Region;
use crate::program::{Program, Source, TensorId};
use std::collections::BTreeMap;
use velora_graph::analysis::order::{Buffer, Order, Task, TaskError, Tasks, search};

/// Tasks run in thought for each operation, while better orders are looked for.
const EFFORT: u64 = 300;

/// Finds an order of the operations with a low peak of the arena.
///
/// `regions` and `workspaces` are those of the roots and the operations; `in_place` says which inputs an
/// operation's outputs may be written over.
///
/// # Errors
/// [`TaskError`] where the program's own order is none.
pub fn order(
    program: &Program,
    roots: &[TensorId],
    regions: &[Region],
    workspaces: &[usize],
) -> Result<Order, TaskError> {
    let mut tasks = Tasks::default();
    let aligned = |bytes: usize| bytes.next_multiple_of(super::ALIGNMENT) as i64;
    let wanted: Vec<TensorId> = program.wanted().map(|id| roots[id.index()]).collect();
    let mut lives = vec![false; program.values.len()];
    for root in &wanted {
        lives[root.index()] = true;
    }
    let mut buffers: BTreeMap<TensorId, usize> = BTreeMap::new();
    for &root in roots {
        if regions[root.index()] == Region::Activations && !buffers.contains_key(&root) {
            let buffer = tasks.buffer(Buffer {
                bytes: aligned(program.ty(root).bytes()),
                lives_to_end: lives[root.index()],
                born_before: false,
            })?;
            buffers.insert(root, buffer);
        }
    }
    let producers = program.producers();
    let updates = Updates::new(program, roots);
    let mut made: BTreeMap<TensorId, ()> = BTreeMap::new();
    for (place, operation) in program.operations.iter().enumerate() {
        let root = |id: &TensorId| roots[id.index()];
        let reads: Vec<usize> = (operation.inputs.iter().flatten())
            .filter_map(|id| buffers.get(&root(id)).copied())
            .collect();
        let mut makes = Vec::new();
        for id in operation.outputs.iter().flatten() {
            let root = root(id);
            if let Some(&buffer) = buffers.get(&root)
                && made.insert(root, ()).is_none()
            {
                makes.push(buffer);
            }
        }
        if workspaces[place] > 0 {
            makes.push(tasks.buffer(Buffer {
                bytes: aligned(workspaces[place]),
                ..Buffer::default()
            })?);
        }
        let mut after: Vec<usize> = (operation.inputs.iter().flatten())
            .filter_map(|&id| producers[owner(program, id).index()])
            .collect();
        after.extend(updates.before(place));
        let over: Vec<(usize, [usize; 1])> = (operation.op.in_place().into_iter())
            .filter_map(|(output, input)| {
                let output = operation.outputs.get(output).copied().flatten()?;
                let input = operation.inputs.get(input).copied().flatten()?;
                let input = *buffers.get(&root(&input))?;
                Some((*buffers.get(&root(&output))?, [input]))
            })
            .collect();
        let overwrites: Vec<(usize, &[usize])> =
            over.iter().map(|(made, over)| (*made, &over[..])).collect();
        let is_result = (operation.outputs.iter().flatten()).any(|id| {
            matches!(program.value(*id).source, Source::Update(_)) || lives[root(id).index()]
        });
        tasks.task(Task {
            reads: &reads,
            makes: &makes,
            after: &after,
            after_is_all: false,
            eager: operation.op.is_eager(),
            is_result,
            overwrites: &overwrites,
        })?;
    }
    let effort = EFFORT * tasks.len() as u64;
    Ok(search(&tasks, effort))
}

/// The tensor that an operation wrote, seen through views.
fn owner(program: &Program, mut id: TensorId) -> TensorId {
    while let Source::View(of) = program.value(id).source {
        id = of;
    }
    id
}

/// Which operations must be done before one writes over what they read.
struct Updates {
    before: BTreeMap<usize, Vec<usize>>,
}

impl Updates {
    fn new(program: &Program, roots: &[TensorId]) -> Self {
        let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        // Readers so far of the present bytes of a root.
        let mut readers: BTreeMap<TensorId, Vec<usize>> = BTreeMap::new();
        for (place, operation) in program.operations.iter().enumerate() {
            for id in operation.outputs.iter().flatten() {
                if matches!(program.value(*id).source, Source::Update(_)) {
                    let root = roots[id.index()];
                    let old = readers.remove(&root).unwrap_or_default();
                    before.entry(place).or_default().extend(old);
                }
            }
            for id in operation.inputs.iter().flatten() {
                readers.entry(roots[id.index()]).or_default().push(place);
            }
        }
        Updates { before }
    }

    fn before(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        let places = self.before.get(&place).into_iter().flatten();
        places.copied().filter(move |&other| other != place)
    }
}
