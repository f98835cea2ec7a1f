//! Places in the arena: no overlap, near to the bound, on random buffers and on those of real graphs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::shapes::{Context, infer};
use velora_runtime::plan::arena::{Interval, PlaceError, Placement, place, place_within};

/// What every placement promises, checked from the definition.
fn check(intervals: &[Interval], align: u64, placed: &Placement) {
    let rounded = |bytes: u64| bytes.div_ceil(align) * align;
    let live = |size: &dyn Fn(u64) -> u64| {
        let steps = intervals.iter().map(|i| i.first);
        let sums = steps.map(|step| {
            let alive = intervals
                .iter()
                .filter(|i| i.first <= step && step <= i.last);
            alive.map(|i| size(i.bytes)).sum::<u64>()
        });
        sums.max().unwrap_or(0)
    };
    assert_eq!(placed.lower_bound, live(&rounded));
    assert_eq!(placed.raw_bound, live(&|bytes| bytes));
    assert!(placed.bytes >= placed.lower_bound);
    assert_eq!(placed.offsets.len(), intervals.len());
    let ends = intervals
        .iter()
        .zip(&placed.offsets)
        .map(|(i, offset)| offset + rounded(i.bytes));
    assert_eq!(placed.bytes, ends.max().unwrap_or(0));
    for (index, (a, offset)) in intervals.iter().zip(&placed.offsets).enumerate() {
        assert_eq!(offset % align, 0);
        for (b, other) in intervals[..index].iter().zip(&placed.offsets) {
            let meet = a.first <= b.last && b.first <= a.last;
            let share = *offset < other + b.bytes && *other < offset + a.bytes;
            let have = a.bytes > 0 && b.bytes > 0;
            assert!(
                !(meet && share && have),
                "{a:?} at {offset} and {b:?} at {other}"
            );
        }
    }
}

fn intervals(most: usize, steps: usize) -> impl Strategy<Value = Vec<Interval>> {
    let size = prop_oneof![Just(0u64), Just(64), Just(4096), 1u64..5000];
    let interval = (size, 0..steps, 0..steps).prop_map(|(bytes, a, b)| Interval {
        bytes,
        first: a.min(b),
        last: a.max(b),
    });
    prop::collection::vec(interval, 0..most)
}

proptest! {
    #[test]
    fn buffers_that_meet_share_no_byte(intervals in intervals(120, 50), align in 1u64..100) {
        let placed = place_within(&intervals, align, 300_000).unwrap();
        check(&intervals, align, &placed);
        prop_assert_eq!(&placed, &place_within(&intervals, align, 300_000).unwrap());
    }

    /// Steps far apart, and the last one there is.
    #[test]
    fn numbers_of_steps_do_not_matter(intervals in intervals(30, 20), stretch in 1usize..1_000_000) {
        let far = |i: &Interval| Interval {
            first: i.first * stretch,
            last: if i.last == 19 { usize::MAX } else { i.last * stretch },
            ..*i
        };
        let stretched: Vec<Interval> = intervals.iter().map(far).collect();
        let placed = place_within(&stretched, 64, 100_000).unwrap();
        prop_assert_eq!(placed.offsets, place_within(&intervals, 64, 100_000).unwrap().offsets);
    }
}

/// The smallest region, from all ways to lay buffers on top of each other in the order of their offsets:
/// some way gives it, namely a best placement with each buffer sunk as low as it goes.
fn smallest(intervals: &[Interval]) -> u64 {
    fn next(
        intervals: &[Interval],
        placed: &mut Vec<(usize, u64)>,
        (lowest, top): (u64, u64),
        best: &mut u64,
    ) {
        if placed.len() == intervals.len() {
            *best = top;
            return;
        }
        for (index, block) in intervals.iter().enumerate() {
            if placed.iter().any(|p| p.0 == index) {
                continue;
            }
            let below = placed.iter().map(|&(other, end)| (&intervals[other], end));
            let meets = below.filter(|(o, _)| o.first <= block.last && block.first <= o.last);
            let offset = meets.map(|(_, end)| end).max().unwrap_or(0);
            let top = top.max(offset + block.bytes);
            if offset < lowest || top >= *best {
                continue;
            }
            placed.push((index, offset + block.bytes));
            next(intervals, placed, (offset, top), best);
            placed.pop();
        }
    }
    let mut best = u64::MAX;
    next(intervals, &mut Vec::new(), (0, 0), &mut best);
    best
}

/// Numbers from a fixed seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

#[test]
fn few_buffers_get_the_smallest_region() {
    let mut numbers = Numbers(3);
    for _ in 0..300 {
        let count = 1 + numbers.below(7);
        let intervals: Vec<Interval> = (0..count)
            .map(|_| {
                let first = numbers.below(8) as usize;
                Interval {
                    bytes: 1 + numbers.below(9),
                    first,
                    last: first + numbers.below(4) as usize,
                }
            })
            .collect();
        let placed = place_within(&intervals, 1, 200_000).unwrap();
        check(&intervals, 1, &placed);
        assert_eq!(placed.bytes, smallest(&intervals), "{intervals:?}");
    }
}

