//! Graph cases: `tests/cases/**/*.txt`, one graph and what the tool finds in it or makes of it, in one
//! file. `tests/cases/README.md` describes the format.
//!
//! `BLESS=1 cargo test --test graph_cases` writes what was found into the cases; `CASE=text` runs only
//! the cases with that in their paths.
#![allow(clippy::unwrap_used)]

mod case;
mod hoist;
mod lifetimes;
mod partition;
mod pin;
mod rewrite;
mod roles;
mod saved;
mod select;
mod sites;

use case::{Case, Kind};
use std::fs;
use std::path::{Path, PathBuf};

/// The kinds of cases, by the name in their headers.
const KINDS: [&dyn Kind; 9] = [
    &hoist::Hoist,
    &lifetimes::Lifetimes,
    &partition::Partition,
    &pin::Pin,
    &rewrite::Rewrite,
    &roles::Roles,
    &saved::Saved,
    &select::Select,
    &sites::Sites,
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            None if path.is_dir() => collect(&path, found),
            Some(extension) if extension == "txt" => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn cases() {
    let folder = root().join("tests/cases");
    let filter = std::env::var("CASE").unwrap_or_default();
    let bless = std::env::var_os("BLESS").is_some();
    let mut paths = Vec::new();
    collect(&folder, &mut paths);
    paths.retain(|path| path.to_str().unwrap().contains(&filter));
    paths.sort();
    assert!(!paths.is_empty(), "no case in {}", folder.display());
    let mut failures = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(&folder).unwrap().display().to_string();
        match outcome(&text) {
            Ok(actual) if actual == text => {}
            Ok(actual) if bless => fs::write(&path, actual).unwrap(),
            Ok(actual) => failures.push(format!("{name}:\n{}", case::difference(&text, &actual))),
            Err(problem) => failures.push(format!("{name}: {problem}")),
        }
    }
    assert!(
        failures.is_empty(),
        "\n{}\n(BLESS=1 accepts what was found)\n",
        failures.join("\n")
    );
}

/// The text of a case with what is really found in it.
fn outcome(text: &str) -> Result<String, String> {
    let case = Case::parse(text)?;
    let kind = (KINDS.iter()).find(|k| k.name() == case.test);
    let kind = kind.ok_or_else(|| format!("there is no test '{}'", case.test))?;
    let found = match kind.run(&case)? {
        Ok(found) => found,
        Err(message) => format!("error: {message}"),
    };
    Ok(case.with_expectation(&found))
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let header = "# test: partition\n<ir_version: 8, opset_import: [\"\" : 18]>\n\
                  g (float[4] w) => (float loss, float[4] w_grad) {\n   \
                  loss = ReduceSum <keepdims = 0> (w)\n   w_grad = Neg (w)\n}\n----\n";
    let right = format!("{header}forward:  loss\nbackward: w_grad\n");
    assert_eq!(outcome(&right).unwrap(), right);
    for wrong in ["", "forward:  loss w_grad\n", "error: no gradients\n"] {
        assert_eq!(outcome(&format!("{header}{wrong}")).unwrap(), right);
    }
    for broken in [
        "",
        "# test: nothing\ng () => () {}\n----\n",
        "# test: partition\n# option: --groups 4\ng () => () {}\n----\n",
        "# test: partition\n# options: --group 4\ng () => () {}\n----\n",
        "# test: partition\nno graph\n----\n",
        "# test: partition\n# model: models/missing.onnx\n----\n",
        "# test: partition\ng () => () {}\n",
    ] {
        assert!(outcome(broken).is_err(), "{broken}");
    }
}
