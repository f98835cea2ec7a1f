//! Orders of tasks: properties on random tasks, and all orders of small ones.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;
use velora_graph::analysis::order::{Buffer, Order, Task, TaskError, Tasks, order, search};

/// A task of a test: it makes some buffers and reads what earlier tasks made.
#[derive(Clone, Debug, Default)]
struct Made {
    /// The sizes of what it makes, and whether that lives to the end.
    outputs: Vec<(i64, bool)>,
    /// The numbers of the buffers that it reads.
    reads: Vec<usize>,
    after: Vec<usize>,
    eager: bool,
    in_place: bool,
}

/// The same twice: as tasks, and as plain lists for the model of the test.
#[derive(Debug)]
struct Case {
    tasks: Tasks,
    made: Vec<Made>,
    /// By buffer: its maker, its size, whether it lives to the end.
    buffers: Vec<(usize, i64, bool)>,
}

impl Case {
    fn new(made: Vec<Made>) -> Self {
        let mut tasks = Tasks::default();
        let mut buffers = Vec::new();
        for (index, task) in made.iter().enumerate() {
            let mut makes = Vec::new();
            for &(bytes, lives_to_end) in &task.outputs {
                let buffer = Buffer {
                    bytes,
                    lives_to_end,
                    born_before: false,
                };
                makes.push(tasks.buffer(buffer).unwrap());
                buffers.push((index, bytes, lives_to_end));
            }
            let over: Vec<_> = makes.iter().map(|&m| (m, task.reads.as_slice())).collect();
            let number = tasks.task(Task {
                reads: &task.reads,
                makes: &makes,
                after: &task.after,
                eager: task.eager,
                is_result: task.outputs.iter().any(|o| o.1),
                overwrites: if task.in_place { &over } else { &[] },
                ..Task::default()
            });
            assert_eq!(number, Ok(index));
        }
        Case {
            tasks,
            made,
            buffers,
        }
    }

    /// The peak, from the definition: spans first, then sums.
    fn peak(&self, order: &[usize]) -> i64 {
        let mut place = vec![0; order.len()];
        for (step, &task) in order.iter().enumerate() {
            place[task] = step;
        }
        let mut last: Vec<usize> = Vec::new();
        for &(maker, _, lives_to_end) in &self.buffers {
            last.push(if lives_to_end {
                order.len()
            } else {
                place[maker]
            });
        }
        for (task, made) in self.made.iter().enumerate() {
            for &read in &made.reads {
                last[read] = last[read].max(place[task]);
            }
        }
        let mut peak = 0;
        for (step, &task) in order.iter().enumerate() {
            let spans = self.buffers.iter().zip(&last);
            let alive = spans.filter(|((maker, ..), last)| place[*maker] <= step && step <= **last);
            let mut live: i64 = alive.map(|((_, bytes, _), _)| bytes).sum();
            let mut taken: Vec<usize> = Vec::new();
            for &(bytes, _) in self.made[task]
                .outputs
                .iter()
                .filter(|_| self.made[task].in_place)
            {
                let over = self.made[task].reads.iter().copied().find(|&read| {
                    last[read] == step && self.buffers[read].1 == bytes && !taken.contains(&read)
                });
                if let Some(over) = over {
                    taken.push(over);
                    live -= bytes;
                }
            }
            peak = peak.max(live);
        }
        peak
    }

    fn is_order(&self, order: &[usize]) -> bool {
        let mut place = vec![usize::MAX; self.made.len()];
        for (step, &task) in order.iter().enumerate() {
            if place[task] != usize::MAX {
                return false;
            }
            place[task] = step;
        }
        order.len() == self.made.len()
            && self.made.iter().enumerate().all(|(task, made)| {
                let makers = made.reads.iter().map(|&r| self.buffers[r].0);
                makers
                    .chain(made.after.iter().copied())
                    .all(|t| place[t] < place[task])
            })
    }

