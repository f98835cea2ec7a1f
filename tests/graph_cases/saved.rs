//! Saved activations with their bytes and backward readers.

use super::case::{Case, Found, Kind, columns, made, name};

pub struct Saved;

impl Kind for Saved {
    fn name(&self) -> &'static str {
        "saved"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        Ok(case.analyses().map(|analyses| {
            let graph = &case.model.graph;
            let mut rows = Vec::new();
            for saved in &analyses.saved {
                let bytes = analyses.shapes.bytes(saved.buffer);
                let readers: Vec<String> = (saved.readers.iter())
                    .map(|reader| {
                        let mut text = format!(
                            "{} ({}",
                            made(graph, reader.node),
                            graph.node(reader.node).op()
                        );
                        if reader.value != saved.buffer {
                            text += &format!(" of {}", name(graph, reader.value));
                        }
                        text + ")"
                    })
                    .collect();
                rows.push(vec![
                    name(graph, saved.buffer).to_owned(),
                    bytes.map_or("?".to_owned(), |b| b.to_string()),
                    readers.join(", "),
                ]);
            }
            match rows.is_empty() {
                true => "nothing is saved".to_owned(),
                false => columns(&rows),
            }
        }))
    }
}
