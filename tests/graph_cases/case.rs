//! One case: header, graph, expectation.

use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::{Analyses, Settings, symbols};
use velora_graph::ir::{Graph, Model, NodeId, ValueId};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::text::parse_model;
use velora_passes::adapt::base::Base;
use velora_passes::select::{
    Directions, Gradients, Grouping, Init, LayerPlan, Preset, Selection, Storage,
};

/// Between the graph and the expectation.
const SEPARATOR: &str = "----";

/// A kind of case.
pub trait Kind: Sync {
    /// Its name in the header.
    fn name(&self) -> &'static str;
    /// What is found in the graph: text, or the message that a user would get. The outer error is a
    /// case that is itself wrong, or a rule that holds for all cases of the kind and was broken.
    fn run(&self, case: &Case) -> Result<Found, String>;
}

/// Text, or the tool's own message.
pub type Found = Result<String, String>;

/// A case, read.
pub struct Case {
    /// Everything in front of the expectation, the separator included.
    head: String,
    /// Which kind.
    pub test: String,
    pub model: Model,
    /// Whether the graph is a file rather than in the case.
    pub from_file: bool,
    pub settings: Settings,
    pub selection: Selection,
    pub inline: bool,
    pub hoist: bool,
    /// What is computed again, where anything is said of it.
    pub recompute: Option<BTreeSet<String>>,
    /// How bases of adapters are stored, where weights get some.
    pub adapter: Option<Base>,
    /// Also what `show` names.
    pub show: Vec<String>,
}

impl Case {
    /// Reads the text of a case.
    pub fn parse(text: &str) -> Result<Case, String> {
        let mark = format!("\n{SEPARATOR}\n");
        let end = text.find(&mark).ok_or("no line `----` behind the graph")?;
        let (source, head) = (&text[..end], &text[..end + mark.len()]);
        let mut case = Case {
            head: head.to_owned(),
            test: String::new(),
            model: Model::from_proto(Default::default()).unwrap(),
            from_file: false,
            settings: Settings::default(),
            selection: Selection::freeable(Grouping::Groups(4)),
            inline: false,
            hoist: true,
            recompute: None,
            adapter: None,
            show: Vec::new(),
        };
        let mut file = None;
        // The header ends with the first line that is no comment; an empty one sets prose apart.
        for line in source.lines() {
            let Some(line) = line.strip_prefix("# ") else {
                break;
            };
            match line.split_once(": ") {
                Some(("test", name)) => name.clone_into(&mut case.test),
                Some(("model", path)) => file = Some(path),
                Some(("options", words)) => case.options(words)?,
                Some(("dim", dims)) => {
                    for dim in dims.split_whitespace() {
                        let (name, size) = dim.split_once('=').ok_or("expected NAME=N")?;
                        let size = size.parse().map_err(|e| format!("{dim}: {e}"))?;
                        case.settings.sizes.insert(name.into(), size);
                    }
                }
                Some(("layer", plan)) => case.layer(plan)?,
                Some(("again", names)) => {
                    let names = names.split_whitespace().map(str::to_owned);
                    case.recompute = Some(names.filter(|name| name != "-").collect());
                }
                Some(("show", what)) => {
                    case.show.extend(what.split_whitespace().map(str::to_owned));
                }
                // Prose starts with a capital letter.
                Some((key, _)) if !key.starts_with(char::is_uppercase) && !key.contains(' ') => {
                    return Err(format!("unknown header line `# {key}`"));
                }
                _ => {}
            }
        }
        let proto = match file {
            Some(path) => {
                read(&super::root().join(path), UnknownFields::Refuse).map_err(|e| e.to_string())?
            }
            None => parse_model(source).map_err(|e| e.to_string())?,
        };
        case.from_file = file.is_some();
        case.model = Model::from_proto(proto).map_err(|e| e.to_string())?;
        let known = symbols(&case.model.graph);
        match case
            .settings
            .sizes
            .keys()
            .find(|name| !known.contains(*name))
        {
            Some(name) => Err(format!("no input has a dimension '{name}'")),
            None => Ok(case),
        }
    }