/// Buffers (bytes, first and last step) of which no placement reaches the bound: rare among those drawn as
/// above, less so among those that leave no byte free at any step, like the last two.
const ABOVE: [&str; 5] = [
    "1 2 4, 6 7 8, 8 1 2, 6 4 6, 5 0 1, 6 3 4, 7 6 7, 1 2 3",
    "8 2 2, 2 4 6, 5 6 8, 7 7 10, 1 3 6, 5 3 6, 7 6 8, 6 3 5, 8 0 3",
    "4 1 5, 6 5 8, 4 3 4, 4 4 5, 1 6 7, 1 0 3, 8 6 8, 1 4 8, 5 0 0, 8 0 3",
    "10 0 2, 2 0 0, 1 1 1, 1 1 3, 1 2 4, 4 3 5, 4 3 5, 1 3 3, 1 3 4, 2 4 5, 2 5 5",
    "7 0 0, 3 0 2, 2 0 5, 5 1 3, 1 1 4, 1 1 1, 1 2 5, 2 3 4, 1 3 3, 6 4 5, 3 5 5",
];

/// Intervals from their bytes, first and last steps.
fn parse<'t>(all: impl Iterator<Item = &'t str>) -> Vec<Interval> {
    let one = |one: &str| {
        let mut numbers = one.split_whitespace().map(|n| n.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        Interval {
            bytes: next(),
            first: next() as usize,
            last: next() as usize,
        }
    };
    all.map(one).collect()
}

/// Where the bound is out of reach, the least above it is found: with small numbers, with large ones, of
/// which no limit in between has a placement, and beside other buffers.
#[test]
fn what_lies_above_the_bound_lies_there_by_need() {
    for case in ABOVE {
        let few = parse(case.split(','));
        let least = smallest(&few);
        for scale in [1, 1000] {
            let scaled = few.iter().map(|i| Interval {
                bytes: i.bytes * scale,
                ..*i
            });
            let later = few.iter().map(|i| Interval {
                bytes: i.bytes,
                first: i.first + 20,
                last: i.last + 20,
            });
            let intervals: Vec<Interval> = scaled.chain(later).collect();
            let placed = place_within(&intervals, 1, 20_000_000).unwrap();
            check(&intervals, 1, &placed);
            assert!(placed.bytes > placed.lower_bound, "{case}");
            assert_eq!(placed.bytes, least * scale, "{case}");
        }
    }
}

/// Buffers that fill a region without a gap, from cutting it again and again, at a step or at a byte.
#[test]
fn what_fills_a_region_is_placed_in_it() {
    let (steps, bytes) = (30, 1000);
    let mut numbers = Numbers(5);
    for _ in 0..300 {
        let mut pieces = vec![(0, steps, bytes)];
        while pieces.len() < 30 {
            let piece = numbers.below(pieces.len() as u64) as usize;
            let (first, end, height) = pieces[piece];
            let (length, in_time) = match numbers.below(2) {
                0 => (end - first, true),
                _ => (height, false),
            };
            if length < 2 {
                continue;
            }
            let cut = 1 + numbers.below(length - 1);
            if in_time {
                pieces[piece] = (first, first + cut, height);
                pieces.push((first + cut, end, height));
            } else {
                pieces[piece] = (first, end, cut);
                pieces.push((first, end, height - cut));
            }
        }
        let intervals: Vec<Interval> = (pieces.iter())
            .map(|&(first, end, bytes)| Interval {
                bytes,
                first: first as usize,
                last: end as usize - 1,
            })
            .collect();
        let placed = place_within(&intervals, 1, 2_000_000).unwrap();
        check(&intervals, 1, &placed);
        assert_eq!(placed.bytes, bytes, "{intervals:?}");
    }
}

#[test]
fn what_cannot_be_placed_is_refused() {
    let interval = |bytes, first, last| Interval { bytes, first, last };
    let backwards = place(&[interval(1, 0, 0), interval(1, 5, 4)], 64);
    let (buffer, first, last) = (1, 5, 4);
    assert_eq!(
        backwards,
        Err(PlaceError::Backwards {
            buffer,
            first,
            last
        })
    );
    assert_eq!(
        place(&[interval(u64::MAX, 0, 0)], 64),
        Err(PlaceError::TooLarge)
    );
    assert_eq!(
        place(&[interval(1 << 62, 0, 0); 2], 64),
        Err(PlaceError::TooLarge)
    );
    assert_eq!(place(&[], 64).map(|p| (p.bytes, p.lower_bound)), Ok((0, 0)));
    assert_eq!(place(&[interval(3, 0, 0)], 0).map(|p| p.bytes), Ok(3));
}

/// The buffers of a graph, with what is written over each other as one.
fn buffers_of(path: &Path, size: i64) -> Vec<Interval> {
    let model = Model::from_proto(read(path, UnknownFields::Allow).unwrap()).unwrap();
    let graph = &model.graph;
    let context = Context {
        opsets: &model.shell.opset_import,
        functions: &model.shell.functions,
        sizes: &BTreeMap::new(),
    };
    let sizes = Sizes::new(graph, &infer(graph, &context).unwrap(), |_| size);
    let lifetimes = Lifetimes::new(graph, &Buffers::new(graph), &sizes, graph.order());
    let mut of = BTreeMap::new();
    let mut found: Vec<Interval> = Vec::new();
    for root in lifetimes.buffers() {
        let (first, last) = lifetimes.span(root).unwrap();
        let over = lifetimes.takes_over(root).map(|old| of[&old]);
        let index = over.unwrap_or(found.len());
        of.insert(root, index);
        match over {
            Some(index) => found[index].last = found[index].last.max(last),
            None => found.push(Interval {
                bytes: sizes.of(root).unwrap() as u64,
                first,
                last,
            }),
        }
    }
    found
}

fn models() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let folders = ["aot", "ort"].map(|folder| models.join(folder));
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|f| f.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    assert!(files.len() > 20, "{files:?}");
    files
}

