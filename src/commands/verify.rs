//! `verify`: what a rewrite left unchanged, and how far it is from exact where it did not.

use super::{Loaded, warn_of_doubtful};
use crate::cli::{VerifyArguments, is_stream};
use crate::io::{fingerprint, folder_of, print, sha256, write_text};
use crate::measure::{Bench, bits, factors, fidelity, layers, read_inputs};
use crate::report::Style;
use crate::report::verify::{Certificate, Data, Layer, Numbers, table};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::ValueId;
use velora_graph::onnx::write::check_replaceable;
use velora_passes::pipeline::shapes;
use velora_passes::proof::{DirectionState, Gradient, Side, direction_state, prove};
use velora_passes::select::sub_token_size;
use velora_runtime::backend::Backend;
use velora_runtime::cpu::Cpu;

/// Compares a rewritten graph with its original, and writes a certificate.
///
/// # Errors
/// Where a file cannot be read or executed, and where the graphs differ in what they may not; the
/// certificate is written then, too.
pub fn run(arguments: &VerifyArguments) -> Result<()> {
    if let Some(path) = arguments.json.as_ref().filter(|path| !is_stream(path)) {
        check_replaceable(path)?;
    }
    let pair = Pair {
        original: Loaded::read_whole(&arguments.source.model, &arguments.source)?,
        rewritten: Loaded::read_whole(&arguments.rewritten, &arguments.source)?,
        folders: [&arguments.source.model, &arguments.rewritten].map(|path| folder_of(path)),
    };
    let Pair {
        original,
        rewritten,
        folders,
    } = &pair;
    original.check_spared(&arguments.json)?;
    rewritten.check_spared(&arguments.json)?;
    let hints = Hints::default();
    if roles(&rewritten.model.graph, &hints).is_ok_and(|roles| !roles.adapters.is_empty()) {
        bail!(
            "{}: the graph has adapters, whose weights are other ones than the original's; verify the same \
             rewrite with --gradients factored in the place of --adapter",
            rewritten.name
        );
    }
    let analyses = Analyses::new(&original.model, &original.settings);
    let analyses = analyses.with_context(|| original.name.clone())?;
    warn_of_doubtful(&arguments.source, &original.model, &analyses.roles);
    let [before, after] =
        [(original, folders[0]), (rewritten, folders[1])].map(|(of, folder)| Side {
            model: &of.model,
            folder: Some(folder),
        });
    let proof = prove(before, &analyses, after, &original.settings);
    let measured = match &arguments.data {
        Some(path) if proof.differences.is_empty() => {
            Some(measure(arguments, path, &pair, &proof.gradients)?)
        }
        _ => None,
    };
    let (numbers, mut judged) = match measured {
        Some((numbers, judged)) => (Some(numbers), judged.into_iter().map(Some).collect()),
        None => (None, vec![None; proof.gradients.len()]),
    };
    let graph = &original.model.graph;
    let certificate = Certificate {
        original: fingerprint(&arguments.source.model, &original.model)?,
        rewritten: fingerprint(&arguments.rewritten, &rewritten.model)?,
        dims: original.settings.sizes.clone(),
        layers: (proof.gradients.iter().zip(judged.drain(..)))
            .map(|(gradient, measured)| Layer {
                param: graph.value(gradient.site.parameter).name.clone(),
                kind: gradient.site.kind.word(),
                node: graph.node(gradient.site.product).label(graph),
                op: graph.node(gradient.site.product).op().to_owned(),
                groups: gradient.factors.groups,
                sub_token_size: sub_token_size(gradient.site.features, gradient.factors.groups),
                init: gradient.factors.init.clone(),
                state: direction_state(&rewritten.model.graph, gradient.factors.direction),
                scale: gradient.factors.scale,
                measured,
            })
            .collect(),
        proof,
        numbers,
    };
    if !arguments.source.quiet {
        note_unfilled(&rewritten.name, &certificate.layers);
    }
    if let Some(path) = &arguments.json {
        write_text(path, &certificate.json()?)?;
    }
    let streamed = arguments.json.as_ref().is_some_and(|path| is_stream(path));
    if !arguments.source.quiet && !streamed {
        let style = Style::of(&std::io::stdout(), arguments.source.verbose);
        print(&table(&certificate, style))?;
    }
    match certificate.first_problem() {
        None => Ok(()),
        Some(problem) => bail!("{}: {problem}", rewritten.name),
    }
}

