//! Time by operation, a trace to look at, and what the machine did in a second.

use crate::backend::Observer;
use crate::cost::{Class, Cost, Storage, of_step};
use crate::plan::Step;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// One execution of an operation.
#[derive(Clone, Debug)]
struct Event {
    number: usize,
    began: Duration,
    took: Duration,
}

/// What one operation is.
#[derive(Clone, Debug)]
struct Named {
    op: &'static str,
    node: String,
    backward: bool,
    class: Class,
    cost: Cost,
}

/// Time spent in one kind of operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The operation.
    pub op: &'static str,
    /// How many of them a step has.
    pub count: usize,
    /// Seconds, over all steps watched.
    pub seconds: f64,
    /// The part of all time.
    pub part: f64,
}

/// The schema of what a trace says about the machine, in `otherData`.
pub const SCHEMA: &str = "velora-profile/1";

/// What the machine did in a second, by kind of kernel; `None` where no step is of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Floating-point operations of products and convolutions.
    pub products: Option<f64>,
    /// Bytes read and written by softmax, normalisations, reductions and compressions.
    pub norms: Option<f64>,
    /// The same of element-wise chains.
    pub elementwise: Option<f64>,
    /// The same of what only moves elements.
    pub movement: Option<f64>,
}

/// Watches executions.
#[derive(Clone, Debug)]
pub struct Profile {
    start: Instant,
    steps: Vec<Option<Named>>,
    events: Vec<Event>,
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            start: Instant::now(),
            steps: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl Observer for Profile {
    fn finished(
        &mut self,
        number: usize,
        step: &Step,
        (began, ended): (Instant, Instant),
        _written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        if self.steps.len() <= number {
            self.steps.resize(number + 1, None);
        }
        self.steps[number].get_or_insert_with(|| Named {
            op: step.op.name(),
            node: step.node.clone(),
            backward: step.backward,
            class: Class::of(&step.op),
            cost: of_step(step, Storage::Declared),
        });
        self.events.push(Event {
            number,
            began: began.duration_since(self.start),
            took: ended.duration_since(began),
        });
    }
}

impl Profile {
    /// Time by kind of operation, the longest first.
    pub fn rows(&self) -> Vec<Row> {
        let mut seconds: BTreeMap<&'static str, f64> = BTreeMap::new();
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for step in self.steps.iter().flatten() {
            *counts.entry(step.op).or_default() += 1;
        }
        for event in &self.events {
            if let Some(step) = self.steps.get(event.number).and_then(Option::as_ref) {
                *seconds.entry(step.op).or_default() += event.took.as_secs_f64();
            }
        }
        let all: f64 = seconds.values().sum();
        let mut rows: Vec<Row> = (seconds.into_iter())
            .map(|(op, seconds)| Row {
                op,
                count: counts.get(op).copied().unwrap_or(0),
                seconds,
                part: seconds / all,
            })
            .collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        rows
    }

    /// What the machine did in a second.
    pub fn rates(&self) -> Rates {
        let rate = |classes: &[Class], of: fn(&Cost) -> u64| {
            let events = self.events.iter().filter_map(|event| {
                let step = self.steps.get(event.number)?.as_ref()?;
                let counts = classes.contains(&step.class);
                counts.then(|| (of(&step.cost), event.took.as_secs_f64()))
            });
            let (done, seconds) = events.fold((0.0, 0.0), |(done, seconds), (more, took)| {
                (done + more as f64, seconds + took)
            });
            (done > 0.0 && seconds > 0.0).then(|| done / seconds)
        };
        Rates {
            products: rate(&[Class::Products], |cost| cost.flops),
            norms: rate(&[Class::Norms, Class::Velora], Cost::bytes),
            elementwise: rate(&[Class::Elementwise], Cost::bytes),
            movement: rate(&[Class::Movement], Cost::bytes),
        }
    }

    /// Writes the executions in the Trace Event Format that Perfetto and chrome://tracing open, with the
    /// [`rates`](Profile::rates) as what it calls other data.
    ///
    /// # Errors
    /// Where the writer fails.
    pub fn write_trace(&self, to: &mut dyn Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct Complete<'a> {
            name: &'a str,
            cat: &'a str,
            ph: &'a str,
            ts: f64,
            dur: f64,
            pid: u32,
            tid: u32,
            args: BTreeMap<&'a str, &'a str>,
        }
        to.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        let other = serde_json::json!({ "schema": SCHEMA, "rates": self.rates() });
        serde_json::to_writer(&mut *to, &other)?;
        to.write_all(b",\"traceEvents\":[")?;
        for (place, event) in self.events.iter().enumerate() {
            let Some(step) = self.steps.get(event.number).and_then(Option::as_ref) else {
                continue;
            };
            let microseconds = |time: Duration| time.as_nanos() as f64 / 1000.0;
            let line = Complete {
                name: step.op,
                cat: if step.backward { "backward" } else { "forward" },
                ph: "X",
                ts: microseconds(event.began),
                dur: microseconds(event.took),
                pid: 1,
                tid: 1,
                args: BTreeMap::from([("node", step.node.as_str())]),
            };
            to.write_all(if place == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut *to, &line)?;
        }
        to.write_all(b"\n]}\n")
    }
}
