//! `calibrate`: fills the directions of a rewritten graph from batches of data.

use super::{Loaded, warn_of_doubtful};
use crate::cli::{CalibrateArguments, ExternalData};
use crate::io::{Output, write_model};
use anyhow::{Context, Result, bail};
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::roles;
use velora_graph::onnx::schema::{ModelProto, StringStringEntryProto};
use velora_runtime::backend::Backend;
use velora_runtime::cpu::Cpu;
use velora_runtime::data;
use velora_runtime::data::batches::Last;
use velora_runtime::session::directions;
use velora_runtime::session::schedule::Schedule;
use velora_runtime::session::start::{Options, start};
use velora_runtime::session::trainer::Settings;
use velora_runtime::tensor::Tensor;

/// Writes the model with its directions filled.
///
/// # Errors
/// Where the model has none to fill, data or parameters do not fit it, or it cannot be written.
pub fn run(arguments: &CalibrateArguments) -> Result<()> {
    let mut loaded = Loaded::read_whole(&arguments.source.model, &arguments.source)?;
    let mut proto = loaded.model.to_proto();
    loaded.inline()?;
    let unfilled = loaded.measure()?;
    let name = &loaded.name;
    if unfilled.is_empty() {
        bail!(
            "{name}: there are no directions to fill; those of --init first-batch and --init svd are \
             filled, once"
        );
    }
    let roles = roles(&loaded.model.graph, &loaded.settings.hints).with_context(|| name.clone())?;
    warn_of_doubtful(&arguments.source, &loaded.model, &roles);
    let partition = Partition::new(&loaded.model.graph, &roles);
    let read = |path| data::read(path).context("cannot use the data");
    let samples = read(arguments.data.as_path())?;
    let parameters = arguments
        .parameters
        .params
        .as_deref()
        .map(read)
        .transpose()?;
    let cpu = Cpu::new(arguments.threads).context("cannot start threads")?;
    let options = Options {
        data: &samples,
        evaluation: None,
        batch: arguments.batch,
        sizes: &loaded.settings.sizes,
        last: Last::Drop,
        shuffle: !arguments.no_shuffle,
        parameters: parameters.as_ref(),
        init: arguments.parameters.init_params.map(Into::into),
        settings: Settings {
            optimizer: None,
            schedule: Schedule::constant(0.0),
            accumulate: 1,
            clip: None,
            seed: arguments.parameters.seed,
            model: String::new(),
        },
        folder: arguments.source.model.parent(),
        project: None,
        unfilled: &unfilled,
    };
    let mut started =
        start(&loaded.model, &roles, &partition, options, &cpu).with_context(|| name.clone())?;
    let there = started.session.batches().per_epoch() as u64;
    if arguments.batches > there {
        bail!(
            "--batches {}: {} has {there} batches of {}",
            arguments.batches,
            arguments.data.display(),
            started.bound.size
        );
    }
    for note in started.notes.iter().filter(|_| !arguments.source.quiet) {
        eprintln!("velora-opt: {note}");
    }
    let mut filled = None;
    let (session, batches) = (&mut started.session, arguments.batches);
    cpu.enter(&mut || filled = Some(session.fill_directions(batches)));
    let Some(filled) = filled else {
        bail!("the device ran nothing");
    };
    let filled = filled.with_context(|| name.clone())?;
    fill(&mut proto, &filled);
    let output = Output {
        path: &arguments.output,
        external_data: ExternalData::Keep,
        quiet: arguments.source.quiet,
    };
    write_model(&mut proto, loaded.source.as_ref(), output)?;
    if !arguments.source.quiet {
        eprintln!(
            "velora-opt: filled {} directions from {} samples ({})",
            filled.len(),
            started.bound.size as u64 * arguments.batches,
            directions::names(&unfilled)
        );
    }
    Ok(())
}

/// Puts directions in the place of the constants of their names, and says so in their metadata.
fn fill(proto: &mut ModelProto, filled: &[(String, Tensor)]) {
    let constants = proto.graph.iter_mut().flat_map(|g| &mut g.initializer);
    for constant in constants {
        let Some((_, tensor)) = filled.iter().find(|(name, _)| name == constant.name()) else {
            continue;
        };
        constant.float_data.clear();
        constant.raw_data = Some(tensor.bytes.clone());
        for entry in &mut constant.metadata_props {
            if entry.key() == "velora.calibrated" {
                *entry = StringStringEntryProto {
                    value: Some("yes".to_owned()),
                    ..entry.clone()
                };
            }
        }
    }
}
