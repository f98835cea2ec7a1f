//! `run`: trains a graph on this machine.

use super::{Loaded, warn_of_doubtful};
use crate::adapter_file;
use crate::cli::{OptimizerKind, RunArguments, ScheduleKind, is_stream};
use crate::device;
use crate::io::{print, write_text};
use crate::progress::Progress;
use crate::report::run::{Outcome, RegionBytes, Scored, table};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, LineWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::roles;
use velora_graph::onnx::write::{check_replaceable, replace};
use velora_runtime::backend::{Observer, StepContext};
use velora_runtime::check::{Check, Precision};
use velora_runtime::data::batches::{Batches, Last};
use velora_runtime::data::{self, safetensors};
use velora_runtime::plan::show;
use velora_runtime::session::checkpoint;
use velora_runtime::session::directions;
use velora_runtime::session::evaluation::Evaluation;
use velora_runtime::session::optimizer::Optimizer;
use velora_runtime::session::profile::Profile;
use velora_runtime::session::schedule::{Decay, Schedule};
use velora_runtime::session::start::{Options, Started, start};
use velora_runtime::session::trainer::{Report, Settings};

/// Trains a graph.
///
/// # Errors
/// Where files cannot be read or do not fit the graph, where the graph cannot be executed, where the loss
/// is no number, or where a result cannot be written.
pub fn run(arguments: &RunArguments) -> Result<()> {
    check_outputs(arguments)?;
    let optimizer = optimizer(arguments)?;
    optimizer.check()?;
    device::check(arguments, &optimizer)?;
    let mut loaded = Loaded::read_whole(&arguments.source.model, &arguments.source)?;
    loaded.check_spared(
        arguments
            .outputs()
            .iter()
            .filter_map(|(_, path)| path.as_ref()),
    )?;
    loaded.inline()?;
    // Of the graph as it is in the file.
    let model_signature = signature(&loaded);
    let unfilled = loaded.measure()?;
    let name = &loaded.name;
    let graph = &loaded.model.graph;
    let roles = roles(graph, &loaded.settings.hints).with_context(|| name.clone())?;
    warn_of_doubtful(&arguments.source, &loaded.model, &roles);
    let partition = Partition::new(graph, &roles);
    let read = |path: &Path| data::read(path).context("cannot use the data");
    let train = read(&arguments.data)?;
    let held_out = arguments.eval.as_deref().map(read).transpose()?;
    let parameters = arguments
        .parameters
        .params
        .as_deref()
        .map(read)
        .transpose()?;
    if let Some(adapters) = parameters.as_ref().filter(|p| adapter_file::is_adapter(p)) {
        adapter_file::check(adapters, &loaded.model, &roles)?;
    }
    if arguments.save_adapter.is_some() {
        adapter_file::layers(graph, &roles).with_context(|| name.clone())?;
    }
    let resumed = arguments
        .resume
        .as_deref()
        .map(checkpoint::read)
        .transpose()?;
    let device = device::open(arguments, &optimizer)?;
    let project = arguments.project.as_ref();
    let project = project.map(|pattern| move |name: &str| pattern.is_match(name));
    let settings = Settings {
        optimizer: Some(optimizer),
        schedule: Schedule::constant(arguments.lr),
        accumulate: arguments.accumulate,
        clip: arguments.clip,
        seed: arguments.parameters.seed,
        model: model_signature,
    };
    let options = Options {
        data: &train,
        evaluation: held_out.as_ref(),
        batch: arguments.batch,
        sizes: &loaded.settings.sizes,
        last: if arguments.keep_last {
            Last::Keep
        } else {
            Last::Drop
        },
        shuffle: !arguments.no_shuffle,
        parameters: parameters.as_ref(),
        init: arguments.parameters.init_params.map(Into::into),
        settings,
        folder: arguments.source.model.parent(),
        project: project.as_ref().map(|p| p as &dyn Fn(&str) -> bool),
        unfilled: &unfilled,
    };
    let mut started = start(&loaded.model, &roles, &partition, options, &*device)
        .with_context(|| name.clone())?;
    let per_epoch = started.session.batches().per_epoch() as u64;
    let steps = arguments
        .steps
        .unwrap_or((per_epoch / arguments.accumulate).max(1));
    started.session.set_schedule(Schedule {
        peak: arguments.lr,
        warmup: arguments.warmup,
        decay: match arguments.schedule {
            ScheduleKind::Constant => Decay::Constant,
            ScheduleKind::Cosine => Decay::Cosine {
                total: steps,
                floor: 0.0,
            },
        },
    });
    if let Some(checkpoint) = &resumed {
        started.session.resume(checkpoint)?;
    }
    if !unfilled.is_empty() && resumed.is_none() && !arguments.source.quiet {
        eprintln!(
            "velora-opt: the first batch fills the directions of {}",
            directions::names(&unfilled)
        );
    }
    if let Some(path) = &arguments.plan_json {
        write_text(path, &show::json(started.session.plan())?)?;
    }
    for note in started.notes.iter().filter(|_| !arguments.source.quiet) {
        eprintln!("velora-opt: {note}");
    }
    // The pool's own thread runs the loop: a step is then handed over to nobody.
    let mut outcome = None;
    let work = &mut started;
    device.enter(&mut || outcome = Some(train_loop(arguments, work, steps)));
    let Some(trained) = outcome else {
        bail!("the device ran nothing");
    };
    let mut trained = trained?;
    trained.device = device.name();
    trained.model = name.clone();
    if let Some(path) = &arguments.save_adapter {
        adapter_file::write(path, &loaded.model, &roles, &started.session)?;
    }
    deliver(arguments, &started, &trained)
}

