//! Tables for people: with lines and fitted to the width on a terminal, plain ASCII columns when piped.

use super::timeline::plot;
use super::units::{UNKNOWN, Unit, number, percent, shape};
use super::{Amount, Decision, Layer, Report, Totals, View};
use crate::measure::fidelity::Fidelity;
use std::io::IsTerminal;

/// How tables are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Lines, `×` and `·`; otherwise ASCII (apart from names).
    pub unicode: bool,
    /// Columns to fit into, by writing cells on several lines; `None` keeps them on one.
    pub width: Option<usize>,
    /// List every saved tensor and every reader.
    pub everything: bool,
}

/// Saved tensors shown unless everything is asked for.
const TENSORS: usize = 20;
/// Readers named in one cell unless everything is asked for.
const READERS: usize = 3;

impl Style {
    /// The style for a stream.
    pub fn of(stream: &impl IsTerminal, everything: bool) -> Style {
        let terminal = stream.is_terminal();
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        Style {
            unicode: terminal,
            width: width.filter(|_| terminal),
            everything,
        }
    }

    fn times(self) -> &'static str {
        if self.unicode { "×" } else { "x" }
    }

    pub(super) fn dash(self) -> &'static str {
        if self.unicode { "–" } else { "-" }
    }
}

/// What a rewrite did: each layer, and the totals.
pub fn optimized(report: &Report, style: Style) -> String {
    let mut text = layers(report, style, View::Optimized);
    text += &hoisted(report, style, View::Optimized);
    if let Some(plan) = &report.plan {
        text += &plan.table(style);
    }
    text += &totals(&report.totals, style, View::Optimized);
    let changed = report
        .timeline
        .as_ref()
        .is_some_and(|timeline| timeline.after.is_some());
    let unchanged = match report.hoisted.is_empty() && !changed {
        true => ": the graph is unchanged",
        false => "",
    };
    text += &match (report.totals.sites_rewritten, report.totals.sites) {
        (0, 0) => format!("no weight gradient that could be rewritten was found{unchanged}\n"),
        (0, sites) => format!("none of {sites} weight gradients rewritten{unchanged}\n"),
        (some, sites) => format!("{some} of {sites} weight gradients rewritten\n"),
    };
    if style.everything {
        text += &timeline(report, style, View::Optimized);
    }
    text
}

/// Where the memory of a graph goes, and what a rewrite could free.
pub fn inspected(report: &Report, style: Style) -> String {
    let mut text = saved(report, style);
    text += &layers(report, style, View::Inspected);
    text += &hoisted(report, style, View::Inspected);
    text += &totals(&report.totals, style, View::Inspected);
    text += &format!(
        "{} of {} weight gradients could be rewritten\n",
        report.totals.sites_rewritten, report.totals.sites
    );
    if let (Some(Fidelity { cosine, norm_ratio }), Some((data, samples))) =
        (report.totals.fidelity, &report.batch)
    {
        text += &format!(
            "gradient of all parameters together, on {samples} samples of {}: cosine {}, norm ratio {}\n",
            clean(data),
            number(cosine, style),
            number(norm_ratio, style)
        );
    }
    text += &timeline(report, style, View::Inspected);
    text += &presets(report, style);
    text += &sweep(report, style);
    text
}

/// Memory over the schedule.
fn timeline(report: &Report, style: Style, view: View) -> String {
    let timeline = report.timeline.as_ref();
    timeline.map_or(String::new(), |timeline| plot(timeline, view, style))
}

/// What each preset would do.
fn presets(report: &Report, style: Style) -> String {
    if report.presets.is_empty() {
        return String::new();
    }
    let mut grid = Grid::new([
        ("preset", Column::Word),
        ("rewritten", Column::Number),
        ("saved then", Column::Number),
        ("freed", Column::Number),
        ("counted per layer", Column::Number),
    ]);
    for preset in &report.presets {
        grid.row([
            preset.preset.to_owned(),
            preset.sites_rewritten.to_string(),
            Unit::Bytes.amount(&preset.saved_bytes_after, style.unicode),
            Unit::Bytes.amount(&preset.freed_bytes, style.unicode),
            Unit::Bytes.amount(&preset.counted_per_layer, style.unicode),
        ]);
    }
    format!(
        "\n{}counted per layer: inputs of linear layers, each layer for itself, as the paper counts\n",
        grid.draw(style)
    )
}

/// Cells of the longest bar.
const BAR: usize = 24;

/// A share of the longest bar.
pub(super) fn bar(share: f64, style: Style) -> String {
    let length = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    if style.unicode { "█" } else { "#" }.repeat(length)
}