    /// The lowest peak of all orders.
    fn lowest(&self) -> i64 {
        let mut lowest = i64::MAX;
        self.all(&mut Vec::new(), &mut |order| {
            lowest = lowest.min(self.peak(order))
        });
        lowest
    }

    fn all(&self, order: &mut Vec<usize>, each: &mut impl FnMut(&[usize])) {
        if order.len() == self.made.len() {
            return each(order);
        }
        for task in 0..self.made.len() {
            let made = &self.made[task];
            let mut needs = made
                .reads
                .iter()
                .map(|&r| self.buffers[r].0)
                .chain(made.after.iter().copied());
            if !order.contains(&task) && needs.all(|t| order.contains(&t)) {
                order.push(task);
                self.all(order, each);
                order.pop();
            }
        }
    }
}

/// Random tasks, where some sizes recur, so that there is something to write over.
fn cases(most: usize) -> impl Strategy<Value = Case> {
    let size = prop_oneof![Just(0i64), Just(64), Just(256), 1i64..2000];
    let outputs = prop::collection::vec((size, prop::bool::weighted(0.1)), 0..3);
    let task = (
        outputs,
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        prop::collection::vec(any::<prop::sample::Index>(), 0..2),
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    prop::collection::vec(task, 1..most).prop_map(|drawn| {
        let mut made = Vec::new();
        let mut buffers = 0;
        for (index, (outputs, reads, after, eager, in_place)) in drawn.into_iter().enumerate() {
            let pick = |from: Vec<prop::sample::Index>, count: usize| {
                let from = from.iter().filter(|_| count > 0);
                from.map(|i| i.index(count)).collect::<Vec<usize>>()
            };
            let reads = pick(reads, buffers);
            buffers += outputs.len();
            made.push(Made {
                outputs,
                reads,
                after: if index % 3 == 0 {
                    pick(after, index)
                } else {
                    Vec::new()
                },
                eager,
                in_place,
            });
        }
        Case::new(made)
    })
}

fn check(case: &Case, found: &Order, below: i64) -> Result<(), TestCaseError> {
    let given: Vec<usize> = (0..case.made.len()).collect();
    prop_assert!(case.is_order(&found.order), "{:?}", found.order);
    prop_assert_eq!(found.given_peak, case.peak(&given));
    prop_assert_eq!(found.peak, case.peak(&found.order));
    let live = case.tasks.live(&found.order);
    prop_assert_eq!(live.into_iter().max(), Some(found.peak));
    prop_assert!(found.peak <= below, "{} after {below}", found.peak);
    Ok(())
}

proptest! {
    #[test]
    fn every_task_comes_once_after_what_it_reads_and_the_peak_is_counted_right(case in cases(60)) {
        let few = order(&case.tasks);
        check(&case, &few, i64::MAX)?;
        let deep = search(&case.tasks, 20_000);
        check(&case, &deep, few.peak.min(few.given_peak))?;
        prop_assert_eq!(&deep, &search(&case.tasks, 20_000));
    }
}

/// Numbers from a fixed seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % end as u64) as usize
    }
}

/// Few enough tasks for all their orders.
fn small(numbers: &mut Numbers) -> Case {
    let count = 3 + numbers.below(6);
    let mut made: Vec<Made> = Vec::new();
    for index in 0..count {
        let reads = (0..numbers.below(4).min(index))
            .map(|_| numbers.below(index))
            .collect();
        made.push(Made {
            outputs: vec![(1 + numbers.below(20) as i64, numbers.below(10) == 0)],
            reads,
            in_place: numbers.below(2) == 0,
            ..Made::default()
        });
    }
    Case::new(made)
}

#[test]
fn of_small_tasks_the_search_finds_the_lowest_peak() {
    let mut numbers = Numbers(7);
    let (mut few, all) = (0, 300);
    for case in 0..all {
        let small = small(&mut numbers);
        let lowest = small.lowest();
        few += usize::from(order(&small.tasks).peak == lowest);
        let deep = search(&small.tasks, 100_000);
        assert_eq!(deep.peak, lowest, "case {case}: {:?}", small.made);
    }
    println!(
        "{few} of {all} orders of the four candidates have the lowest peak, all of the search"
    );
}