/// Whether all outputs can be written: what is found only after the last step is found too late.
fn check_outputs(arguments: &RunArguments) -> Result<()> {
    for (option, path) in arguments.outputs() {
        let Some(path) = path else { continue };
        match (option, is_stream(&path)) {
            // The log is opened before the first step, and may be a pipe or a device.
            ("--log", _) | ("--json" | "--plan-json", true) => {}
            (_, true) => bail!("{option} -: standard output cannot take it; name a file"),
            (_, false) => check_replaceable(&path)?,
        }
    }
    Ok(())
}

/// Trains to the last step, with evaluations and checkpoints on the way.
fn train_loop(arguments: &RunArguments, started: &mut Started<'_>, steps: u64) -> Result<Outcome> {
    let mut log = Log::new(arguments)?;
    let mut profile = arguments.profile.as_ref().map(|_| Profile::default());
    let mut progress = Progress::new(arguments.source.quiet);
    let mut outcome = Outcome::new(started.session.plan());
    let mut spent = Duration::ZERO;
    let first = started.session.steps();
    let mut check = check(arguments, started)?;
    let checked = u64::from(check.is_some() && first < steps);
    while started.session.steps() < steps {
        let mut begin = Instant::now();
        let watch = match &mut check {
            Some(check) => Some(check as &mut dyn Observer),
            None => profile.as_mut().map(|p| p as &mut dyn Observer),
        };
        let counted = crate::allocations::count();
        let report = started.session.step(watch)?;
        let (count, bytes) = crate::allocations::since(counted);
        if let Some(check) = check.take() {
            report_check(arguments, &check)?;
            // A step that is watched by operation has no time of its own.
            begin = Instant::now();
        }
        spent += begin.elapsed();
        // In the first steps the threads set up what they keep.
        if report.step > first + 2 && profile.is_none() {
            outcome.allocations.0 += count;
            outcome.allocations.1 += bytes;
        }
        outcome.loss.push((report.step, report.loss));
        log.step(&report)?;
        progress.show(report.step, steps, || {
            format!("{}/{steps} loss {:.4}", report.step, report.loss)
        });
        let due = |every: Option<u64>| every.is_some_and(|n| report.step.is_multiple_of(n));
        if due(arguments.eval_every) && report.step < steps {
            let evaluation = evaluate(started)?;
            log.evaluation(report.step, evaluation.as_ref())?;
            outcome
                .evaluations
                .extend(evaluation.map(|e| (report.step, e)));
        }
        if due(arguments.checkpoint_every)
            && let Some(path) = &arguments.checkpoint
        {
            started.session.save(path)?;
        }
    }
    drop(progress);
    let done = started.session.steps().saturating_sub(first);
    let timed = done.saturating_sub(checked);
    outcome.seconds_per_step = spent.as_secs_f64() / timed.max(1) as f64;
    outcome.steps = started.session.steps();
    let evaluation = evaluate(started)?;
    log.evaluation(outcome.steps, evaluation.as_ref())?;
    outcome.evaluation = evaluation;
    if let Some(path) = &arguments.checkpoint {
        started.session.save(path)?;
    }
    if let (Some(profile), Some(path)) = (&profile, &arguments.profile) {
        outcome.profile = profile.rows();
        replace(path, |file| profile.write_trace(&mut BufWriter::new(file)))?;
    }
    outcome.memory = (started.session.memory().into_iter())
        .map(|(region, predicted, measured)| RegionBytes {
            region: region.name(),
            predicted,
            measured,
        })
        .collect();
    Ok(outcome)
}

