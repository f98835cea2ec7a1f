//! What is moved into the forward half, as if every contraction's tensor were compressed; with the bytes
//! saved before and after, at 64 for every open dimension.

use super::case::{Case, Found, Kind, made, name, names};
use velora_graph::analysis::hoist::Move;
use velora_passes::hoist::choose;
use velora_passes::select::select;

pub struct Hoist;

impl Kind for Hoist {
    fn name(&self) -> &'static str {
        "hoist"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        let graph = &case.model.graph;
        Ok(case.analyses().and_then(|analyses| {
            let decisions = select(graph, &analyses, &case.selection).map_err(|e| e.to_string())?;
            let hoists = choose(&case.model, &analyses, &decisions).map_err(|e| e.to_string())?;
            let mut text = String::new();
            for hoist in &hoists {
                let work = hoist.moves.iter().map(|&work| match work {
                    Move::Node(node) => made(graph, node).to_owned(),
                    Move::Mask(node) => format!("mask of {}", made(graph, node)),
                });
                let tensors = |list: &[_]| {
                    let list: Vec<&str> = list.iter().map(|&value| name(graph, value)).collect();
                    names(&list)
                };
                text += &format!("{}\n", work.collect::<Vec<_>>().join(", "));
                text += &format!(
                    "   frees {}: {} bytes\n",
                    tensors(&hoist.released),
                    hoist.before
                );
                text += &format!("   saves {}: {} bytes\n", tensors(&hoist.made), hoist.after);
            }
            match hoists.is_empty() {
                true => Ok("nothing is moved".to_owned()),
                false => Ok(text),
            }
        }))
    }
}
