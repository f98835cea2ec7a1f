//! Tables for people: with lines and fitted to the width on a terminal, plain ASCII columns when piped.

use super::units::{UNKNOWN, Unit, percent, shape};
use super::{Amount, Decision, Layer, Report, Totals, View};
use std::io::IsTerminal;

/// How tables are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Lines, `×` and `·`; otherwise ASCII (apart from names).
    pub unicode: bool,
    /// Columns to fit into; `None` shortens nothing.
    pub width: Option<usize>,
    /// List every saved tensor and every reader.
    pub everything: bool,
}

/// Saved tensors shown unless everything is asked for.
const TENSORS: usize = 20;
/// Readers named in one cell unless everything is asked for.
const READERS: usize = 3;
/// A column is shortened to this many characters at the least.
const NARROWEST: usize = 12;

impl Style {
    /// The style for a stream; `everything` neither shortens nor leaves out.
    pub fn of(stream: &impl IsTerminal, everything: bool) -> Style {
        let terminal = stream.is_terminal();
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        Style {
            unicode: terminal,
            width: width.filter(|_| terminal && !everything),
            everything,
        }
    }

    fn rewritten(self) -> &'static str {
        if self.unicode {
            "✓ rewritten"
        } else {
            "rewritten"
        }
    }

    fn times(self) -> &'static str {
        if self.unicode { "×" } else { "x" }
    }

    fn dash(self) -> &'static str {
        if self.unicode { "–" } else { "-" }
    }
}

/// What a rewrite did: each layer, and the totals.
pub fn optimized(report: &Report, style: Style) -> String {
    let mut text = layers(report, style, View::Optimized);
    text += &totals(&report.totals, style, View::Optimized);
    text += &match (report.totals.sites_rewritten, report.totals.sites) {
        (0, 0) => "no weight gradient that could be rewritten was found: the graph is unchanged\n"
            .to_owned(),
        (0, sites) => {
            format!("none of {sites} weight gradients rewritten: the graph is unchanged\n")
        }
        (some, sites) => format!("{some} of {sites} weight gradients rewritten\n"),
    };
    text
}

/// Where the memory of a graph goes, and what a rewrite could free.
pub fn inspected(report: &Report, style: Style) -> String {
    let mut text = saved(report, style);
    text += &layers(report, style, View::Inspected);
    text += &totals(&report.totals, style, View::Inspected);
    text += &format!(
        "{} of {} weight gradients could be rewritten\n",
        report.totals.sites_rewritten, report.totals.sites
    );
    text
}

fn saved(report: &Report, style: Style) -> String {
    if report.saved.is_empty() {
        return "no tensor is saved for backward\n\n".to_owned();
    }
    let all = report.biggest_first();
    let shown = if style.everything { all.len() } else { TENSORS };
    let mut grid = Grid::new([
        ("bytes", Column::Number),
        ("share", Column::Number),
        ("saved tensor", Column::Name),
        ("shape", Column::Name),
        ("type", Column::Word),
        ("rewritable", Column::Word),
        ("readers in backward", Column::Name),
    ]);
    for tensor in all.iter().take(shown) {
        let share = tensor.bytes.ratio(&report.totals.saved_bytes_before);
        let readers = tensor.readers.iter().map(|r| name_op(&r.node, &r.op));
        grid.row([
            Unit::Bytes.amount(&tensor.bytes, style.unicode),
            share.map_or(String::new(), percent),
            tensor.tensor.clone(),
            shape(tensor.shape.as_deref(), style.unicode),
            tensor.dtype.clone().unwrap_or(UNKNOWN.to_owned()),
            if tensor.rewritable { "yes" } else { "no" }.to_owned(),
            list(readers, style),
        ]);
    }
    let mut text = grid.draw(style);
    if let Some(left) = all.get(shown..).filter(|left| !left.is_empty()) {
        let zero = Amount::from(0);
        let bytes = left.iter().fold(zero, |sum, s| &sum + &s.bytes);
        text += &format!(
            "and {} more, {} (-v lists them)\n",
            left.len(),
            Unit::Bytes.amount(&bytes, style.unicode)
        );
    }
    if report.has_open_sizes() {
        text += &format!(
            "sizes hold open dimensions: ordered as if each were {}; set them with --dim NAME=N\n",
            super::amount::NOMINAL
        );
    }
    text.push('\n');
    text
}