/// What watches the first step for `--check-against`.
fn check(arguments: &RunArguments, started: &Started<'_>) -> Result<Option<Check>> {
    if arguments.check_against.is_none() {
        return Ok(None);
    }
    let context = StepContext {
        seed: arguments.parameters.seed,
        step: started.session.steps() * arguments.accumulate,
    };
    let plan = started.session.plan();
    let precision = Precision {
        tf32: arguments.tf32,
    };
    let check = Check::new(plan, arguments.threads, context, precision);
    check.context("cannot start threads").map(Some)
}

/// Says what a check found; a disagreement is an error.
fn report_check(arguments: &RunArguments, check: &Check) -> Result<()> {
    let findings = check.findings();
    if findings.first.is_some() {
        bail!("{findings}");
    }
    if !arguments.source.quiet {
        eprintln!("velora-opt: {findings}");
    }
    Ok(())
}

fn evaluate(started: &mut Started<'_>) -> Result<Option<Scored>> {
    let (labels, is_text) = (started.labels, started.is_text);
    let Some(data) = &mut started.evaluation else {
        return Ok(None);
    };
    let data: &mut Batches = data;
    let Evaluation { loss, accuracy, .. } = started.session.evaluate(data, labels)?;
    Ok(Some(Scored {
        loss,
        accuracy,
        perplexity: is_text.then(|| loss.exp()),
    }))
}

