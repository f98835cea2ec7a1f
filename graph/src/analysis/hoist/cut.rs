//! Which candidates to move, so that the fewest bytes live from the forward into the backward half.
//!
//! Every candidate is moved or stays, and what a moved one reads of others is moved too. Costs are
//! those of buffers: a saved activation while a candidate that reads it stays; what a moved candidate
//! makes while something that reads it stays. That is a minimum cut: moved candidates lie on the
//! source's side.
//!
//! ```text
//! source ──gain──► activation ──∞──► each candidate that reads it
//! candidate ──bytes──► what it makes ──∞──► each candidate that reads it, and the sink for others
//! candidate ──∞──► the candidates that it reads from
//! ```
//!
//! Of all minimum cuts the one that moves least is taken, so that nothing moves without a gain.

use super::{Context, Early, MASKED, Move};
use crate::analysis::min_cut::{Network, Vertex};
use crate::analysis::partition::Half;
use crate::analysis::saved::{Reader, shape_arithmetic};
use crate::ir::{GraphError, ValueId};
use petgraph::unionfind::UnionFind;
use std::collections::BTreeMap;

/// Work that is moved together, and what that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hoist {
    /// What is moved, each behind what it reads.
    pub moves: Vec<Move>,
    /// Roots of the saved activations that none of the moved work reads in backward any longer, nor
    /// anything else but contractions that are to be rewritten.
    pub released: Vec<ValueId>,
    /// Roots of what the moved nodes make and the backward half reads; masks have no value yet.
    pub made: Vec<ValueId>,
    /// Bytes saved of the released activations, before.
    pub before: i64,
    /// Bytes saved in their place: of what is moved, and of what the contractions keep.
    pub after: i64,
}

/// Candidates that belong together beyond this number are left alone: a minimum cut is no work in
/// linear time. An activation function has a dozen, but what is read by all layers joins theirs.
const LARGEST: usize = 4096;

/// A saved activation that moving could release.
struct Activation {
    root: ValueId,
    /// Saved bytes while a candidate reads it in backward, and once none does.
    now: i64,
    then: i64,
    /// The candidates that read it.
    readers: Vec<usize>,
}

/// What a candidate makes.
struct Made {
    maker: usize,
    /// `None` for a mask.
    root: Option<ValueId>,
    /// `None` where it must stay in the backward half.
    bytes: Option<i64>,
    /// The candidates that read it.
    readers: Vec<usize>,
    /// Whether something else reads it as well.
    leaves: bool,
}

/// The candidates of a graph, by number, and the buffers around them.
struct Work {
    moves: Vec<Move>,
    /// By candidate: those that it reads from.
    reads: Vec<Vec<usize>>,
    activations: Vec<Activation>,
    made: Vec<Made>,
}

/// The moves that pay, in the order of their first work.
///
/// # Errors
/// [`GraphError::Cycle`] where the graph has no order.
pub fn hoists(context: &Context<'_>) -> Result<Vec<Hoist>, GraphError> {
    let work = Work::new(context)?;
    let mut joined = UnionFind::<usize>::new(work.moves.len());
    work.join(&mut joined, |_| true);
    let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, label) in joined.into_labeling().into_iter().enumerate() {
        parts.entry(label).or_default().push(number);
    }
    let moved = work.moved(parts.into_values().filter(|part| part.len() <= LARGEST));
    Ok(work.groups(&moved))
}