/// Says which directions are placeholders: what is measured then is not what training will see.
fn note_unfilled(name: &str, layers: &[Layer]) {
    let open = |layer: &&Layer| layer.state == DirectionState::Unfilled;
    let count = layers.iter().filter(open).count();
    if count > 0 {
        eprintln!(
            "velora-opt: {name}: the directions of {count} of {} layers are placeholders, which calibrate, or \
             the first step of run, fills",
            layers.len()
        );
    }
}

/// The two graphs.
struct Pair<'a> {
    original: Loaded,
    rewritten: Loaded,
    /// Where their external data is.
    folders: [&'a Path; 2],
}

/// Runs both graphs on a batch.
fn measure(
    arguments: &VerifyArguments,
    path: &Path,
    pair: &Pair<'_>,
    gradients: &[Gradient],
) -> Result<(Numbers, Vec<layers::Layer>)> {
    let Pair {
        original,
        rewritten,
        folders,
    } = pair;
    let (before, after) = (original.executable()?, rewritten.executable()?);
    let analyses = Analyses::new(&original.model, &original.settings)?;
    let after = factors::expanded(
        (&original.model.graph, &rewritten.model.graph),
        &analyses,
        &after,
        gradients,
    )?;
    let analyses = Analyses::new(&before, &original.settings)?;
    let halves = (&analyses.roles, &analyses.partition);
    let (settings, folder) = (&original.settings, Some(folders[0]));
    let given = &arguments.batch;
    let inputs = read_inputs(path, given, &before, folder, halves, &settings.sizes);
    let inputs = inputs.with_context(|| original.name.clone())?;
    for note in inputs.notes.iter().filter(|_| !arguments.source.quiet) {
        eprintln!("velora-opt: {note}");
    }
    let cpu = Cpu::new(0).context("cannot start threads")?;
    let bench = |model, folder| Bench {
        model,
        folder: Some(folder),
        inputs: &inputs,
        cpu: &cpu,
    };
    let original_bench = bench(&before, folders[0]);
    let rewritten_bench = bench(&after, folders[1]);
    let sized = Settings {
        sizes: inputs.bound.sizes.clone(),
        ..settings.clone()
    };
    let types = shapes(&before, &sized)?;
    // Of the graph that is executed, whose functions are gone.
    let graph = &before.graph;
    let results = gradients.iter().filter_map(|gradient| {
        let value = gradient.site.result(&original.model.graph)?;
        Some(original.model.graph.value(value).name.as_str())
    });
    let results: BTreeSet<&str> = results.collect();
    let changed: Vec<ValueId> = graph
        .values()
        .filter(|&v| results.contains(graph.value(v).name.as_str()))
        .collect();
    let of_original = || original.name.clone();
    let identity = bits::compare(
        &original_bench,
        &analyses,
        &types,
        &rewritten_bench,
        &changed,
    );
    let judged = layers::judge(
        &original_bench,
        &types,
        &rewritten_bench,
        (&original.model.graph, &rewritten.model.graph),
        gradients,
    );
    let total = fidelity::whole(&original_bench, &analyses, &types, &[&rewritten_bench]);
    let numbers = Numbers {
        data: Data {
            path: path.display().to_string(),
            sha256: sha256(path)?,
            samples: inputs.bound.size,
            parameters: match &arguments.batch.params {
                Some(path) => Some((path.display().to_string(), sha256(path)?)),
                None => None,
            },
            seed: arguments.batch.init_params.map(|_| arguments.batch.seed),
        },
        sizes: inputs.bound.sizes.clone(),
        device: cpu.name(),
        identity: identity.with_context(of_original)?,
        total: total
            .with_context(of_original)?
            .first()
            .copied()
            .unwrap_or_default(),
    };
    Ok((numbers, judged.with_context(of_original)?))
}