/// At the bound on every real graph, whatever the batch and the sequence. `ARENA_MODELS` names a folder of
/// further graphs.
#[test]
fn real_graphs_are_placed_at_the_bound() {
    let mut files = models();
    if let Some(folder) = std::env::var_os("ARENA_MODELS") {
        let more = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path());
        files.extend(more.filter(|f| f.extension().is_some_and(|e| e == "onnx")));
    }
    let mut worst = (0.0, String::new());
    for file in files {
        for size in [1, 16, 64, 200] {
            let intervals = buffers_of(&file, size);
            let placed = place(&intervals, 64).unwrap();
            check(&intervals, 64, &placed);
            let ratio = placed.bytes as f64 / placed.lower_bound as f64;
            let name = file.file_name().unwrap().to_string_lossy();
            let what = format!("{name} at {size}: {ratio:.4}, {}", placed.method);
            println!(
                "{what}, {} buffers, {} bytes",
                intervals.len(),
                placed.bytes
            );
            if ratio > worst.0 {
                worst = (ratio, what);
            }
        }
    }
    println!("worst: {}", worst.1);
    assert!(worst.0 <= 1.0, "{}", worst.1);
}

/// Buffers of arenas in plans of `models/`, by graph and batch size, that are hard to place. A search that
/// moved buffers to the front of an order left the first five 1.7 to 5.1 % above the bound; the last takes
/// the most work now. Each line has bytes, first and last step.
const HARD: [(&str, &str); 6] = [
    (
        "ort/vit_tiny_lora, 3",
        include_str!("data/arena/ort_vit_tiny_lora_3.txt"),
    ),
    (
        "ort/vit_tiny_lora rewritten, 3",
        include_str!("data/arena/ort_vit_tiny_lora_3_rewritten.txt"),
    ),
    (
        "ort/digits_vit, 3",
        include_str!("data/arena/ort_digits_vit_3.txt"),
    ),
    (
        "ort/vit_tiny, 6",
        include_str!("data/arena/ort_vit_tiny_6.txt"),
    ),
    (
        "ort/llama_768x4 rewritten, 32",
        include_str!("data/arena/ort_llama_768x4_32_rewritten.txt"),
    ),
    (
        "aot/llama_256x4 rewritten, 6",
        include_str!("data/arena/aot_llama_256x4_6_rewritten.txt"),
    ),
];

#[test]
fn hard_buffers_reach_the_bound_with_a_fifth_of_the_work() {
    for (name, lines) in HARD {
        let intervals = parse(lines.lines());
        let start = std::time::Instant::now();
        let placed = place_within(&intervals, 64, 40_000_000).unwrap();
        println!(
            "{name}: {} buffers, {} bytes above {} in {:.0} ms",
            intervals.len(),
            placed.bytes - placed.lower_bound,
            placed.lower_bound,
            start.elapsed().as_secs_f64() * 1e3
        );
        check(&intervals, 64, &placed);
        assert_eq!(placed.bytes, placed.lower_bound, "{name}");
    }
}

/// Ten thousand buffers, nested as forward and backward nest them, and short ones between.
#[test]
fn many_buffers_are_placed_within_the_work_allowed() {
    let mut numbers = Numbers(11);
    let steps = 10_000;
    let mut intervals = Vec::new();
    for step in 0..steps {
        let saved = step < steps / 2 && step % 3 == 0;
        intervals.push(Interval {
            bytes: 64 * (1 + numbers.below(1000)),
            first: step,
            last: if saved {
                steps - step
            } else {
                step + 1 + numbers.below(4) as usize
            },
        });
    }
    let start = std::time::Instant::now();
    let placed = place_within(&intervals, 64, 0).unwrap();
    println!(
        "{} buffers: {:.4} by {} in {:.0} ms without a search",
        intervals.len(),
        placed.bytes as f64 / placed.lower_bound as f64,
        placed.method,
        start.elapsed().as_secs_f64() * 1e3
    );
    check(&intervals, 64, &placed);
    assert!(placed.bytes as f64 <= 1.05 * placed.lower_bound as f64);
}