impl Work {
    fn new(context: &Context<'_>) -> Result<Self, GraphError> {
        let Context { graph, .. } = *context;
        let order = graph.topological_order()?;
        let early = Early::new(context, &order);
        let mut work = Work {
            moves: Vec::new(),
            reads: Vec::new(),
            activations: Vec::new(),
            made: Vec::new(),
        };
        let mut numbers: Vec<Option<usize>> = vec![None; graph.node_count()];
        for &id in order.iter().filter(|&&id| early.is_candidate(id)) {
            numbers[id.index()] = Some(work.moves.len());
            let from = graph.predecessors(id).filter_map(|p| numbers[p.index()]);
            work.reads.push(from.collect());
            work.moves.push(Move::Node(id));
        }
        let (whole, shapes) = (work.moves.len(), shape_arithmetic(graph));
        for root in context.buffers.roots(graph) {
            let Some(producer) = graph.producer(root) else {
                continue;
            };
            let maker = numbers[producer.index()].filter(|&number| number < whole);
            let forward = context.partition.half(producer) == Half::Forward;
            let forward = forward && !graph.is_constant(root);
            if shapes[root.index()] || maker.is_none() && !forward {
                continue;
            }
            let readers = context.readers(root);
            for reader in readers.iter().filter(|r| early.masks(context, r)) {
                let from = [Some(producer), graph.producer(reader.value)];
                let from = from.into_iter().flatten();
                let from = from.filter_map(|node| numbers[node.index()]).collect();
                numbers[reader.node.index()] = Some(work.moves.len());
                // Of four bytes an element is one.
                let bytes = context.sizes.of(root).map(|bytes| bytes / 4);
                work.mask(reader, from, bytes);
            }
            let of = |reader: &Reader| {
                let number = numbers[reader.node.index()]?;
                let reads = number < whole || reader.slot == Some(MASKED);
                reads.then_some(number)
            };
            let members = context.buffers.members(root);
            let lives = members.iter().any(|&value| graph.value(value).is_output);
            let bytes = context.sizes.of(root).filter(|_| !lives);
            let by_candidates: Vec<usize> = readers.iter().filter_map(of).collect();
            let others = readers.iter().filter(|reader| of(reader).is_none());
            if let Some(maker) = maker {
                work.made.push(Made {
                    maker,
                    root: Some(root),
                    bytes,
                    readers: by_candidates,
                    leaves: others.count() > 0,
                });
            } else if let Some((now, then)) = held(context, root, bytes, others)
                && !by_candidates.is_empty()
            {
                work.activations.push(Activation {
                    root,
                    now,
                    then,
                    readers: by_candidates,
                });
            }
        }
        Ok(work)
    }

    /// Adds a candidate that makes a mask.
    fn mask(&mut self, reader: &Reader, from: Vec<usize>, bytes: Option<i64>) {
        self.made.push(Made {
            maker: self.moves.len(),
            root: None,
            bytes,
            readers: Vec::new(),
            leaves: true,
        });
        self.moves.push(Move::Mask(reader.node));
        self.reads.push(from);
    }

    /// Joins candidates that depend on each other's place, among those that are asked for.
    fn join(&self, joined: &mut UnionFind<usize>, among: impl Fn(usize) -> bool) {
        for (number, reads) in self.reads.iter().enumerate() {
            for &from in reads.iter().filter(|_| among(number)) {
                joined.union(number, from);
            }
        }
        for activation in &self.activations {
            let mut readers = activation.readers.iter();
            let all = activation.readers.iter().all(|&reader| among(reader));
            if let Some(&first) = readers.next().filter(|_| all) {
                readers.for_each(|&other| {
                    joined.union(first, other);
                });
            }
        }
    }

    /// By candidate: whether it is moved.
    fn moved(&self, parts: impl Iterator<Item = Vec<usize>>) -> Vec<bool> {
        let mut moved = vec![false; self.moves.len()];
        let mut activations: BTreeMap<usize, Vec<&Activation>> = BTreeMap::new();
        for activation in &self.activations {
            for &reader in activation.readers.iter().take(1) {
                activations.entry(reader).or_default().push(activation);
            }
        }
        let mut made: Vec<Vec<&Made>> = vec![Vec::new(); self.moves.len()];
        for buffer in &self.made {
            made[buffer.maker].push(buffer);
        }
        for part in parts {
            let of_part: Vec<&Activation> = (part.iter())
                .filter_map(|number| activations.get(number))
                .flatten()
                .copied()
                .collect();
            if !of_part.is_empty() {
                for number in self.cut(&part, &of_part, &made) {
                    moved[number] = true;
                }
            }
        }
        moved
    }

