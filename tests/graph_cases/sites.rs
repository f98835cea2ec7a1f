//! Weight-gradient contractions: one line for each, in the order of their products.

use super::case::{Case, Found, Kind as Test, made, name};
use velora_graph::analysis::sites::{Form, Kind, Site};
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, NodeId};

pub struct Sites;

impl Test for Sites {
    fn name(&self) -> &'static str {
        "sites"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        Ok(case.analyses().map(|analyses| {
            let graph = &case.model.graph;
            let sites = analyses.sites.sites.iter();
            let mut lines: Vec<(NodeId, String)> =
                { sites }.map(|s| (s.product, line(graph, s))).collect();
            lines.extend(analyses.sites.unfit.iter().map(|unfit| {
                let text = format!(
                    "{}: no site: {} reads {}: {}",
                    name(graph, unfit.parameter),
                    made(graph, unfit.product),
                    name(graph, unfit.activation),
                    unfit.why
                );
                (unfit.product, text)
            }));
            lines.sort();
            match lines.is_empty() {
                true => "no contraction".to_owned(),
                false => { lines.into_iter() }.map(|(_, line)| line + "\n").collect(),
            }
        }))
    }
}

/// `w: dw = X'·dY, X = h (input 0), dY = dy, N = 6, D = 8, O = 4`, and what is special.
fn line(graph: &Graph, site: &Site) -> String {
    let (product, gradient) = match &site.form {
        Form::Weight(of) if of.transposed => ("dY'·X [O, D]".to_owned(), Some(of.gradient)),
        Form::Weight(of) => ("X'·dY [D, O]".to_owned(), Some(of.gradient)),
        Form::Scale(of) => ("the sum of X·dY [D]".to_owned(), Some(of.gradient)),
        Form::Reconstructed => (format!("{} of X", graph.node(site.product).op()), None),
    };
    let mut text = format!(
        "{}: {} = {product}, X = {} (input {})",
        name(graph, site.parameter),
        made(graph, site.product),
        name(graph, site.input),
        site.slot,
    );
    if let Some(gradient) = gradient {
        text += &format!(", dY = {}", name(graph, gradient));
    }
    let channels = if site.kind == Kind::Conv { "C" } else { "D" };
    text += &format!(", N = {}, {channels} = {}", site.tokens, site.features);
    if !matches!(site.form, Form::Scale(_)) {
        text += &format!(", O = {}", site.outputs);
    }
    if site.activation != site.input {
        text += &format!("; a view of {}", name(graph, site.activation));
    }
    match &site.form {
        Form::Weight(of) => {
            if of.gradient_flipped {
                text += "; dY has its tokens last";
            }
            if of.result != site.product {
                text += &format!("; summed over the batch by {}", made(graph, of.result));
            }
            if of.scale != 1.0 {
                text += &format!("; times {}", of.scale);
            }
        }
        Form::Scale(of) => text += &format!("; summed by {}", made(graph, of.result)),
        Form::Reconstructed => text += "; needs the reconstructed X",
    }
    let operations = site.operations.as_ref();
    let expected = Dim::from(2) * &site.tokens * Dim::from(site.features) * &site.outputs;
    match (site.kind, operations) {
        // What it always is.
        (Kind::Linear | Kind::Recurrent, Some(operations)) if *operations == expected => {}
        (Kind::Scale, Some(_)) => {}
        (_, Some(operations)) => text += &format!("; {operations} operations"),
        (_, None) => text += "; of unknown cost",
    }
    text
}
