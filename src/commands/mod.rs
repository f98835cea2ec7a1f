//! One file for each command, and what the ones that analyse a graph share.

pub mod calibrate;
pub mod completions;
pub mod inspect;
pub mod man;
pub mod merge;
pub mod optimize;
pub mod pareto;
mod planned;
pub mod print;
pub mod run;
pub mod verify;

use crate::cli::{GraphArguments, ParameterInit, SourceArguments, is_stream};
use crate::dims::sizes;
use crate::io::{Input, check_data, check_spares_data, write_text};
use crate::report::build::{Opened, Sides, report};
use crate::report::{Report, Style, View, html, inspected, json, optimized};
use anyhow::{Context, Result, bail};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use velora_graph::analysis::Settings;
use velora_graph::analysis::roles::{Hints, Roles};
use velora_graph::inline::{check_calls, inline};
use velora_graph::ir::Model;
use velora_graph::onnx::read::Source;
use velora_passes::ops;
use velora_runtime::session::directions::{self, Unfilled};
use velora_runtime::session::init::Scheme;

/// A training graph, ready for the analyses.
struct Loaded {
    /// How messages call the file.
    name: String,
    /// The file's content.
    model: Model,
    /// The file itself; none for standard input.
    source: Option<Source>,
    /// The files that hold data of its tensors.
    data: Vec<PathBuf>,
    /// What the command line says about it.
    settings: Settings,
}

impl Loaded {
    /// Reads a training graph.
    ///
    /// # Errors
    /// Where the file cannot be read, or its graph breaks the rules of the format.
    fn read(arguments: &SourceArguments) -> Result<Loaded> {
        Loaded::open(&arguments.model, arguments)
    }

    /// Reads a graph from another place, of which the arguments are true as well.
    ///
    /// # Errors
    /// As [`Loaded::read`].
    fn open(path: &Path, arguments: &SourceArguments) -> Result<Loaded> {
        let input = Input::read(path, arguments.allow_unknown_fields)?;
        let name = input.name;
        if input.model.graph.is_none() {
            bail!("{name}: the file has no graph");
        }
        check_calls(&input.model).with_context(|| name.clone())?;
        let model = Model::from_proto(input.model).with_context(|| name.clone())?;
        let sizes = sizes(&model.graph, &arguments.dims).with_context(|| name.clone())?;
        let hints = Hints {
            loss: arguments.loss.clone(),
            gradients: arguments.gradients.iter().cloned().collect(),
        };
        if arguments.verbose {
            eprintln!(
                "velora-opt: read {name}: {} nodes, {} inputs, {} outputs",
                model.graph.node_count(),
                model.graph.inputs().len(),
                model.graph.outputs().len(),
            );
        }
        Ok(Loaded {
            name,
            model,
            source: input.source,
            data: input.data,
            settings: Settings { hints, sizes },
        })
    }

    /// Whether no output would replace a file that the graph needs.
    ///
    /// # Errors
    /// Where one would.
    fn check_spared<'a>(&self, outputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
        check_spares_data(&self.data, outputs)
    }

    /// Reads a training graph that is to be executed, with the data of its tensors wherever it is.
    ///
    /// # Errors
    /// As [`Loaded::read`], and where references to data are not acceptable.
    fn read_whole(path: &Path, arguments: &SourceArguments) -> Result<Loaded> {
        let loaded = Loaded::open(path, arguments)?;
        check_data(&mut loaded.model.to_proto(), path)?;
        Ok(loaded)
    }

    /// The graph as the runtime takes it, which knows operators and not functions: calls of functions but
    /// the tool's own are replaced by their bodies.
    ///
    /// # Errors
    /// Where the functions cannot be inlined.
    fn executable(&self) -> Result<Cow<'_, Model>> {
        let functions = &self.model.shell.functions;
        if functions
            .iter()
            .all(|function| function.domain() == ops::DOMAIN)
        {
            return Ok(Cow::Borrowed(&self.model));
        }
        let inlined = inline(self.model.to_proto()).with_context(|| self.name.clone())?;
        let model = Model::from_proto(inlined).with_context(|| self.name.clone())?;
        Ok(Cow::Owned(model))
    }

    /// Keeps the graph as the runtime takes it.
    ///
    /// # Errors
    /// As [`Loaded::executable`].
    fn inline(&mut self) -> Result<()> {
        let inlined = match self.executable()? {
            Cow::Owned(model) => Some(model),
            Cow::Borrowed(_) => None,
        };
        if let Some(model) = inlined {
            self.model = model;
        }
        Ok(())
    }

    /// Directions that a batch has yet to fill; the model measures what they are filled with then.
    ///
    /// # Errors
    /// Where what the file says of them cannot be understood.
    fn measure(&mut self) -> Result<Vec<Unfilled>> {
        let unfilled = directions::unfilled(&self.model).with_context(|| self.name.clone())?;
        if !unfilled.is_empty() {
            let measuring = directions::measuring(self.model.clone(), &unfilled);
            self.model = measuring.with_context(|| self.name.clone())?;
        }
        Ok(unfilled)
    }
}

impl From<ParameterInit> for Scheme {
    fn from(init: ParameterInit) -> Self {
        match init {
            ParameterInit::Normal => Scheme::Normal,
            ParameterInit::Kaiming => Scheme::Kaiming,
        }
    }
}

/// Says which outputs may be gradients that no name tells of.
fn warn_of_doubtful(arguments: &SourceArguments, model: &Model, roles: &Roles) {
    if arguments.quiet {
        return;
    }
    for &(output, input) in &roles.doubtful {
        let [output, input] = [output, input].map(|v| &model.graph.value(v).name);
        eprintln!(
            "velora-opt: output '{output}' has the shape of input '{input}', which has no gradient, but \
             its name does not tell; it is taken to be none (if it is, add --grad {input}={output})"
        );
    }
}

/// The report of what was found. Where it becomes a page, sizes that were given can be changed in it.
///
/// # Errors
/// Where the graph cannot be ordered.
fn reported(loaded: &Loaded, sides: &Sides<'_>, arguments: &GraphArguments) -> Result<Report> {
    let Settings { hints, sizes } = &loaded.settings;
    let wanted = arguments.html.is_some() && !sizes.is_empty();
    let open = wanted.then(|| Opened::new(sides, hints)).flatten();
    report(&loaded.name, sizes, sides, open.as_ref()).with_context(|| loaded.name.clone())
}

/// Writes a report into the files that the arguments name.
fn write_reports(report: &Report, view: View, arguments: &GraphArguments) -> Result<()> {
    if let Some(path) = &arguments.json {
        write_text(path, &json(report)?)?;
    }
    if let Some(path) = &arguments.html {
        write_text(path, &html(report, view))?;
    }
    Ok(())
}

/// Writes a report to where the arguments say: files, and a table. `taken` is what standard output
/// already went to; the table goes to standard error then, and nowhere where the report itself is
/// on standard output.
fn deliver(
    report: &Report,
    view: View,
    arguments: &GraphArguments,
    taken: Option<&Path>,
) -> Result<()> {
    write_reports(report, view, arguments)?;
    if arguments.source.quiet || arguments.is_streamed() {
        return Ok(());
    }
    let render = |style| match view {
        View::Optimized => optimized(report, style),
        View::Inspected => inspected(report, style),
    };
    if taken.is_some_and(is_stream) {
        eprint!(
            "{}",
            render(Style::of(&std::io::stderr(), arguments.source.verbose))
        );
        return Ok(());
    }
    crate::io::print(&render(Style::of(
        &std::io::stdout(),
        arguments.source.verbose,
    )))
}
