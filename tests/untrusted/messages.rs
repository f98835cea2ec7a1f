//! Models whose few bytes ask for much: messages of two bytes that take hundreds in memory, nesting, names.

use crate::tool::{BASE, INLINE, Place, REWRITTEN};

/// A field of bytes: its key, its length, itself.
fn field(number: u32, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = varint(u64::from(number) << 3 | 2);
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A model with this graph, and the standard operators.
fn model(graph: &[u8]) -> Vec<u8> {
    let opset = field(8, [vec![0x0a, 0x00, 0x10], varint(18)].concat());
    [vec![0x08, 0x0a], field(7, graph), opset].concat()
}

const COMMANDS: [&str; 8] = [
    "model.onnx -o out.onnx -q",
    "model.onnx -o out.onnx -q --external-data inline",
    "inspect model.onnx --json out.json -q",
    "print model.onnx",
    "verify model.onnx model.onnx --json out.json -q",
    "run model.onnx --device cpu --data x.npz --save out.safetensors -q",
    "calibrate model.onnx --data x.npz -o out.onnx -q",
    "merge model.onnx x.npz -o out.onnx -q",
];

/// Checks that all commands refuse the model, or do what they do with it, within the bound on memory.
fn bounded(name: &str, bytes: &[u8]) {
    let place = Place::new();
    place.write("model.onnx", bytes);
    for command in COMMANDS {
        let ran = place.run(command);
        assert!(
            matches!(ran.status, Some(0 | 1)),
            "{name}: {command}: {ran:?}"
        );
        assert!(
            ran.err.len() < 10_000,
            "{name}: {command}: a message of {}",
            ran.err.len()
        );
        eprintln!(
            "{name}: {command}: {:?}, {} MiB of {}",
            ran.status,
            ran.peak >> 20,
            bytes.len()
        );
        ran.within(bytes.len() as u64);
    }
}

fn refused(bytes: &[u8], words: &[&str]) {
    let place = Place::new();
    place.write("model.onnx", bytes);
    for command in COMMANDS {
        place.run(command).refused(words).within(bytes.len() as u64);
        assert_eq!(place.files(), ["model.onnx"], "{command}");
    }
}

/// Two bytes each, and 48 to 400 when they are decoded: so many that the file would take more than 64 times
/// its length.
#[test]
fn empty_messages() {
    let many = |empty: &[u8]| empty.repeat(1 << 20);
    let most = "more than ";
    refused(
        &model(&many(&field(1, ""))),
        &["in graph: field node", most],
    );
    refused(
        &model(&many(&field(5, ""))),
        &["in graph: field initializer", most],
    );
    // A node with one attribute reserves four.
    let node = field(1, field(5, ""));
    refused(
        &model(&many(&node)),
        &["in graph.node[", "field attribute", "more than "],
    );
    let attributes = field(1, many(&field(5, "")));
    refused(
        &model(&attributes),
        &["in graph.node[0]: field attribute", most],
    );
    refused(
        &many(&field(25, "")),
        &["in the model: field functions", most],
    );
    refused(
        &many(&field(20, "")),
        &["in the model: field training_info", most],
    );
    refused(
        &model(&many(&field(15, ""))),
        &["in graph: field sparse_initializer", most],
    );
    // Less than that, so that what is wrong is found later.
    bounded("inputs", &model(&many(&field(11, ""))));
}

/// Fields that are allowed to be many, since they take less.
#[test]
fn small_messages() {
    let many = |small: &[u8]| small.repeat(1 << 19);
    bounded("metadata", &[model(b""), many(&field(14, ""))].concat());
    bounded("metadata of the graph", &model(&many(&field(16, ""))));
    bounded("annotations", &model(&many(&field(14, ""))));
    bounded(
        "inputs without a name",
        &model(&field(1, many(&field(1, "")))),
    );
    bounded(
        "outputs without a name",
        &model(&field(1, many(&field(2, "")))),
    );
    bounded("operator sets", &[model(b""), many(&field(8, ""))].concat());
    let tensor = |fields: Vec<u8>| {
        model(&field(
            5,
            [field(8, "t"), vec![0x10, 0x01], fields].concat(),
        ))
    };
    bounded("dims", &tensor(many(&[0x08, 0x01])));
    bounded("packed dims", &tensor(field(1, many(&[0x01]))));
    bounded("packed integers", &tensor(field(7, many(&[0x01]))));
    bounded("strings", &tensor(many(&field(6, ""))));
    bounded("entries of external data", &tensor(many(&field(13, ""))));
    let shape = field(2, many(&field(1, "")));
    let input = [
        field(1, "x"),
        field(2, field(1, [vec![0x08, 0x01], shape].concat())),
    ];
    bounded("dimensions", &model(&field(11, input.concat())));
    bounded(
        "names",
        &model(&field(
            1,
            [field(4, "Neg"), field(1, vec![b'a'; 1 << 20])].concat(),
        )),
    );
}

/// A graph that nothing is wrong with, of the shortest names: what analyses and reports take is in the bound.
#[test]
fn short_nodes() {
    let mut graph = field(2, "g");
    let info = |name: &str| {
        let shape = field(2, field(1, field(2, "n")));
        field(1, name)
            .into_iter()
            .chain(field(2, field(1, [vec![0x08, 0x01], shape].concat())))
    };
    graph.extend(field(11, info("x").collect::<Vec<u8>>()));
    let mut last = "x".to_owned();
    for number in 0..20_000 {
        let next = format!("{number:x}");
        let node = [field(1, &last), field(2, &next), field(4, "Neg")].concat();
        graph.extend(field(1, node));
        last = next;
    }
    graph.extend(field(12, info(&last).collect::<Vec<u8>>()));
    bounded("short nodes", &model(&graph));
}

/// A valid training graph of short names: what the analyses, the rewrite and the reports take of each layer. All
/// its layers are rewritten; with `--inline`, each into some twenty nodes.
#[test]
fn many_layers() {
    const LAYERS: usize = 60;
    let name = |kind: char, number: usize| format!("{kind}{number:x}");
    let mut text = String::from("<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[n,8] h0");
    for layer in 0..LAYERS {
        text += &format!(", float[8,8] {}", name('w', layer));
    }
    text += ") => (float l";
    for layer in 0..LAYERS {
        text += &format!(", float[8,8] {}_grad", name('w', layer));
    }
    text += ") {\n";
    for layer in 0..LAYERS {
        let [h, next, y, w] =
            [('h', 0), ('h', 1), ('y', 0), ('w', 0)].map(|(k, n)| name(k, layer + n));
        text += &format!("{y} = MatMul ({h}, {w})\n{next} = Tanh ({y})\n");
    }
    let last = name('h', LAYERS);
    text += &format!(
        "l = ReduceSum <keepdims = 0> ({last})\n{} = Neg ({last})\n",
        name('d', LAYERS)
    );
    for layer in (0..LAYERS).rev() {
        let [h, d, t, v, w, below] = [('h', 0), ('d', 1), ('t', 0), ('v', 0), ('w', 0), ('d', 0)]
            .map(|(k, n)| name(k, layer + n));
        text += &format!(
            "{t} = Transpose <perm = [1, 0]> ({h})\n{w}_grad = MatMul ({t}, {d})\n\
             {v} = Transpose <perm = [1, 0]> ({w})\n{below} = MatMul ({d}, {v})\n"
        );
    }
    let place = Place::new();
    place.text("model.onnx", &(text + "}"));
    let size = place.bytes(&["model.onnx"]);
    for (command, multiple) in [
        ("model.onnx -o out.onnx -q --groups 2", REWRITTEN),
        (
            "inspect model.onnx --groups 2 -q --json out.json --html out.html",
            REWRITTEN,
        ),
        ("verify model.onnx out.onnx -q --json out.json", REWRITTEN),
        (
            "model.onnx -o out.onnx -q --groups 2 --inline --select all --json out.json --html out.html",
            INLINE,
        ),
    ] {
        let ran = place.run(command);
        ran.accepted();
        let took = ran.peak.saturating_sub(14 << 20) / size;
        eprintln!("{command}: {took} bytes for each of {size}");
        assert!(
            ran.peak <= BASE + multiple * size,
            "{command}: {} of {size}",
            ran.peak
        );
    }
}

/// Messages in messages: graphs in attributes, types in types.
#[test]
fn deep_nesting() {
    let mut graph = field(1, field(4, "Neg"));
    for _ in 0..100_000 / 1000 {
        let attribute = [field(1, "body"), field(6, &graph)].concat();
        graph = field(1, [field(4, "Loop"), field(5, attribute)].concat());
    }
    refused(
        &model(&graph),
        &["graph.node[0].attribute[0].g", "nest deeper than 100"],
    );
    let mut kind = field(1, vec![0x08, 0x01]);
    for _ in 0..200 {
        kind = field(4, field(1, kind));
    }
    let input = [field(1, "x"), field(2, kind)].concat();
    refused(
        &model(&field(11, input)),
        &["graph.input[0].type", "nest deeper than 100"],
    );
    // As deep as is read.
    let mut graph = field(1, field(4, "Neg"));
    for _ in 0..30 {
        let attribute = [field(1, "body"), field(6, &graph)].concat();
        graph = field(1, [field(4, "Loop"), field(5, attribute)].concat());
    }
    bounded("nested graphs", &model(&graph));
}

/// Long names are cut in messages.
#[test]
fn long_names() {
    let long = "n".repeat(1 << 20);
    let node = [
        field(1, &long),
        field(2, "y"),
        field(3, &long),
        field(4, &long),
    ]
    .concat();
    bounded("an undefined input", &model(&field(1, node)));
    let twice = [field(2, &long), field(4, "Neg"), field(1, "")].concat();
    bounded(
        "a value twice",
        &model(&[field(1, &twice), field(1, &twice)].concat()),
    );
    bounded(
        "a location",
        &model(&field(
            5,
            [
                field(8, &long),
                vec![0x70, 0x01],
                field(
                    13,
                    [field(1, "location"), field(2, format!("../{long}"))].concat(),
                ),
            ]
            .concat(),
        )),
    );
}

/// Fields that end beyond the file, of lengths that wrap.
#[test]
fn lengths_that_lie() {
    for length in [u64::MAX, 1 << 63, 1 << 40, 100] {
        let mut bytes = vec![0x08, 0x0a, 0x3a];
        bytes.extend(varint(length));
        bytes.extend([0; 20]);
        refused(&bytes, &["field graph", "does not end"]);
    }
    // A group, in which the rest of the file would be hidden from the check.
    let place = Place::new();
    let hidden = model(&field(1, "").repeat(1 << 20));
    place.write(
        "model.onnx",
        [vec![0x08, 0x0a, 0x9b, 0x06], hidden].concat(),
    );
    for command in COMMANDS {
        let ran = place.run(&format!("{command} --allow-unknown-fields"));
        ran.refused(&["field 99 is a group"]).within(2 << 20);
    }
}