fn layers(report: &Report, style: Style, view: View) -> String {
    if report.layers.is_empty() {
        return String::new();
    }
    let mut grid = Grid::new([
        ("parameter", Column::Name),
        ("kind", Column::Word),
        (
            if style.unicode { "D × O" } else { "D x O" },
            Column::Number,
        ),
        ("saved tensor", Column::Name),
        ("decision", Column::Word),
        (view.freed(), Column::Number),
        ("kept alive by", Column::Name),
    ]);
    for layer in &report.layers {
        let keepers = layer.kept_alive_by.iter().map(|k| match k.node.as_str() {
            "" => k.why.clone(),
            node => name_op(node, &k.op),
        });
        grid.row([
            layer.param.clone(),
            layer.kind.word().to_owned(),
            layer.features_outputs.map_or(UNKNOWN.to_owned(), |(d, o)| {
                format!("{d} {} {o}", style.times())
            }),
            layer.activation.clone(),
            decision(layer, style),
            match layer.freed_bytes.exact() {
                Some(0) => style.dash().to_owned(),
                _ => Unit::Bytes.amount(&layer.freed_bytes, style.unicode),
            },
            list(keepers, style),
        ]);
    }
    let mut text = grid.draw(style);
    for (code, (message, count)) in report.skip_reasons() {
        let more = match count {
            1 => String::new(),
            _ => format!(" (and {} more)", count - 1),
        };
        text += &format!("{code}: {}{more}\n", clean(message));
    }
    text.push('\n');
    text
}

fn decision(layer: &Layer, style: Style) -> String {
    match (layer.decision, layer.groups, layer.sub_token_size) {
        (Decision::Rewritten, Some(groups), Some(size)) => {
            format!("{}, {groups} {} {size}", style.rewritten(), style.times())
        }
        (Decision::Rewritten, ..) => style.rewritten().to_owned(),
        (Decision::Skipped, ..) => format!("skipped: {}", layer.reason),
    }
}

fn totals(totals: &Totals, style: Style, view: View) -> String {
    let (before, after) = view.before_after();
    let mut grid = Grid::new([
        ("total", Column::Word),
        (before, Column::Number),
        (after, Column::Number),
        ("", Column::Number),
    ]);
    for (name, unit, before, after) in totals.rows() {
        let ratio = after.ratio(before).map_or(String::new(), percent);
        let amount = |amount| unit.amount(amount, style.unicode);
        grid.row([name.to_owned(), amount(before), amount(after), ratio]);
    }
    grid.draw(style)
}

pub(super) fn name_op(node: &str, op: &str) -> String {
    format!("{node} ({op})")
}

fn list(items: impl ExactSizeIterator<Item = String>, style: Style) -> String {
    let count = items.len();
    let shown = if style.everything { count } else { READERS };
    let mut text = items.take(shown).collect::<Vec<_>>().join(", ");
    if count > shown {
        text += &format!(", {} more", count - shown);
    }
    text
}

/// A name with a line end or an escape sequence in it must not draw on the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    /// Words of this tool.
    Word,
    /// Names of the model: these are shortened where a line would be too long.
    Name,
    /// Numbers, aligned to the right.
    Number,
}

