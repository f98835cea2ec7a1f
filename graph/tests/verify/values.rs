//! Attributes, tensors and types.

use crate::{HEAD, accept, check, check_with, messages, violations};
use bytes::Bytes;
use velora_graph::onnx::schema::*;
use velora_graph::text::parse_model;
use velora_graph::verify::verify_model;

// Attributes.

#[test]
fn an_attribute_has_a_name_once() {
    check(
        r#"
g (float x) => (float y) {
   y = Elu <alpha: float = 1.0, alpha: float = 2.0> (x)
   # error: attribute 'alpha' is given twice
}"#,
    );
    let found = messages(
        "g (float x) => (float y) { y = Elu <a = 1.0> (x) }",
        |graph| {
            graph.node[0].attribute[0].name = None;
        },
    );
    assert_eq!(found, ["node 0 (Elu): attribute 0 has no name"]);
}

#[test]
fn an_attribute_has_the_field_that_its_type_names() {
    let with = |change: fn(&mut AttributeProto)| {
        let text = format!("{HEAD}g (float x) => (float y) {{ y = local.Op <a: int = 1> (x) }}");
        let mut model = parse_model(&text).unwrap();
        change(&mut model.graph.as_mut().unwrap().node[0].attribute[0]);
        match verify_model(&model) {
            Ok(()) => Vec::new(),
            Err(found) => found.list.into_iter().map(|v| v.message).collect(),
        }
    };
    let none: [&str; 0] = [];
    assert_eq!(with(|_| {}), none);
    // proto3 writers leave out zeros, and empty lists have no field.
    assert_eq!(with(|a| a.i = None), none);
    assert_eq!(
        with(|a| {
            a.i = None;
            a.r#type = Some(AttributeType::Ints as i32);
        }),
        none
    );
    assert_eq!(
        with(|a| a.f = Some(0.0)),
        ["attribute 'a' of type int has a value in f"]
    );
    assert_eq!(
        with(|a| {
            a.strings.push(Bytes::from_static(b"x"));
            a.floats.push(1.0);
        }),
        ["attribute 'a' of type int has a value in floats, strings"]
    );
    assert_eq!(
        with(|a| a.r#type = Some(15)),
        ["attribute 'a' has the unknown type 15"]
    );
    assert_eq!(
        with(|a| a.r#type = None),
        ["attribute 'a' has no type; expected one"]
    );
    for (kind, name, field) in [
        (AttributeType::Tensor, "tensor", "t"),
        (AttributeType::Graph, "graph", "g"),
        (AttributeType::TypeProto, "type_proto", "tp"),
        (
            AttributeType::SparseTensor,
            "sparse_tensor",
            "sparse_tensor",
        ),
    ] {
        let found = messages(
            "g (float x) => (float y) { y = local.Op <a: int = 1> (x) }",
            |g| {
                let attribute = &mut g.node[0].attribute[0];
                attribute.i = None;
                attribute.r#type = Some(kind as i32);
            },
        );
        let expected = format!("node 0 (Op): attribute 'a' of type {name} has no value in {field}");
        assert_eq!(found, [expected]);
    }
}

#[test]
fn before_ir_version_2_the_value_is_the_type() {
    let head = "<\n   ir_version: 1,\n   opset_import: [\"\" : 1]\n>\n";
    let text = format!("{head}g (float x) => (float y) {{ y = Elu <alpha = 1.0> (x) }}");
    let mut model = parse_model(&text).unwrap();
    let attribute = |m: &mut ModelProto, change: fn(&mut AttributeProto)| {
        change(&mut m.graph.as_mut().unwrap().node[0].attribute[0]);
    };
    attribute(&mut model, |a| a.r#type = None);
    verify_model(&model).unwrap();
    attribute(&mut model, |a| a.i = Some(1));
    let expected = "attribute 'alpha' has no type and 2 values; expected one value";
    assert_eq!(violations(&model).list[0].message, expected);
}

#[test]
fn a_reference_has_no_value() {
    let text = format!(
        r#"{HEAD}g (float x) => (float x) {{
}}

<
  domain: "local",
  opset_import: ["" : 21]
>
F <a>(x) => (y)
{{
   y = Elu <alpha: float = @a> (x)
   # error: attribute 'alpha' refers to 'a' and has a value in f; expected one of the two
}}"#
    );
    check_with(&text, |model| {
        model.functions[0].node[0].attribute[0].f = Some(1.0)
    });
}

#[test]
fn tensors_and_types_in_attributes_are_checked() {
    check(
        r#"
g (float x) => (float y) {
   y = Constant <value: tensor = float[2] t {1}> ()
   # error: attribute 'value': dims [2] of float take 2 entries, and float_data has 1
   z = Optional <type: type_proto = float[-3]> ()
   # error: attribute 'type': the shape holds the negative size -3
}"#,
    );
}

// Tensors.

#[test]
fn a_typed_payload_has_as_many_entries_as_its_sizes_ask_for() {
    check(
        r#"
g (float x) => (float x)
   <float[2,3] a =  {1,2}, int4[3] b =  {1,2}, int4[5] c =  {1,2}, complex64[2] d =  {1,2}, uint2[5] e =  {1,2}, string[2] f = {"s"}, float[0,7] h =  {}, float i =  {1,2}, float[2] j =  {}>
{
   # error: initialiser 'a': dims [2, 3] of float take 6 entries, and float_data has 2
   # error: initialiser 'c': dims [5] of int4 take 3 entries, and int32_data has 2
   # error: initialiser 'd': dims [2] of complex64 take 4 entries, and float_data has 2
   # error: initialiser 'f': dims [2] of string take 2 entries, and string_data has 1
   # error: initialiser 'i': dims [] of float take 1 entries, and float_data has 2
   # error: initialiser 'j': dims [2] of float without payload; expected one in raw_data or float_data
}"#,
    );
}

#[test]
fn sizes_are_sizes() {
    check(
        r#"
g (float x) => (float x)
   <float[2,-1] a =  {1,2}, float[9223372036854775807,2] b =  {1}>
{
   # error: initialiser 'a': dims [2, -1] hold the negative size -1
   # error: initialiser 'b': the product of dims [9223372036854775807, 2] does not fit 64 bits
}"#,
    );
}

/// The problems of an initialiser `w` that was a float with two elements.
fn tensor(change: impl FnOnce(&mut TensorProto)) -> Vec<String> {
    let text = "g (float x) => (float x) <float[2] w = {1, 2}> {}";
    let all = messages(text, |graph| change(&mut graph.initializer[0]));
    let strip = |m: &String| {
        m.strip_prefix("graph: initialiser 'w': ")
            .unwrap()
            .to_owned()
    };
    all.iter().map(strip).collect()
}

#[test]
fn a_payload_stands_in_one_field_of_the_right_kind_and_length() {
    let raw = |bytes: &'static [u8]| {
        move |t: &mut TensorProto| {
            t.float_data.clear();
            t.raw_data = Some(Bytes::from_static(bytes));
        }
    };
    assert_eq!(
        tensor(raw(b"1234567")),
        ["dims [2] of float take 8 bytes, and raw_data has 7"]
    );
    assert_eq!(
        tensor(|t| {
            raw(b"12")(t);
            t.data_type = Some(22);
        }),
        ["dims [2] of int4 take 1 bytes, and raw_data has 2"]
    );
    assert_eq!(
        tensor(|t| {
            raw(b"12")(t);
            t.data_type = Some(8);
        }),
        ["strings in raw_data; expected them in string_data"]
    );
    assert_eq!(
        tensor(|t| t.raw_data = Some(Bytes::from_static(b"12345678"))),
        ["payloads in raw_data, float_data; expected one of them"]
    );
    assert_eq!(
        tensor(|t| t.data_type = Some(7)),
        ["elements of int64 in float_data; expected them in int64_data"]
    );
    assert_eq!(
        tensor(|t| t.data_type = Some(27)),
        ["unknown element type 27; expected 1 to 26"]
    );
    assert_eq!(
        tensor(|t| t.data_type = None),
        ["the element type is missing; expected one"]
    );
    assert_eq!(
        tensor(|t| t.segment = Some(tensor_proto::Segment {
            begin: Some(0),
            end: Some(1)
        })),
        ["a segment of a tensor; expected a whole one"]
    );
}