/// What other numbers of groups would do: bytes against fidelity.
fn sweep(report: &Report, style: Style) -> String {
    if report.sweep.is_empty() {
        return String::new();
    }
    let mut grid = Grid::new([
        ("groups", Column::Number),
        ("rewritten", Column::Number),
        ("saved then", Column::Number),
        ("", Column::Number),
        ("norm ratio", Column::Number),
        ("cosine", Column::Number),
        ("0 to 1", Column::Word),
    ]);
    for trial in &report.sweep {
        let share = (trial.saved_bytes_after).ratio(&report.totals.saved_bytes_before);
        let fidelity = |x: Option<Option<f64>>| x.map_or(String::new(), |x| number(x, style));
        let measured = trial.fidelity;
        let cosine = measured.and_then(|f| f.cosine).unwrap_or(0.0);
        grid.row([
            trial.groups.to_string(),
            trial.sites_rewritten.to_string(),
            Unit::Bytes.amount(&trial.saved_bytes_after, style.unicode),
            share.map_or(String::new(), percent),
            fidelity(measured.map(|f| f.norm_ratio)),
            fidelity(measured.map(|f| f.cosine)),
            bar(cosine, style),
        ]);
    }
    format!("\n{}", grid.draw(style))
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
        ("cosine", Column::Number),
        ("norm ratio", Column::Number),
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
            decision(layer, style, view),
            match layer.freed_bytes.exact() {
                // A layer that is rewritten and frees nothing says so.
                Some(0) if layer.decision != Decision::Rewritten => style.dash().to_owned(),
                _ => Unit::Bytes.amount(&layer.freed_bytes, style.unicode),
            },
            (layer.fidelity).map_or(String::new(), |f| number(f.cosine, style)),
            (layer.fidelity).map_or(String::new(), |f| number(f.norm_ratio, style)),
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

fn hoisted(report: &Report, style: Style, view: View) -> String {
    if report.hoisted.is_empty() {
        return String::new();
    }
    let mut grid = Grid::new([
        (view.moved(), Column::Name),
        ("frees", Column::Name),
        ("of", Column::Number),
        ("saves", Column::Name),
        ("left", Column::Number),
    ]);
    for hoisted in &report.hoisted {
        let nodes = hoisted.nodes.iter().map(|n| name_op(&n.node, &n.op));
        grid.row([
            list(nodes, style),
            list(hoisted.unlocked.iter().cloned(), style),
            Unit::Bytes.amount(&hoisted.bytes_before, style.unicode),
            hoisted.tensor.clone(),
            Unit::Bytes.amount(&hoisted.bytes_after, style.unicode),
        ]);
    }
    grid.draw(style) + "\n"
}

fn decision(layer: &Layer, style: Style, view: View) -> String {
    let (done, not) = match view {
        View::Optimized => ("rewritten", "skipped"),
        View::Inspected => ("rewritable", "no"),
    };
    let mark = if style.unicode { "✓ " } else { "" };
    match (layer.decision, layer.groups, layer.sub_token_size) {
        (Decision::Rewritten, Some(groups), Some(size)) => {
            format!("{mark}{done}, {groups} {} {size}", style.times())
        }
        (Decision::Rewritten, ..) => format!("{mark}{done}"),
        (Decision::Skipped, ..) => format!("{not}: {}", layer.reason),
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
    let shown = totals.shown(style.unicode);
    for row in shown.rows {
        grid.row(row.cells);
    }
    if grid.rows.is_empty() {
        return "the sizes of some saved tensors are not known, so there are no totals\n"
            .to_owned();
    }
    let note = shown.note.map_or(String::new(), |note| format!("{note}\n"));
    grid.draw(style) + &note
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
pub(super) fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Words of this tool, never cut.
    Word,
    /// Names of the model.
    Name,
    /// Numbers, aligned to the right.
    Number,
}

impl Column {
    /// Characters that it keeps where a line would be too long; above that, cells get more lines.
    fn least(self) -> usize {
        match self {
            Column::Word => usize::MAX,
            Column::Name => 12,
            // More than any number has: only expressions are cut.
            Column::Number => 24,
        }
    }
}

/// Cells in columns.
pub(super) struct Grid<'a, const N: usize> {
    columns: [(&'a str, Column); N],
    rows: Vec<[String; N]>,
}

impl<'a, const N: usize> Grid<'a, N> {
    pub(super) fn new(columns: [(&'a str, Column); N]) -> Self {
        Grid {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| clean(&cell)));
    }

    /// The grid as lines of text, without columns that say nothing.
    pub(super) fn draw(&self, style: Style) -> String {
        let says = |column: &usize| self.rows.iter().any(|row| !row[*column].is_empty());
        let shown: Vec<usize> = (0..N).filter(says).collect();
        let titles = self.columns.map(|(title, _)| title);
        let mut widths: Vec<usize> = (shown.iter())
            .map(|&column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.fold(titles[column].chars().count(), usize::max)
            })
            .collect();
        let kinds: Vec<Column> = shown.iter().map(|&column| self.columns[column].1).collect();
        let separator = if style.unicode { " │ " } else { "  " };
        if let Some(limit) = style.width {
            let lines = separator.chars().count() * shown.len().saturating_sub(1);
            let least: Vec<usize> = kinds.iter().map(|kind| kind.least()).collect();
            shrink(&mut widths, &least, limit.saturating_sub(lines));
        }
        let line = |cells: [&str; N]| {
            let mut cells: Vec<_> = (shown.iter().zip(&widths))
                .map(|(&column, &width)| wrap(cells[column], width).into_iter())
                .collect();
            let height = cells.iter().map(|lines| lines.len()).max().unwrap_or(0);
            let mut text = String::new();
            for _ in 0..height {
                let parts = cells.iter_mut().zip(&widths).zip(&kinds);
                let parts = parts.map(|((lines, &width), kind)| {
                    let part = lines.next().unwrap_or_default();
                    match kind {
                        Column::Number => format!("{part:>width$}"),
                        Column::Word | Column::Name => format!("{part:<width$}"),
                    }
                });
                let joined = parts.collect::<Vec<_>>().join(separator);
                text.push_str(joined.trim_end());
                text.push('\n');
            }
            text
        };
        let mut text = line(titles);
        if style.unicode {
            let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
            text += &format!("{}\n", rules.join("─┼─"));
        }
        for row in &self.rows {
            text += &line(row.each_ref().map(String::as_str));
        }
        text
    }
}

/// Takes from the widest columns until they fit, or none has more than its least width.
fn shrink(widths: &mut [usize], least: &[usize], limit: usize) {
    let mut excess = widths.iter().sum::<usize>().saturating_sub(limit);
    while excess > 0 {
        let columns = widths.iter_mut().zip(least);
        let Some((width, _)) = columns.filter(|(w, least)| **w > **least).max() else {
            return;
        };
        *width -= 1;
        excess -= 1;
    }
}

/// Cuts a text into lines, behind a separator of names where one is near the end of a line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left: Vec<char> = text.chars().collect();
    while left.len() > width.max(1) {
        let chunk = left.get(..width.max(1)).unwrap_or_default();
        let separator = chunk
            .iter()
            .rposition(|c| matches!(c, '.' | '/' | '_' | ' ' | ','));
        let end = separator.map(|at| at + 1).filter(|&end| 2 * end > width);
        let rest = left.split_off(end.unwrap_or(width.max(1)));
        lines.push(left.iter().collect::<String>().trim_end().to_owned());
        left = rest;
    }
    lines.push(left.into_iter().collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::examples::{example, measured, moved};

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
    fn what_moved_is_shown() {
        let mut report = example();
        report.hoisted = vec![moved()];
        let text = inspected(&report, PLAIN);
        assert!(
            text.contains(
                "\
could move into forward  frees           of  saves             left
mask (LessOrEqual)       relu   256*batch B  mask   128*batch + 4 B

"
            ),
            "{text}"
        );
        report.totals.sites_rewritten = 0;
        let text = optimized(&report, PLAIN);
        assert!(text.contains("moved into forward"), "{text}");
        assert!(
            text.ends_with("none of 2 weight gradients rewritten\n"),
            "{text}"
        );
    }

    #[test]
    fn fidelity_presets_and_groups_stand_beside_the_bytes() {
        let text = inspected(&measured(), PLAIN);
        let (_, text) = text.split_once("\n\n").unwrap_or_default();
        assert_eq!(
            text,
            "\
parameter  kind     D x O  saved tensor  decision             could free  cosine  norm ratio  kept alive by
a.weight   linear  64 x 8  gelu          rewritable, 16 x 4  192*batch B  0.7500      0.5000
b.weight   linear  64 x 8  relu          no: kept-alive                -       -           -  relu_grad (Mul)
kept-alive: kept alive by relu_grad (Mul)

total                                   now     if rewritten
saved for backward              512*batch B      320*batch B  62.5%
weight-gradient operations  2048*batch FLOP  1280*batch FLOP  62.5%
1 of 2 weight gradients could be rewritten
gradient of all parameters together, on 32 samples of data.npz: cosine 0.8750, norm ratio 0.7500

preset    rewritten   saved then        freed  counted per layer
freeable          1  320*batch B  192*batch B        256*batch B
all               2  384*batch B  128*batch B        256*batch B
counted per layer: inputs of linear layers, each layer for itself, as the paper counts

groups  rewritten   saved then         norm ratio  cosine  0 to 1
     4          1  272*batch B  53.1%      0.5000  0.5000  ############
    16          1  320*batch B  62.5%      0.8750  0.8750  #####################
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
        // Nothing is lost, and words and numbers stay in one piece.
        assert_eq!(text.matches("encoder.").count(), 40, "{text}");
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
    fn names_are_cut_behind_separators() {
        assert_eq!(wrap("abc", 3), ["abc"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("model.layers.0.up", 9), ["model.", "layers.0.", "up"]);
        assert_eq!(wrap("a.bcdefgh", 5), ["a.bcd", "efgh"]);
        assert_eq!(wrap("ab", 0), ["a", "b"]);
    }

    #[test]
    fn the_widest_columns_give_way() {
        let least = [12, usize::MAX, 12];
        let mut widths = [40, 25, 30];
        shrink(&mut widths, &least, 70);
        assert_eq!((widths.iter().sum::<usize>(), widths[1]), (70, 25));
        shrink(&mut widths, &least, 1);
        assert_eq!(widths, [12, 25, 12]);
    }
}