    /// The options of the command line that a case may have.
    fn options(&mut self, words: &str) -> Result<(), String> {
        let number = |text: &str| text.parse::<i64>().map_err(|e| format!("{text}: {e}"));
        let patterns = |text: &str| regex::RegexSet::new([text]).map_err(|e| e.to_string());
        let mut words = words.split_whitespace();
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or(format!("{option} needs a value"));
            let selection = &mut self.selection;
            match option {
                "--groups" => selection.defaults.grouping = Grouping::Groups(number(value()?)?),
                "--sub-token-size" => {
                    selection.defaults.grouping = Grouping::SubTokenSize(number(value()?)?);
                }
                "--init" => selection.defaults.init = init(value()?)?,
                "--seed" => selection.defaults.seed = number(value()?)? as u64,
                "--scale" => selection.defaults.scale = value()?.parse().unwrap(),
                "--storage" => selection.defaults.storage = storage(value()?)?,
                "--rank" => selection.defaults.rank = number(value()?)?,
                "--directions" => selection.defaults.directions = directions(value()?)?,
                "--decay" => selection.defaults.decay = value()?.parse().unwrap(),
                "--gradients" => selection.defaults.gradients = gradients(value()?)?,
                "--adapter" => self.adapter = Some(base(value()?)?),
                "--select" => {
                    selection.preset = match value()? {
                        "freeable" => Preset::Freeable,
                        "paper" => Preset::Paper,
                        "all" => Preset::All,
                        other => return Err(format!("--select {other}")),
                    };
                }
                "--include" => selection.include = patterns(value()?)?,
                "--exclude" => selection.exclude = patterns(value()?)?,
                "--min-bytes" => selection.min_bytes = number(value()?)?,
                "--inline" => self.inline = true,
                "--no-hoist" => self.hoist = false,
                "--loss" => self.settings.hints.loss = Some(value()?.to_owned()),
                "--grad" => {
                    let (parameter, output) = value()?.split_once('=').ok_or("PARAM=OUTPUT")?;
                    let hints = &mut self.settings.hints.gradients;
                    hints.insert(parameter.to_owned(), output.to_owned());
                }
                other => return Err(format!("unknown option {other}")),
            }
        }
        Ok(())
    }

    /// `PARAM rewrite=true groups=4 init=random scale=0.5 seed=3`: a layer of a plan.
    fn layer(&mut self, text: &str) -> Result<(), String> {
        let mut words = text.split_whitespace();
        let parameter = words.next().ok_or("expected a parameter")?;
        let mut plan = LayerPlan::default();
        for word in words {
            let (key, value) = word.split_once('=').ok_or("expected KEY=VALUE")?;
            match key {
                "rewrite" => plan.rewrite = Some(value == "true"),
                "groups" => plan.grouping = Some(Grouping::Groups(value.parse().unwrap())),
                "sub_token_size" => {
                    plan.grouping = Some(Grouping::SubTokenSize(value.parse().unwrap()));
                }
                "init" => plan.init = Some(init(value)?),
                "scale" => plan.scale = Some(value.parse().unwrap()),
                "seed" => plan.seed = Some(value.parse().unwrap()),
                "storage" => plan.storage = Some(storage(value)?),
                "rank" => plan.rank = Some(value.parse().unwrap()),
                "directions" => plan.directions = Some(directions(value)?),
                "decay" => plan.decay = Some(value.parse().unwrap()),
                "gradients" => plan.gradients = Some(gradients(value)?),
                other => return Err(format!("a plan has no key '{other}'")),
            }
        }
        self.selection.layers.insert(parameter.to_owned(), plan);
        Ok(())
    }

    /// The case with another expectation.
    pub fn with_expectation(&self, found: &str) -> String {
        format!("{}{}\n", self.head, found.trim_end())
    }

    /// All analyses, or the message of what stands against them.
    pub fn analyses(&self) -> Result<Analyses, String> {
        Analyses::new(&self.model, &self.settings).map_err(|e| e.to_string())
    }
}

fn init(name: &str) -> Result<Init, String> {
    let all = [
        Init::BatchAverage,
        Init::FirstBatch,
        Init::RunningAverage,
        Init::Svd,
        Init::Random,
        Init::Uniform,
        Init::None,
    ];
    let found = all.into_iter().find(|i| i.name() == name);
    found.ok_or_else(|| format!("--init {name}"))
}

fn storage(name: &str) -> Result<Storage, String> {
    let all = [
        Storage::Activation,
        Storage::Float16,
        Storage::BFloat16,
        Storage::Int8,
    ];
    let found = all.into_iter().find(|s| s.name() == name);
    found.ok_or_else(|| format!("--storage {name}"))
}

fn directions(name: &str) -> Result<Directions, String> {
    let found = [Directions::Shared, Directions::Group].into_iter();
    let found = { found }.find(|d| d.name() == name);
    found.ok_or_else(|| format!("--directions {name}"))
}

fn gradients(name: &str) -> Result<Gradients, String> {
    let found = [Gradients::Full, Gradients::Factored].into_iter();
    let found = { found }.find(|g| g.name() == name);
    found.ok_or_else(|| format!("--gradients {name}"))
}

fn base(name: &str) -> Result<Base, String> {
    match name {
        "f32" => Ok(Base::Float32),
        "bf16" => Ok(Base::BFloat16),
        "int4" => Ok(Base::Int4),
        other => Err(format!("--adapter {other}")),
    }
}

/// How cases call a node: the first tensor that it makes.
pub fn made(graph: &Graph, node: NodeId) -> &str {
    match graph.node(node).outputs.iter().flatten().next() {
        Some(&value) => name(graph, value),
        None => graph.node(node).op(),
    }
}

/// The name of a tensor.
pub fn name(graph: &Graph, value: ValueId) -> &str {
    &graph.value(value).name
}

/// The names in a row.
pub fn names(names: &[impl AsRef<str>]) -> String {
    names
        .iter()
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Lines of columns, each as wide as its widest entry.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column));
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The lines that differ, the expected ones first.
pub fn difference(expected: &str, actual: &str) -> String {
    let expected: Vec<&str> = expected.lines().collect();
    let actual: Vec<&str> = actual.lines().collect();
    let same = |(e, a): &(&&str, &&str)| e == a;
    let common = expected.iter().zip(&actual).take_while(same).count();
    let (left, right) = (&expected[common..], &actual[common..]);
    let tail = left.iter().rev().zip(right.iter().rev());
    let tail = tail.take_while(same).count();
    let mut text = format!("  from line {}\n", common + 1);
    for line in &left[..left.len() - tail] {
        text += &format!("  -{line}\n");
    }
    for line in &right[..right.len() - tail] {
        text += &format!("  +{line}\n");
    }
    text
}

/// A map from names to what is called by them, for graphs that are compared by name.
pub fn by_name<'a, T>(items: &'a [T], name: impl Fn(&'a T) -> &'a str) -> BTreeMap<&'a str, &'a T> {
    items.iter().map(|item| (name(item), item)).collect()
}
