//! What the page's script works on: lifetimes and expressions, in columns, because they are many and alike.

use super::markup::Expressions;
use crate::report::timeline::{Category, Course, Described, Timeline};
use crate::report::units::shape;
use serde_json::{Value, json};
use std::collections::HashMap;
use velora_graph::analysis::partition::Half;

/// Texts, each once.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let number = self.all.len();
        self.all.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}

/// The data for a timeline. `expressions` are those that cells of the page refer to, too; `titles` are those
/// of the sides before and after.
pub fn data(
    timeline: &Timeline,
    given: &[&str],
    titles: (&str, &str),
    expressions: &mut Expressions,
) -> Value {
    let mut texts = Texts::default();
    let mut columns = Columns {
        texts: &mut texts,
        expressions,
    };
    let mut courses = vec![columns.course(&timeline.before, titles.0)];
    courses.extend(
        timeline
            .after
            .as_ref()
            .map(|after| columns.course(after, titles.1)),
    );
    let symbols = timeline.sizes.iter().map(|(name, size)| {
        json!({
            "name": &**name,
            // A number of JavaScript would lose digits of the largest.
            "size": size.to_string(),
            "given": given.contains(&&**name),
            "input": timeline.of_inputs.contains(name),
        })
    });
    let categories = Category::ALL.map(|c| json!({ "key": c.word(), "title": c.title() }));
    json!({
        "symbols": symbols.collect::<Vec<_>>(),
        "categories": categories,
        "courses": courses,
        "texts": texts.all,
        "expressions": expressions.texts,
    })
}

struct Columns<'a> {
    texts: &'a mut Texts,
    expressions: &'a mut Expressions,
}

impl Columns<'_> {
    fn course(&mut self, course: &Course, title: &str) -> Value {
        let steps = &course.steps;
        let node: Vec<usize> = steps.iter().map(|s| self.texts.number(&s.node)).collect();
        let op: Vec<usize> = steps.iter().map(|s| self.texts.number(&s.op)).collect();
        let half: String = steps.iter().map(|step| half(step.half)).collect();
        let buffers = &course.buffers;
        let mut made = self.tensors(buffers.iter().map(|buffer| &buffer.tensor));
        let over = buffers.iter().enumerate();
        let over: Vec<(usize, &[usize])> = over
            .map(|(number, buffer)| (number, buffer.over_if_equal.as_slice()))
            .filter(|(_, over)| !over.is_empty())
            .collect();
        made["born"] = json!(buffers.iter().map(|b| b.born).collect::<Vec<_>>());
        made["last"] = json!(buffers.iter().map(|b| b.last).collect::<Vec<_>>());
        made["over"] = json!(over);
        made["readers"] = json!(buffers.iter().map(|b| &b.readers).collect::<Vec<_>>());
        let held = course.held.iter().map(|resident| &resident.tensor);
        let fixed = { buffers.iter().map(|buffer| &buffer.tensor) }.chain(held.clone());
        let fixed = fixed.filter(|tensor| tensor.is_fixed).count();
        json!({
            "title": title,
            "steps": { "node": node, "op": op, "half": half },
            "buffers": made,
            "held": self.tensors(held),
            "fixed": fixed,
        })
    }

    fn tensors<'t>(&mut self, tensors: impl Iterator<Item = &'t Described> + Clone) -> Value {
        let mut text = |read: &dyn Fn(&Described) -> String| -> Vec<usize> {
            { tensors.clone() }
                .map(|t| self.texts.number(&read(t)))
                .collect()
        };
        let name = text(&|t| t.tensor.clone());
        let shapes = text(&|t| shape(t.open_shape.as_deref(), true));
        let dtype = text(&|t| t.dtype.clone().unwrap_or_default());
        let category: Vec<usize> = { tensors.clone() }.map(|t| t.category as usize).collect();
        // -1 is what is not known.
        let mut number = |t: &Described| self.expressions.number(&t.open_bytes);
        let bytes = tensors.map(|t| number(t).map_or(-1, |number| number as i64));
        json!({
            "tensor": name,
            "shape": shapes,
            "dtype": dtype,
            "category": category,
            "bytes": bytes.collect::<Vec<_>>(),
        })
    }
}

fn half(half: Half) -> char {
    match half {
        Half::Forward => 'f',
        Half::Backward => 'b',
        Half::Dead => 'n',
    }
}

/// JSON in which nothing can end a script or begin a comment of HTML, whatever the names are.
pub fn embedded(data: &Value) -> String {
    let text = data.to_string();
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe += &format!("\\u{:04x}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}
