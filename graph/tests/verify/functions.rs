//! Functions and their calls.

use crate::{HEAD, check, violations};
use velora_graph::text::parse_model;

#[test]
fn a_function_is_unique_by_domain_name_and_overload() {
    check(
        r#"
g (float x) => (float y) {
   y = local.F:b (x)
}

<
  domain: "local",
  opset_import: ["" : 21]
>
F (x) => (y)
{
   y = Relu (x)
}

<
  domain: "local",
  overload: "b",
  opset_import: ["" : 21]
>
F (x) => (y)
{
   y = Relu (x)
}

<
  domain: "local",
  opset_import: ["" : 21]
>
F (x) => (y)
{
   # error: domain 'local', name 'F' and overload '' are those of function 0 too; expected a new combination
   y = Neg (x)
}"#,
    );
}

#[test]
fn a_function_body_sees_its_inputs_only() {
    check(
        r#"
g (float x, float w) => (float y) {
   y = local.F (x)
}

<
  domain: "local",
  opset_import: ["" : 21,"" : 20]
>
F <a,a>(x, x) => (y, z)
{
   # error: operator set '' is imported twice; once is allowed
   # error: attribute 'a' is declared twice
   # error: input 'x' is already defined by an input
   # error: lists the output 'z', which is defined nowhere; expected an input, an initialiser or the output of a node
   y = Add (x, w)
   # error: reads 'w', which is defined nowhere; expected an input, an initialiser or the output of a node
   y = Add (x, x)
   # error: output 'y' is already defined by node 0 (Add)
}"#,
    );
}

#[test]
fn a_function_refers_to_attributes_that_it_declares() {
    check(
        r#"
g (float x) => (float y) {
   y = Elu <alpha: float = @alpha> (x)
   # error: attribute 'alpha' refers to the attribute 'alpha' of a function, and stands in none
}

<
  domain: "local",
  opset_import: ["" : 21]
>
F <plain,other: float = 2.0>(x) => (y)
{
   a = Elu <alpha: float = @plain> (x)
   b = Elu <alpha: float = @other> (x)
   c = Elu <alpha: float = @third> (x)
   # error: attribute 'alpha' refers to 'third', which the function does not declare
   y = If (x) <then_branch: graph = t () => (d) {
      d = Elu <alpha: float = @fourth> (x)
      # error: attribute 'alpha' refers to 'fourth', which the function does not declare
   }>
}"#,
    );
}

#[test]
fn a_function_declares_values_that_it_has() {
    check(
        r#"
g (float x) => (float y) {
   y = local.F (x, x)
   # error: 2 inputs; the function 'F' has 1
   a, b = local.F ()
   # error: 2 outputs; the function 'F' has 1
}

<
  domain: "local",
  opset_import: ["" : 21]
>
F (x) => (y)
<float x, float gone>
{
   # error: value info 'gone' names no value of this graph
   y = Relu (x)
}"#,
    );
}

#[test]
fn a_function_does_not_call_itself() {
    check(
        r#"
g (float x) => (float y) {
   y = local.A (x)
}

<
  domain: "local",
  opset_import: ["" : 21,"local" : 1]
>
A (x) => (y)
{
   # error: the function calls itself: A -> B -> A; functions must not be recursive
   y = local.B (x)
}

<
  domain: "local",
  opset_import: ["" : 21,"local" : 1]
>
B (x) => (y)
{
   a = local.C (x)
   y = If (a) <then_branch: graph = t () => (d) {
      d = local.A (x)
   }>
}

<
  domain: "local",
  opset_import: ["" : 21,"local" : 1]
>
C (x) => (y)
{
   y = Relu (x)
}"#,
    );
}

#[test]
fn the_first_cycles_of_many_are_reported() {
    // Each function calls the next and the first.
    let count = 400;
    let functions: String = (0..count)
        .map(|i| {
            let next = (i + 1) % count;
            format!(
                "<domain: \"local\", opset_import: [\"local\" : 1]> F{i} (x) => (y) \
                 {{ a = local.F{next} (x) y = local.F0 (x) }}\n"
            )
        })
        .collect();
    let text = format!("{HEAD}g (float x) => (float x) {{}}\n{functions}");
    let found = violations(&parse_model(&text).unwrap());
    assert_eq!(found.list.len(), 16);
}
