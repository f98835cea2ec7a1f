//! The fuzz targets on stable Rust: every seed, and seeded mutations of them.
//!
//! Fuzzing that follows coverage is described in fuzz/README.md. A failure here names the target and
//! keeps the input.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::ops::Range;
use std::path::Path;

/// Inputs made out of each seed, for each target; fewer where each is a whole job.
const MUTATIONS: usize = 2500;
const JOBS: usize = 100;

/// The seeds of a kind, `models` or `arrays`, by name.
fn seeds(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let folder = folder.join(kind);
    let mut seeds: Vec<_> = (std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(path).unwrap(),
            )
        })
        .collect();
    seeds.sort();
    assert!(seeds.len() >= 5, "only {} seeds", seeds.len());
    seeds
}

/// Xorshift (Marsaglia 2003), 64 bits: the inputs must be the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }

    fn range(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.below(4) == 0 { 400 } else { 12 };
        start..(start + self.below(longest)).min(length)
    }
}

/// The word around a place: letters and digits.
fn word(bytes: &[u8], place: usize) -> Range<usize> {
    let inside = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let before = bytes[..place]
        .iter()
        .rev()
        .take_while(|b| inside(b))
        .count();
    let behind = bytes[place..].iter().take_while(|b| inside(b)).count();
    place - before..place + behind
}

/// A few edits. Half of them put one word in the place of another, which leaves the structure of a
/// text, and where the lengths are equal that of a message too; the others change bytes, and remove,
/// repeat, move in from another seed or put in pieces that mean something.
fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    #[rustfmt::skip]
    const PIECES: [&[u8]; 22] = [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x10", b"\x00", b"\x7f",
        b"9223372036854775807", b"-9223372036854775808", b"-1", b"0", b"1e999", b"nan", b"\"", b"\\",
        b"<", b">", b"{", b"}", b"(", b")", b"[]", b"@", b" x", b"# ",
    ];
    let text = std::str::from_utf8(seed).is_ok();
    let mut input = seed.to_vec();
    for _ in 0..=random.below(3) {
        let place = random.below(input.len() + 1);
        if random.below(2) == 0 {
            let old = word(&input, place);
            let new = input[word(&input, random.below(input.len()))].to_vec();
            if text || old.len() == new.len() {
                input.splice(old, new);
            }
            continue;
        }
        let piece = match random.below(6) {
            0 => {
                if let Some(byte) = input.get_mut(place) {
                    *byte ^= 1 << random.below(8);
                }
                continue;
            }
            1 => {
                input.drain(random.range(input.len()));
                continue;
            }
            2 => input[random.range(input.len())].to_vec(),
            3 => other[random.range(other.len())].to_vec(),
            _ => PIECES[random.below(PIECES.len())].to_vec(),
        };
        let written_over = random.below(2) == 0;
        let end = place + if written_over { piece.len() } else { 0 };
        input.splice(place..end.min(input.len()), piece);
    }
    input
}

fn run(name: &str) {
    let target = targets::TARGETS.iter().find(|t| t.0 == name).unwrap().1;
    let mutations = if name == "step" { JOBS } else { MUTATIONS };
    let seeds = seeds(match name {
        "npz" | "safetensors" => "arrays",
        _ => "models",
    });
    let mut random = Random(0x5eed);
    let mut accepted = 0;
    for (seed, bytes) in &seeds {
        target(bytes.as_slice());
        for number in 0..mutations {
            let (_, other) = &seeds[random.below(seeds.len())];
            let input = mutate(&mut random, bytes, other);
            let result = std::panic::catch_unwind(|| target(&input));
            let Ok(passed) = result else {
                let path = std::env::temp_dir().join(format!("velora-fuzz-{name}"));
                std::fs::write(&path, &input).unwrap();
                panic!(
                    "{name}: mutation {number} of {seed} fails; the input is in {}",
                    path.display()
                );
            };
            accepted += usize::from(passed);
        }
    }
    // If nearly all were refused, what lies behind the readers would not be tested.
    let all = seeds.len() * mutations;
    assert!(
        accepted > all / 20,
        "{name}: only {accepted} of {all} mutations were accepted"
    );
}

#[test]
fn decode() {
    run("decode");
}

#[test]
fn text() {
    run("text");
}

#[test]
fn analyse() {
    run("analyse");
}

#[test]
fn step() {
    run("step");
}

#[test]
fn npz() {
    run("npz");
}

#[test]
fn safetensors() {
    run("safetensors");
}

/// A file of tensors may be a checkpoint: its header, in the metadata, is JSON within JSON.
#[test]
fn checkpoints() {
    let seeds = seeds("arrays");
    let (_, seed) = { seeds.iter() }
        .find(|(name, _)| name.starts_with("checkpoint"))
        .unwrap();
    let mut random = Random(0x5eed);
    let mut accepted = 0;
    for _ in 0..MUTATIONS {
        let input = mutate(&mut random, seed, seed);
        let file = Path::new("checkpoint.safetensors");
        let Ok(dataset) = velora_runtime::data::safetensors::decode(input.into(), file) else {
            continue;
        };
        let Ok(checkpoint) = velora_runtime::session::checkpoint::decode(dataset) else {
            continue;
        };
        let owned = |name: &String| checkpoint.parameters.contains_key(name);
        assert!(checkpoint.state.keys().all(owned), "state of nothing");
        accepted += 1;
    }
    assert!(accepted > MUTATIONS / 100, "only {accepted} were accepted");
}

/// Each seed of arrays is for one of the two readers.
#[test]
fn every_seed_of_arrays_is_accepted() {
    for (name, bytes) in seeds("arrays") {
        let reader = match name.ends_with(".safetensors") {
            true => targets::safetensors,
            false => targets::npz,
        };
        assert!(reader(&bytes), "{name}");
    }
}

/// Seeds that the targets refuse at once would test nothing.
#[test]
fn every_seed_is_a_model_that_indexes() {
    for (name, bytes) in seeds("models") {
        let model = match name.ends_with(".txt") {
            true => velora_graph::text::parse_model(std::str::from_utf8(&bytes).unwrap()).unwrap(),
            false => {
                let unknown = velora_graph::onnx::read::UnknownFields::Refuse;
                velora_graph::onnx::read::decode(bytes.into(), unknown).unwrap()
            }
        };
        velora_graph::ir::Graph::from_proto(model.graph.unwrap()).unwrap();
    }
}