    /// The candidates of a part that a minimum cut moves, the fewest that do.
    fn cut(&self, part: &[usize], activations: &[&Activation], made: &[Vec<&Made>]) -> Vec<usize> {
        let capacity = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let gain = |activation: &Activation| capacity(activation.now - activation.then);
        let mut network = Network::default();
        let (source, sink) = (network.vertex(), network.vertex());
        let places: BTreeMap<usize, Vertex> = (part.iter())
            .map(|&number| (number, network.vertex()))
            .collect();
        for activation in activations.iter().filter(|a| gain(a) > 0) {
            let node = network.vertex();
            network.edge(source, node, gain(activation));
            for reader in activation.readers.iter().filter_map(|r| places.get(r)) {
                network.bind(node, *reader);
            }
        }
        for (&number, &place) in &places {
            for from in self.reads[number].iter().filter_map(|f| places.get(f)) {
                network.bind(place, *from);
            }
            for buffer in &made[number] {
                if buffer.bytes == Some(0) {
                    continue;
                }
                let node = network.vertex();
                match buffer.bytes {
                    Some(bytes) => network.edge(place, node, capacity(bytes)),
                    None => network.bind(place, node),
                }
                for reader in buffer.readers.iter().filter_map(|r| places.get(r)) {
                    network.bind(node, *reader);
                }
                if buffer.leaves || buffer.bytes.is_none() {
                    network.bind(node, sink);
                }
            }
        }
        let reached = network.source_side(source, sink);
        let moved = places.iter().filter(|(_, place)| reached[place.index()]);
        moved.map(|(&number, _)| number).collect()
    }

    /// What is moved, divided into what belongs together.
    fn groups(&self, moved: &[bool]) -> Vec<Hoist> {
        let mut joined = UnionFind::<usize>::new(self.moves.len());
        self.join(&mut joined, |number| moved[number]);
        let labels = joined.into_labeling();
        let mut groups: BTreeMap<usize, Hoist> = BTreeMap::new();
        let mut group_of = |number: usize, then: &mut dyn FnMut(&mut Hoist)| {
            let empty = || Hoist {
                moves: Vec::new(),
                released: Vec::new(),
                made: Vec::new(),
                before: 0,
                after: 0,
            };
            then(groups.entry(labels[number]).or_insert_with(empty));
        };
        for (number, &work) in self.moves.iter().enumerate() {
            if moved[number] {
                group_of(number, &mut |group| group.moves.push(work));
            }
        }
        for activation in &self.activations {
            if activation.readers.iter().all(|&reader| moved[reader]) {
                group_of(activation.readers[0], &mut |group| {
                    group.released.push(activation.root);
                    group.before += activation.now;
                    group.after += activation.then;
                });
            }
        }
        for buffer in self.made.iter().filter(|buffer| moved[buffer.maker]) {
            if buffer.leaves || buffer.readers.iter().any(|&reader| !moved[reader]) {
                group_of(buffer.maker, &mut |group| {
                    group.made.extend(buffer.root);
                    group.after += buffer.bytes.unwrap_or(0);
                });
            }
        }
        let mut found: Vec<Hoist> = groups.into_values().collect();
        found.sort_by_key(|group| group.moves.first().copied());
        found
    }
}

