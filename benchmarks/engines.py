"""The engines that step_time.py compares, each run by the Python of its own environment.

    python engines.py prepare|pytorch|ort|ort-training SETTINGS.json

`prepare` writes parameters and a batch for all of them. The others make everything ready, print a line
of JSON, and then, for each number that they read, take so many training steps (forward and backward,
parameters unchanged) and print a line with the seconds of each.
"""

import json
import os
import pathlib
import re
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUFFER = "_grad.accumulation.buffer"  # ONNX Runtime training leaves gradients in such inputs


# --- what all engines are given ---------------------------------------------------------------------


def write_safetensors(path, tensors):
    """The format is a length, a JSON header, and the bytes (float32 only here)."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def read_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = np.frombuffer(file.read(), np.uint8)
    slices = {name: slice(*entry["data_offsets"]) for name, entry in header.items()}
    return {name: data[at].view(np.float32).reshape(header[name]["shape"]) for name, at in slices.items()}


def prepare(settings):
    """Random parameters and tokens, by the names of either graph."""
    import onnx

    generator = np.random.default_rng(0)
    graph = onnx.load(settings["aot"]["model"]).graph
    parameters = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            # Norm weights near one, matrices so that the size of activations stays.
            array = generator.normal(size=shape) / np.sqrt(shape[-1]) + (len(shape) == 1)
            parameters[value.name] = array.astype(np.float32)
    batch, seq = settings["batch"], settings["seq"]
    tokens, labels = generator.integers(0, 256, (2, batch, seq))
    write_safetensors(settings["aot"]["params"], parameters)
    np.savez(settings["aot"]["data"], x=tokens, y=labels)
    write_safetensors(settings["ort"]["params"], {f"model.{name}": p for name, p in parameters.items()})
    np.savez(settings["ort"]["data"], x=tokens, labels=labels.reshape(-1))


# --- engines: each gives a version, a step, and what it computed ------------------------------------


class PyTorch:
    """Eager, the model that both graphs were exported from; on a GPU in full 32-bit precision."""

    def __init__(self, settings):
        import torch

        sys.path.insert(0, str(ROOT / "models/export"))
        import zoo

        torch.set_num_threads(settings["threads"])
        torch.set_num_interop_threads(1)
        self.version = f"PyTorch {torch.__version__.split('+')[0]} eager"
        self.device = settings.get("device", "cpu")
        self.wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        self.loss_of = zoo.loss_of
        self.model = zoo.CASES[settings["case"]].model().train()
        given = read_safetensors(settings["aot"]["params"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(given[name].copy()))
        data = np.load(settings["aot"]["data"])
        self.x, self.y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
        self.model = self.model.to(self.device)
        self.x, self.y = self.x.to(self.device), self.y.to(self.device)

    def step(self):
        self.model.zero_grad(set_to_none=True)
        self.loss = self.loss_of(self.model(self.x), self.y)
        self.loss.backward()
        self.wait()

    def found(self):
        return float(self.loss.detach()), {n: p.grad.cpu().numpy() for n, p in self.model.named_parameters()}


class Onnx:
    """An InferenceSession with every input and output bound to memory of its own, once.

    So no step copies a parameter or allocates a gradient. The sizes of the batch are told to the
    session, so that it can plan its memory as well as it ever can.
    """

    def __init__(self, settings, dialect):
        import onnx
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        sizes = {"batch": settings["batch"], "seq": settings["seq"], "rows": settings["batch"] * settings["seq"]}
        for name, size in sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        path = settings[dialect]["model"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {**read_safetensors(settings[dialect]["params"]), **np.load(settings[dialect]["data"])}
        feed["lazy_reset_grad"] = np.array([True])
        self.inputs, self.outputs = {}, {}
        self.binding = self.session.io_binding()
        for value in self.session.get_inputs():
            if value.name.endswith(BUFFER):
                feed[value.name] = np.zeros(value.shape, np.float32)
            held = ort.OrtValue.ortvalue_from_numpy(feed[value.name])
            self.inputs[value.name] = held
            self.binding.bind_ortvalue_input(value.name, held)
        types = {o.name: o.type.tensor_type.elem_type for o in onnx.load(path).graph.output}
        for value in self.session.get_outputs():
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[value.name])
            held = ort.OrtValue.ortvalue_from_numpy(np.zeros(value.shape, dtype))
            self.outputs[value.name] = held
            self.binding.bind_ortvalue_output(value.name, held)
        self.version = ("ONNX Runtime training " if dialect == "ort" else "ONNX Runtime ") + ort.__version__

    def step(self):
        self.session.run_with_iobinding(self.binding)

    def found(self):
        loss, *_ = self.outputs.values()
        gradients = {n.removesuffix(BUFFER).removeprefix("model."): g
                     for n, g in self.inputs.items() if n.endswith(BUFFER)}
        gradients |= {n.removeprefix("grad."): g for n, g in self.outputs.items() if n.startswith("grad.")}
        return float(loss.numpy()), {name: g.numpy() for name, g in gradients.items()}


ENGINES = {
    "pytorch": PyTorch,
    "ort": lambda settings: Onnx(settings, "aot"),
    "ort-training": lambda settings: Onnx(settings, "ort"),
}


# --- the loop ---------------------------------------------------------------------------------------


def busy_seconds():
    """Seconds that all cores together have worked for anyone, since the machine started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _wait, irq, soft, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def serve(engine):
    engine.step()
    loss, gradients = engine.found()
    norms = {name: float(np.linalg.norm(g.astype(np.float64))) for name, g in gradients.items()}
    with open("/proc/self/status", encoding="ascii") as file:
        peak = int(re.search(r"VmHWM:\s*(\d+)", file.read())[1]) * 1024
    print(json.dumps({"version": engine.version, "loss": loss, "gradient_norms": norms,
                      "resident_peak": peak}), flush=True)
    for line in sys.stdin:
        seconds = []
        busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
        for _ in range(int(line)):
            before = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - before)
        wall = time.perf_counter() - start
        others = max(0.0, (busy_seconds() - busy) - (time.process_time() - own)) / wall
        print(json.dumps({"seconds": seconds, "others": others}), flush=True)


def main():
    what, path = sys.argv[1:]
    settings = json.loads(pathlib.Path(path).read_text())
    if what == "prepare":
        prepare(settings)
    else:
        serve(ENGINES[what](settings))


if __name__ == "__main__":
    main()