#[test]
fn external_tensors_have_a_location_and_no_payload() {
    let external = Some(tensor_proto::DataLocation::External as i32);
    assert_eq!(
        tensor(|t| t.data_location = external),
        [
            "an external tensor without location; expected one",
            "an external tensor with a payload in float_data; expected none"
        ]
    );
    accept(r#"g (float x) => (float x) <float[2] w = ["location": "w.bin"]> {}"#);
}

#[test]
fn sparse_tensors_have_values_indices_and_sizes() {
    let sparse = |dims: &[i64], indices: &[i64], kind: i32| SparseTensorProto {
        dims: dims.to_vec(),
        values: Some(TensorProto {
            name: Some("s".into()),
            dims: vec![2],
            data_type: Some(1),
            float_data: vec![1.0, 2.0],
            ..Default::default()
        }),
        indices: Some(TensorProto {
            dims: indices.to_vec(),
            data_type: Some(kind),
            int64_data: if kind == 7 {
                vec![0; indices.iter().product::<i64>() as usize]
            } else {
                vec![]
            },
            int32_data: if kind == 7 { vec![] } else { vec![0; 2] },
            ..Default::default()
        }),
    };
    let check = |sparse: SparseTensorProto, expected: &[&str]| {
        let text = format!("{HEAD}g (float x) => (float y) {{ y = Relu (s) }}");
        let mut model = parse_model(&text).unwrap();
        model
            .graph
            .as_mut()
            .unwrap()
            .sparse_initializer
            .push(sparse);
        let found: Vec<_> = match verify_model(&model) {
            Ok(()) => Vec::new(),
            Err(found) => found.list.into_iter().map(|v| v.message).collect(),
        };
        assert_eq!(found, expected);
    };
    check(sparse(&[3, 4], &[2], 7), &[]);
    check(sparse(&[3, 4], &[2, 2], 7), &[]);
    check(
        sparse(&[3, 4], &[2, 3], 7),
        &[
            "sparse initialiser 's': dims [2, 3] of a sparse tensor's indices; expected int64 and [2] or [2, 2]",
        ],
    );
    check(
        sparse(&[3, 4], &[2], 6),
        &[
            "sparse initialiser 's': dims [2] of a sparse tensor's indices; expected int64 and [2] or [2, 2]",
        ],
    );
    check(
        sparse(&[3, 0], &[2], 7),
        &["sparse initialiser 's': dims [3, 0] of a sparse tensor; expected positive sizes"],
    );
    check(
        SparseTensorProto {
            indices: None,
            ..sparse(&[3], &[2], 7)
        },
        &[
            "sparse initialiser 's': a sparse tensor without values or without indices; expected both",
        ],
    );
    let mut flat = sparse(&[3], &[2], 7);
    flat.values.as_mut().unwrap().dims = vec![2, 1];
    check(
        flat,
        &["sparse initialiser 's': dims [2, 1] of a sparse tensor's values; expected one size"],
    );
    let mut unnamed = sparse(&[3], &[2], 7);
    unnamed.values.as_mut().unwrap().name = None;
    check(
        unnamed,
        &[
            "sparse initialiser 0 has no name",
            "reads 's', which is defined nowhere; expected an input, an initialiser or the output of a node",
        ],
    );
}

// Types.

#[test]
fn types_are_complete() {
    check(
        r#"
g (float[-2] x, map(float, int64) m, seq(map(int64, float[N,-1])) s) => (float[-2] x) {
   # error: input 'x': the shape holds the negative size -2
   # error: input 'm': a map with keys of float; expected integers or strings
   # error: input 's': the shape holds the negative size -1
   # error: output 'x': the shape holds the negative size -2
}"#,
    );
    let kinds = [
        (
            type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: None,
                shape: None,
            }),
            "the element type is missing; expected one",
        ),
        (
            type_proto::Value::SparseTensorType(type_proto::SparseTensor {
                elem_type: Some(99),
                shape: None,
            }),
            "unknown element type 99; expected 1 to 26",
        ),
        (
            type_proto::Value::SequenceType(type_proto::Sequence { elem_type: None }),
            "a sequence without content; expected a type",
        ),
        (
            type_proto::Value::OptionalType(type_proto::Optional { elem_type: None }),
            "an optional without content; expected a type",
        ),
        (
            type_proto::Value::MapType(type_proto::Map {
                key_type: Some(7),
                value_type: None,
            }),
            "a map without content; expected a type",
        ),
    ];
    for (value, expected) in kinds {
        let found = messages("g (float x, float z) => (float x) {}", |graph| {
            graph.input[1].r#type = Some(TypeProto {
                value: Some(value),
                denotation: None,
            });
        });
        assert_eq!(found, [format!("graph: input 'z': {expected}")]);
    }
    let mut deep = TypeProto::default();
    for _ in 0..40 {
        let elem_type = Some(Box::new(deep));
        let value = Some(type_proto::Value::SequenceType(type_proto::Sequence {
            elem_type,
        }));
        deep = TypeProto {
            value,
            denotation: None,
        };
    }
    let found = messages("g (float x, float z) => (float x) {}", |graph| {
        graph.input[1].r#type = Some(deep);
    });
    assert_eq!(
        found,
        ["graph: input 'z': types are nested deeper than 32 levels"]
    );
}