/// Saved bytes of a buffer of the forward half while a candidate reads it in backward, and once none
/// does; `others` are its other readers. `None` where one of those keeps it in any case.
fn held<'r>(
    context: &Context<'_>,
    root: ValueId,
    bytes: Option<i64>,
    others: impl Iterator<Item = &'r Reader>,
) -> Option<(i64, i64)> {
    let mut contracts = false;
    for reader in others {
        if !context.contracts(reader) {
            return None;
        }
        contracts = true;
    }
    match contracts {
        true => context.held.get(&root).map(|held| (held.now, held.then)),
        false => Some((bytes?, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::NodeId;

    /// Numbers from SplitMix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (bits ^ (bits >> 31)) % bound
        }

        fn some_of(&mut self, numbers: std::ops::Range<usize>) -> Vec<usize> {
            numbers.filter(|_| self.below(3) == 0).collect()
        }
    }

    fn work(random: &mut Random, count: usize) -> Work {
        let mut work = Work {
            moves: Vec::new(),
            reads: Vec::new(),
            activations: Vec::new(),
            made: Vec::new(),
        };
        for number in 0..count {
            work.moves.push(Move::Node(NodeId::from_index(number)));
            work.reads.push(random.some_of(0..number));
        }
        for number in 0..count {
            let readers = (number + 1..count).filter(|&later| work.reads[later].contains(&number));
            work.made.push(Made {
                maker: number,
                root: None,
                bytes: (random.below(8) > 0).then(|| random.below(6) as i64),
                readers: readers.collect(),
                leaves: random.below(2) == 0,
            });
        }
        for root in 0..count {
            let then = random.below(3) as i64;
            work.activations.push(Activation {
                root: ValueId::from_index(root),
                now: then + random.below(8) as i64,
                then,
                readers: random.some_of(0..count),
            });
        }
        work.activations.retain(|a| !a.readers.is_empty());
        work
    }

    /// The bytes between the halves; `None` where something is moved that must stay.
    fn cost(work: &Work, moved: impl Fn(usize) -> bool) -> Option<i64> {
        let mut cost = 0;
        for activation in &work.activations {
            let released = activation.readers.iter().all(|&reader| moved(reader));
            cost += if released {
                activation.then
            } else {
                activation.now
            };
        }
        for buffer in work.made.iter().filter(|buffer| moved(buffer.maker)) {
            let crosses = buffer.leaves || buffer.readers.iter().any(|&reader| !moved(reader));
            let bytes = buffer.bytes?;
            cost += if crosses { bytes } else { 0 };
        }
        Some(cost)
    }

    #[test]
    fn no_choice_is_cheaper_and_none_as_cheap_moves_less() {
        let mut random = Random(1);
        let (mut moving, mut idle) = (0, 0);
        for _ in 0..400 {
            let count = 1 + random.below(9) as usize;
            let work = work(&mut random, count);
            let moved = work.moved(std::iter::once((0..count).collect()));
            let chosen = cost(&work, |number| moved[number]);
            let weight = moved.iter().filter(|&&m| m).count();
            let closed = |set: u32| {
                let mut reads = work.reads.iter().enumerate();
                reads.all(|(number, from)| {
                    set >> number & 1 == 0 || from.iter().all(|&f| set >> f & 1 == 1)
                })
            };
            assert!(closed(
                (0..count).filter(|&n| moved[n]).map(|n| 1 << n).sum()
            ));
            let costs = (0..1u32 << count).filter(|&set| closed(set));
            let costs = costs.filter_map(|set| {
                Some((
                    cost(&work, |n| set >> n & 1 == 1)?,
                    set.count_ones() as usize,
                ))
            });
            assert_eq!(chosen.map(|cost| (cost, weight)), costs.min());
            // What the groups say adds up to the difference.
            let stays = cost(&work, |_| false).unwrap_or(0);
            let groups = work.groups(&moved);
            let freed: i64 = groups.iter().map(|g| g.before - g.after).sum();
            assert_eq!(Some(stays - freed), chosen);
            assert!(groups.iter().all(|g| g.before > g.after));
            moving += usize::from(weight > 0);
            idle += usize::from(weight == 0);
        }
        assert!(moving > 50 && idle > 50, "{moving} moving, {idle} idle");
    }
}