/// Cells in columns.
struct Grid<'a, const N: usize> {
    columns: [(&'a str, Column); N],
    rows: Vec<[String; N]>,
}

impl<'a, const N: usize> Grid<'a, N> {
    fn new(columns: [(&'a str, Column); N]) -> Self {
        Grid {
            columns,
            rows: Vec::new(),
        }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| clean(&cell)));
    }

    fn draw(&self, style: Style) -> String {
        let mut widths = self.columns.map(|(title, _)| title.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let separator = if style.unicode { " │ " } else { "  " };
        let lines = separator.chars().count() * N.saturating_sub(1);
        if let Some(limit) = style.width {
            let (mut names, mut fixed) = (Vec::new(), lines);
            for (width, (_, kind)) in widths.iter_mut().zip(&self.columns) {
                match kind {
                    Column::Name => names.push(width),
                    Column::Word | Column::Number => fixed += *width,
                }
            }
            shrink(&mut names, limit.saturating_sub(fixed));
        }
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (column, (cell, width)) in cells.zip(widths).enumerate() {
                if column > 0 {
                    text += separator;
                }
                let cell = shorten(cell, width);
                text += &match self.columns.get(column) {
                    Some((_, Column::Number)) => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                };
            }
            format!("{}\n", text.trim_end())
        };
        let mut text = line(&mut self.columns.iter().map(|(title, _)| *title));
        if style.unicode {
            let rules = widths.map(|width| "─".repeat(width));
            text += &format!("{}\n", rules.join("─┼─"));
        }
        for row in &self.rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

/// Takes from the widest columns until they fit, or are all at [`NARROWEST`].
fn shrink(widths: &mut [&mut usize], limit: usize) {
    let mut excess = widths
        .iter()
        .map(|w| **w)
        .sum::<usize>()
        .saturating_sub(limit);
    while excess > 0 {
        let Some(widest) = widths.iter_mut().max() else {
            return;
        };
        if **widest <= NARROWEST {
            return;
        }
        **widest -= 1;
        excess -= 1;
    }
}

/// Names differ at their ends more than in the middle, so that goes.
fn shorten(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let head = kept / 2;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - (kept - head)).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::build::example;

    const PLAIN: Style = Style {
        unicode: false,
        width: None,
        everything: false,
    };

    #[test]
    fn piped_tables_are_ascii_columns() {
        let text = optimized(&example(), PLAIN);
        assert!(text.is_ascii(), "{text}");
        assert_eq!(
            text,
            "\
parameter  kind     D x O  saved tensor  decision                   freed  kept alive by
a.weight   linear  64 x 8  gelu          rewritten, 16 x 4    192*batch B
b.weight   linear  64 x 8  relu          skipped: kept-alive            -  relu_grad (Mul)
kept-alive: kept alive by relu_grad (Mul)

total                                before            after
saved for backward              512*batch B      320*batch B  62.5%
weight-gradient operations  2048*batch FLOP  1280*batch FLOP  62.5%
1 of 2 weight gradients rewritten
"
        );
    }

    #[test]
    fn terminal_tables_fit_the_width() {
        let style = Style {
            unicode: true,
            width: Some(100),
            everything: false,
        };
        let mut report = example();
        report.layers[0].param = "encoder.".repeat(40) + "weight";
        for text in [optimized(&report, style), inspected(&report, style)] {
            let grid = text.lines().filter(|l| l.contains('│') || l.contains('┼'));
            let widths: Vec<usize> = grid.map(|l| l.chars().count()).collect();
            assert!(widths.iter().all(|&w| w <= 100), "{text}");
        }
        let text = optimized(&report, style);
        assert!(text.contains("encode….weight"), "{text}");
        // Words and numbers stay whole.
        assert!(text.contains("skipped: kept-alive"), "{text}");
    }

    #[test]
    fn names_cannot_draw() {
        let mut report = example();
        report.layers[0].activation = "x\n\u{1b}[2J".to_owned();
        let text = optimized(&report, PLAIN);
        assert!(text.contains("x??[2J"), "{text}");
    }

    #[test]
    fn the_middle_of_a_long_name_goes() {
        assert_eq!(shorten("abcdefgh", 5), "ab…gh");
        assert_eq!(shorten("abc", 3), "abc");
        let (mut a, mut b, mut c) = (40, 5, 30);
        shrink(&mut [&mut a, &mut b, &mut c], 50);
        assert_eq!((a + b + c, b), (50, 5));
        shrink(&mut [&mut a, &mut b, &mut c], 1);
        assert_eq!((a, b, c), (12, 5, 12));
    }
}
