//! Models made by hand for the tests of files.
#![allow(dead_code)]

use bytes::Bytes;
use velora_graph::onnx::schema::*;

pub fn text(value: &str) -> Option<String> {
    Some(value.into())
}

/// A model with a value in every field that the streaming writer writes by itself.
pub fn full_model(payload: usize) -> ModelProto {
    let tensor = |name: &str| TensorProto {
        dims: vec![2, -1, 0],
        data_type: Some(1),
        segment: Some(tensor_proto::Segment {
            begin: Some(0),
            end: Some(3),
        }),
        float_data: vec![1.0, -0.0, f32::INFINITY],
        int32_data: vec![-1, 0, 7],
        string_data: vec![Bytes::from_static(b""), Bytes::from_static(b"\xff")],
        int64_data: vec![i64::MIN, 5],
        name: text(name),
        raw_data: Some(Bytes::from(vec![0xab; payload])),
        double_data: vec![0.5],
        uint64_data: vec![u64::MAX],
        doc_string: text(""),
        external_data: vec![entry("location", "w.bin")],
        data_location: Some(0),
        metadata_props: vec![entry("a", "b")],
    };
    let sparse = || SparseTensorProto {
        values: Some(tensor("values")),
        indices: Some(tensor("indices")),
        dims: vec![4, 4],
    };
    let kind = || TypeProto {
        value: Some(type_proto::Value::OptionalType(type_proto::Optional {
            elem_type: Some(Box::new(TypeProto::default())),
        })),
        denotation: text("IMAGE"),
    };
    let value = |name: &str| ValueInfoProto {
        name: text(name),
        r#type: Some(kind()),
        doc_string: text("doc"),
        metadata_props: vec![entry("k", "v")],
    };
    let attribute = |graph: GraphProto| AttributeProto {
        name: text("body"),
        f: Some(0.0),
        i: Some(-3),
        s: Some(Bytes::from(vec![b's'; payload])),
        t: Some(Box::new(tensor("t"))),
        g: Some(Box::new(graph.clone())),
        floats: vec![1.5, 0.0],
        ints: vec![0, -1],
        strings: vec![Bytes::new(), Bytes::from_static(b"x")],
        tensors: vec![tensor("t0"), TensorProto::default()],
        graphs: vec![graph, GraphProto::default()],
        doc_string: text("doc"),
        tp: Some(Box::new(kind())),
        type_protos: all_types(),
        r#type: Some(99),
        ref_attr_name: text("outer"),
        sparse_tensor: Some(Box::new(sparse())),
        sparse_tensors: vec![sparse()],
    };
    let node = |attribute: Vec<AttributeProto>| NodeProto {
        input: vec!["x".into(), String::new()],
        output: vec!["y".into()],
        name: text("n"),
        op_type: text("Loop"),
        attribute,
        doc_string: text("doc"),
        domain: text(""),
        overload: text("o"),
        metadata_props: vec![entry("k", "v")],
        device_configurations: vec![NodeDeviceConfigurationProto {
            configuration_id: text("c"),
            sharding_spec: vec![sharding()],
            pipeline_stage: Some(1),
        }],
    };
    let graph = |node: Vec<NodeProto>| GraphProto {
        node,
        name: text("g"),
        initializer: vec![tensor("w"), TensorProto::default()],
        doc_string: text("doc"),
        input: vec![value("x")],
        output: vec![value("y")],
        value_info: vec![value("z")],
        quantization_annotation: vec![TensorAnnotation {
            tensor_name: text("x"),
            quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "s")],
        }],
        sparse_initializer: vec![sparse()],
        metadata_props: vec![entry("k", "v")],
    };
    let outer = graph(vec![node(vec![attribute(graph(vec![node(vec![])]))])]);
    ModelProto {
        ir_version: Some(10),
        producer_name: text("p"),
        producer_version: text("1"),
        domain: text(""),
        model_version: Some(-1),
        doc_string: text("doc"),
        graph: Some(outer.clone()),
        opset_import: vec![OperatorSetIdProto {
            domain: text(""),
            version: Some(20),
        }],
        metadata_props: vec![entry("k", "v")],
        training_info: vec![TrainingInfoProto {
            initialization: Some(outer.clone()),
            algorithm: Some(outer.clone()),
            initialization_binding: vec![entry("k", "v")],
            update_binding: vec![entry("k", "v")],
        }],
        functions: vec![FunctionProto {
            name: text("f"),
            input: vec!["a".into()],
            output: vec!["b".into()],
            attribute: vec!["c".into()],
            node: outer.node.clone(),
            doc_string: text("doc"),
            opset_import: vec![OperatorSetIdProto {
                domain: text(""),
                version: Some(20),
            }],
            domain: text("d"),
            attribute_proto: vec![attribute(GraphProto::default())],
            value_info: vec![value("v")],
            overload: text("o"),
            metadata_props: vec![entry("k", "v")],
        }],
        configuration: vec![DeviceConfigurationProto {
            name: text("c"),
            num_devices: Some(2),
            device: vec!["d".into()],
        }],
    }
}

fn sharding() -> ShardingSpecProto {
    use simple_sharded_dim_proto::Dim;
    let simple = |dim| SimpleShardedDimProto {
        dim: Some(dim),
        num_shards: Some(2),
    };
    ShardingSpecProto {
        tensor_name: text("x"),
        device: vec![0, 1],
        index_to_device_group_map: vec![IntIntListEntryProto {
            key: Some(0),
            value: vec![1, 2],
        }],
        sharded_dim: vec![ShardedDimProto {
            axis: Some(0),
            simple_sharding: vec![simple(Dim::DimValue(4)), simple(Dim::DimParam("N".into()))],
        }],
    }
}

/// Every variant of a type, nested where the schema nests.
fn all_types() -> Vec<TypeProto> {
    use tensor_shape_proto::{Dimension, dimension};
    use type_proto::Value;
    let dim = |value| Dimension {
        value,
        denotation: text("BATCH"),
    };
    let shape = || {
        let sizes = [
            None,
            Some(dimension::Value::DimValue(3)),
            Some(dimension::Value::DimParam("N".into())),
        ];
        Some(TensorShapeProto {
            dim: sizes.into_iter().map(dim).collect(),
        })
    };
    let of = |value| TypeProto {
        value: Some(value),
        denotation: text(""),
    };
    let tensor = of(Value::TensorType(type_proto::Tensor {
        elem_type: Some(1),
        shape: shape(),
    }));
    let boxed = || Some(Box::new(tensor.clone()));
    vec![
        tensor.clone(),
        of(Value::SequenceType(type_proto::Sequence {
            elem_type: boxed(),
        })),
        of(Value::MapType(type_proto::Map {
            key_type: Some(7),
            value_type: boxed(),
        })),
        of(Value::OptionalType(type_proto::Optional {
            elem_type: boxed(),
        })),
        of(Value::SparseTensorType(type_proto::SparseTensor {
            elem_type: Some(1),
            shape: shape(),
        })),
        of(Value::OpaqueType(type_proto::Opaque {
            domain: text("d"),
            name: text("n"),
        })),
        TypeProto::default(),
    ]
}

pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: text(key),
        value: text(value),
    }
}