/// The optimiser that is asked for.
///
/// # Errors
/// Where an option of those that compress gradients is given for another, or the rank is missing.
fn optimizer(arguments: &RunArguments) -> Result<Optimizer> {
    let decay = arguments.weight_decay;
    let betas = arguments.betas;
    let kind = arguments.optimizer;
    let compresses = matches!(kind, OptimizerKind::Galore | OptimizerKind::Flora);
    let given = [
        ("--rank", arguments.rank.is_some(), compresses),
        (
            "--update-period",
            arguments.update_period.is_some(),
            compresses,
        ),
        (
            "--projection-scale",
            arguments.projection_scale.is_some(),
            kind == OptimizerKind::Galore,
        ),
        ("--project", arguments.project.is_some(), compresses),
    ];
    if let Some((option, ..)) = given.into_iter().find(|&(_, given, takes)| given && !takes) {
        let takers = match option {
            "--projection-scale" => "galore",
            _ => "galore and flora",
        };
        bail!("{option} is an option of {takers}; leave it out, or give --optimizer");
    }
    let rank = match (arguments.rank, compresses) {
        (None, true) => bail!(
            "galore and flora need --rank R: what is left of the smaller side of a matrix's gradient"
        ),
        (rank, _) => rank.unwrap_or(0),
    };
    Ok(match kind {
        OptimizerKind::Sgd => Optimizer::Sgd {
            momentum: arguments.momentum,
            nesterov: false,
            weight_decay: decay.unwrap_or(0.0),
        },
        OptimizerKind::Adam => Optimizer::Adam {
            betas,
            epsilon: 1e-8,
            weight_decay: decay.unwrap_or(0.0),
        },
        OptimizerKind::Adamw => Optimizer::AdamW {
            betas,
            epsilon: 1e-8,
            weight_decay: decay.unwrap_or(0.01),
        },
        OptimizerKind::Galore => Optimizer::GaLore {
            rank,
            update_period: arguments.update_period.unwrap_or(200),
            scale: arguments.projection_scale.unwrap_or(0.25),
            betas,
            epsilon: 1e-8,
            weight_decay: decay.unwrap_or(0.0),
        },
        OptimizerKind::Flora => Optimizer::Flora {
            rank,
            update_period: arguments.update_period.unwrap_or(1000),
            beta: betas[0],
            weight_decay: decay.unwrap_or(0.0),
            seed: arguments.parameters.seed,
        },
    })
}

/// What tells models apart for a checkpoint: the parameters' names and shapes are compared anyway, so
/// this is what else decides the numbers, the operators in their order.
fn signature(loaded: &Loaded) -> String {
    let graph = &loaded.model.graph;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &node in graph.order() {
        let node = graph.node(node);
        for byte in node.domain().bytes().chain(node.op().bytes()).chain([0]) {
            // FNV-1a: a label, not a safeguard against forgery.
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{} nodes, {hash:016x}", graph.node_count())
}

/// Writes the outcome and the parameters.
fn deliver(arguments: &RunArguments, started: &Started<'_>, outcome: &Outcome) -> Result<()> {
    if let Some(path) = &arguments.save {
        let tensors: Vec<_> = (started.session.kept().iter())
            .map(|kept| Ok((&kept.name[..], started.session.read(&kept.operand)?)))
            .collect::<Result<_>>()?;
        let views = tensors.iter().map(|(name, tensor)| (*name, tensor.view()));
        safetensors::write(path, &BTreeMap::new(), views)?;
    }
    if let Some(path) = &arguments.json {
        write_text(path, &outcome.json(&started.bound.sizes)?)?;
    }
    if arguments.source.quiet || arguments.streams_outcome() {
        return Ok(());
    }
    print(&table(outcome))
}

/// Lines of JSON, one per step.
struct Log(Option<Box<dyn Write + Send>>);

impl Log {
    fn new(arguments: &RunArguments) -> Result<Self> {
        let Some(path) = &arguments.log else {
            return Ok(Log(None));
        };
        if is_stream(path) {
            return Ok(Log(Some(Box::new(std::io::stdout()))));
        }
        // A run that goes on from a checkpoint goes on in its log.
        let mut options = File::options();
        let options = options.create(true).write(true);
        let options = match arguments.resume {
            Some(_) => options.append(true),
            None => options.truncate(true),
        };
        let file = options
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Log(Some(Box::new(LineWriter::new(file)))))
    }

    fn line(&mut self, line: &serde_json::Value) -> Result<()> {
        match &mut self.0 {
            Some(to) => writeln!(to, "{line}").context("cannot write the log"),
            None => Ok(()),
        }
    }

    fn step(&mut self, report: &Report) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        self.line(&serde_json::json!({
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
        }))
    }

    fn evaluation(&mut self, step: u64, evaluation: Option<&Scored>) -> Result<()> {
        match evaluation {
            Some(scored) => self.line(&serde_json::json!({ "step": step, "eval": scored })),
            None => Ok(()),
        }
    }
}