/// A chain with a mask for each link: `mask i = f(x i)` is cheap to keep, `x i` is not, and backward
/// needs the mask. The order given makes all masks at the end of forward.
#[test]
fn what_frees_much_moves_ahead_of_the_peak() {
    let links = 40;
    let mut made = vec![Made {
        outputs: vec![(1000, false)],
        ..Made::default()
    }];
    for link in 1..links {
        made.push(Made {
            outputs: vec![(1000, false)],
            reads: vec![link - 1],
            ..Made::default()
        });
    }
    for link in 0..links {
        made.push(Made {
            outputs: vec![(10, false)],
            reads: vec![link],
            ..Made::default()
        });
    }
    for link in (0..links).rev() {
        made.push(Made {
            outputs: vec![(1000, false)],
            reads: match link + 1 == links {
                true => vec![links + link],
                false => vec![links + link, 2 * links + (links - 2 - link)],
            },
            ..Made::default()
        });
    }
    let case = Case::new(made);
    let found = search(&case.tasks, 1_000_000);
    assert!(case.is_order(&found.order));
    // Forward needs two links and the masks before; backward the same, and the mask in use.
    assert_eq!(found.given_peak, 40 * 1000 + 10);
    assert_eq!(found.peak, 2000 + 10 * 39);
}

#[test]
fn what_cannot_be_ordered_is_refused_by_name() {
    let mut tasks = Tasks::default();
    let buffer = tasks.buffer(Buffer::default()).unwrap();
    let read = |tasks: &mut Tasks, reads: &[usize], makes: &[usize], after: &[usize]| {
        tasks.task(Task {
            reads,
            makes,
            after,
            ..Task::default()
        })
    };
    let task = 0;
    assert_eq!(
        read(&mut tasks, &[buffer], &[], &[]),
        Err(TaskError::Unmade { task, buffer })
    );
    assert_eq!(
        read(&mut tasks, &[buffer], &[buffer], &[]),
        Err(TaskError::Unmade { task, buffer })
    );
    assert_eq!(
        read(&mut tasks, &[], &[buffer; 2], &[]),
        Err(TaskError::MadeTwice { task, buffer })
    );
    assert_eq!(
        read(&mut tasks, &[], &[], &[0]),
        Err(TaskError::Unordered { task, other: 0 })
    );
    let missing = TaskError::NoBuffer {
        task,
        buffer: 1,
        buffers: 1,
    };
    assert_eq!(read(&mut tasks, &[1], &[], &[]), Err(missing));
    let huge = Buffer {
        bytes: i64::MAX,
        ..Buffer::default()
    };
    assert!(tasks.buffer(huge).is_ok());
    assert_eq!(
        tasks.buffer(Buffer { bytes: 1, ..huge }),
        Err(TaskError::Size)
    );
    assert_eq!(
        tasks.buffer(Buffer { bytes: -1, ..huge }),
        Err(TaskError::Size)
    );
    assert_eq!(read(&mut tasks, &[], &[buffer], &[]), Ok(0));
    assert_eq!(order(&Tasks::default()).order, Vec::<usize>::new());
    assert_eq!(search(&Tasks::default(), 1000).order, Vec::<usize>::new());
}

#[test]
fn what_was_there_before_counts_nothing() {
    let mut tasks = Tasks::default();
    let mut buffer = |bytes, born_before| {
        tasks.buffer(Buffer {
            bytes,
            lives_to_end: false,
            born_before,
        })
    };
    let (parameter, product) = (buffer(100, true).unwrap(), buffer(10, false).unwrap());
    let made = tasks.task(Task {
        reads: &[parameter],
        makes: &[product],
        overwrites: &[(product, &[parameter])],
        ..Task::default()
    });
    assert_eq!(made, Ok(0));
    assert_eq!(order(&tasks).peak, 10);
}
