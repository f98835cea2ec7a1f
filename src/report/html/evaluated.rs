//! Expressions with their values by the tool's own evaluator, for the page's evaluator to be compared with:
//! `tests/browser/expressions.json`. `BLESS=1` writes it.

#![allow(clippy::unwrap_used)]

use super::markup::Expressions;
use crate::report::Amount;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use velora_graph::dim::Dim;

/// Among them names that look like something else.
const NAMES: [&str; 6] = ["batch", "seq len", "s0", "Max", "größe", "2*\"b\\"];

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX; the high bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }

    fn dim(&mut self, depth: u64) -> Dim {
        if depth == 0 || self.below(6) == 0 {
            return match self.below(3) {
                0 => Dim::from(self.below(2000) as i64 - 200),
                _ => Dim::symbol(NAMES[self.below(NAMES.len() as u64) as usize]),
            };
        }
        let (a, b) = (self.dim(depth - 1), self.dim(depth - 1));
        match self.below(10) {
            0 | 1 => a + b,
            2 => a - b,
            3 | 4 => a * b,
            5 => a.pow(1 + self.below(4) as u32),
            6 => a.div_floor(&b),
            7 => a.div_ceil(&b),
            8 => a.modulo(&b),
            _ if self.below(2) == 0 => a.maximum(&b),
            _ => a.minimum(&b),
        }
    }

    fn size(&mut self) -> i64 {
        match self.below(8) {
            0 => 1,
            1..=4 => 1 + self.below(100) as i64,
            5 => 1 + self.below(100_000) as i64,
            6 => 1 << (20 + self.below(20)),
            _ => i64::MAX - self.below(3) as i64,
        }
    }
}

fn cases() -> Vec<Value> {
    let names: Vec<Arc<str>> = NAMES.iter().map(|&name| Arc::from(name)).collect();
    let mut numbers = Numbers(8);
    let mut cases = Vec::new();
    while cases.len() < 500 {
        let depth = 2 + numbers.below(4);
        let dim = numbers.dim(depth);
        if dim.as_const().is_some() || dim.is_undefined() || dim.to_string().len() > 300 {
            continue;
        }
        let mut expressions = Expressions::new(names.iter());
        expressions.number(&Amount::from(dim.clone())).unwrap();
        let tries = (0..4).map(|_| {
            let sizes: Vec<i64> = names.iter().map(|_| numbers.size()).collect();
            let by_name: BTreeMap<_, _> = names.iter().cloned().zip(sizes.clone()).collect();
            let value = dim.eval(&by_name).map(|value| value.to_string());
            let sizes: Vec<String> = sizes.iter().map(i64::to_string).collect();
            json!({ "sizes": sizes, "value": value })
        });
        let tries: Vec<Value> = tries.collect();
        cases.push(json!({ "text": expressions.texts[0], "tries": tries }));
    }
    cases
}

#[test]
fn the_page_is_compared_with_what_the_tool_evaluates() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/expressions.json");
    let cases = cases();
    let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    for operation in ["//", "CeilDiv(", "Mod(", "Max(", "Min(", "^", " - ", "·"] {
        assert!(text.contains(operation), "{operation}");
    }
    let values = cases
        .iter()
        .flat_map(|case| case["tries"].as_array().unwrap());
    let unknown = values.filter(|one| one["value"].is_null()).count();
    // Overflow and division by 0 are among them, and not the rule.
    assert!((50..1000).contains(&unknown), "{unknown}");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text);
}
