//! Functions of the model and calls of them.

use super::graphs::{NodeRef, Scope};
use super::{Checker, Crumb, Root, domain, short};
use crate::onnx::schema::{FunctionProto, NodeProto};
use crate::text::Part;
use std::collections::{HashMap, HashSet};

type Key<'a> = (&'a str, &'a str, &'a str);

fn key(function: &FunctionProto) -> Key<'_> {
    (
        domain(function.domain()),
        function.name(),
        function.overload(),
    )
}

/// Functions by what a node calls them.
pub(super) struct Table<'a> {
    by_key: HashMap<Key<'a>, usize>,
}

impl<'a> Table<'a> {
    pub(super) fn new(functions: &'a [FunctionProto]) -> Self {
        let mut by_key = HashMap::new();
        for (index, function) in functions.iter().enumerate() {
            by_key.entry(key(function)).or_insert(index);
        }
        Table { by_key }
    }

    /// The function that a node calls.
    pub(super) fn called(&self, node: &NodeProto) -> Option<usize> {
        if self.by_key.is_empty() {
            return None;
        }
        let key = (domain(node.domain()), node.op_type(), node.overload());
        self.by_key.get(&key).copied()
    }
}

impl<'a> Checker<'a> {
    /// Checks all functions, and that none calls itself.
    pub(super) fn functions(&mut self) {
        let imported: HashSet<_> = (self.model.opset_import.iter())
            .map(|o| domain(o.domain()))
            .collect();
        let mut calls = Vec::with_capacity(self.model.functions.len());
        for (index, function) in self.model.functions.iter().enumerate() {
            self.place.part = Part::Function(index);
            self.trail.push(Crumb::Function(index, function));
            let name = domain(function.domain());
            if !imported.contains(name) {
                self.report(format!(
                    "the model does not import the function's domain '{name}'"
                ));
            }
            self.function(index, function);
            self.trail.pop();
            calls.push(std::mem::take(&mut self.root.calls));
        }
        self.recursion(&calls);
    }

    fn function(&mut self, index: usize, function: &'a FunctionProto) {
        self.root = Root::new(&function.opset_import, "the function");
        self.opsets(&function.opset_import);
        if function.name().is_empty() {
            self.report("the function has no name");
        }
        let (space, name, overload) = key(function);
        let first = self.functions.by_key.get(&(space, name, overload)).copied();
        if let Some(first) = first.filter(|&first| first != index) {
            self.report(format!(
                "domain '{space}', name '{name}' and overload '{overload}' are those of function \
                 {first} too; expected a new combination"
            ));
        }
        let mut attributes = HashSet::new();
        let defaults = function.attribute_proto.iter().map(|a| a.name());
        for name in function
            .attribute
            .iter()
            .map(String::as_str)
            .chain(defaults)
        {
            if !attributes.insert(name) {
                self.report(format!("attribute '{name}' is declared twice"));
            }
        }
        // The defaults stand outside the body: they see neither its values nor its attributes.
        self.attributes(&function.attribute_proto);
        self.root.attributes = Some(attributes);
        self.scopes.push(Scope::default());
        self.inputs(function.input.iter().map(String::as_str));
        let nodes: Vec<_> = function.node.iter().map(NodeRef::new).collect();
        self.outputs(&nodes);
        self.infos(&function.value_info);
        self.nodes(&nodes);
        self.results(function.output.iter().map(String::as_str));
        self.scopes.pop();
    }

    /// Reports cycles of calls, each at the function that closes it; the first few, as their number
    /// times their length may be the square of the number of functions.
    fn recursion(&mut self, calls: &[Vec<usize>]) {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        const CYCLES: usize = 16;
        let mut reported = 0;
        let mut states = vec![State::New; calls.len()];
        for start in 0..calls.len() {
            if states[start] != State::New {
                continue;
            }
            // The functions on the way, and how many of each one's calls were followed.
            let mut path = vec![(start, 0)];
            states[start] = State::Open;
            while let Some((here, followed)) = path.last_mut() {
                let Some(&next) = calls[*here].get(*followed) else {
                    states[*here] = State::Done;
                    path.pop();
                    continue;
                };
                *followed += 1;
                match states[next] {
                    State::Done => {}
                    State::Open if reported == CYCLES => return,
                    State::New => {
                        states[next] = State::Open;
                        path.push((next, 0));
                    }
                    State::Open => {
                        let cycle = path.iter().map(|(f, _)| *f).skip_while(|&f| f != next);
                        let cycle: Vec<_> = cycle.chain([next]).collect();
                        self.recursive(&cycle);
                        reported += 1;
                    }
                }
            }
        }
    }

    fn recursive(&mut self, cycle: &[usize]) {
        let &[first, ..] = cycle else {
            return;
        };
        let functions = &self.model.functions;
        let names: Vec<_> = cycle.iter().map(|&f| short(functions[f].name())).collect();
        self.place.part = Part::Function(first);
        self.trail.push(Crumb::Function(first, &functions[first]));
        self.report(format!(
            "the function calls itself: {}; functions must not be recursive",
            names.join(" -> ")
        ));
        self.trail.pop();
    }
}
