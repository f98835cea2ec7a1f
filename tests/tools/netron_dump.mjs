// Opens ONNX files with Netron's own code, as its window does, and prints what it found in each as one line of JSON.
//
//     node netron_dump.mjs FOLDER-OF-NETRON FILE...
//
// The folder holds Netron's sources and a package.json that says that they are modules. What is printed is what
// Netron would draw or list in its sidebars: every getter that those read is read here, tensors included.

import * as fs from 'node:fs';
import * as path from 'node:path';
import * as url from 'node:url';

const [folder, ...files] = process.argv.slice(2);
const source = (file) => url.pathToFileURL(path.join(path.resolve(folder), file)).href;
const base = await import(source('base.js'));
const view = await import(source('view.js'));

// What Netron asks of the window or page that it runs in, as far as opening a file goes.
class Context {

    constructor(file) {
        this.identifier = path.basename(file);
        this.entries = new Map();
        this.folder = path.dirname(file);
        this.stream = new base.BinaryStream(fs.readFileSync(file));
    }

    async require(id) {
        return import(source(`${id}.js`));
    }

    async asset(file) {
        return fs.readFileSync(path.join(folder, file), 'utf-8');
    }

    async fetch(file) {
        return new base.BinaryStream(fs.readFileSync(path.join(this.folder, file)));
    }

    error(error) {
        throw error;
    }
}

// Where one argument has several values, it names them all.
const names = (list) => list.flatMap((argument) => argument.value.map((value) => value.name));
const pairs = (list) => list.map((argument) => [argument.name, argument.value]);

const typed = (list) => list.flatMap((argument) => argument.value.map((value) => {
    return [value.name, value.type ? value.type.toString() : null];
}));

const initializers = new Map();

const seen = (value) => {
    const tensor = value.initializer;
    if (!tensor) {
        return;
    }
    // As the sidebar shows it: an error here is one that a user would meet on a click.
    const shown = new base.Tensor(tensor);
    const text = shown.empty ? '' : shown.toString();
    initializers.set(value.name, [tensor.type.toString(), text.length > 0]);
};

const node = (item) => {
    for (const argument of [...item.inputs, ...item.outputs]) {
        argument.value.forEach(seen);
    }
    for (const attribute of item.attributes) {
        new view.Formatter(attribute.value, attribute.type).toString();
    }
    return {
        name: item.name,
        op: item.type.name,
        domain: item.type.module,
        // A call of a function of the file shows its body; the operators that Netron knows show their documentation.
        body: Array.isArray(item.type.nodes) ? item.type.nodes.length : null,
        known: Array.isArray(item.type.nodes) || Boolean(item.type.description),
        inputs: names(item.inputs),
        outputs: names(item.outputs),
        attributes: item.attributes.map((attribute) => attribute.name),
        metadata: pairs(item.metadata),
    };
};

const service = new view.ModelFactoryService({ require: async (id) => import(source(`${id}.js`)) });
for (const file of files) {
    initializers.clear();
    const context = new Context(file);
    const model = await service.open(context);
    const [graph] = model.modules;
    process.stdout.write(`${JSON.stringify({
        format: model.format,
        producer: model.producer,
        imports: model.imports,
        metadata: pairs(model.metadata),
        inputs: typed(graph.inputs),
        outputs: typed(graph.outputs),
        nodes: graph.nodes.map(node),
        functions: model.functions.map((item) => {
            return {
                name: item.name,
                domain: item.module,
                inputs: names(item.inputs),
                outputs: names(item.outputs),
                nodes: item.nodes.map(node),
            };
        }),
        initializers: Object.fromEntries(initializers),
    })}\n`);
}
