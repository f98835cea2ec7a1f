"""Export training graphs with onnxruntime-training's offline artifact generator.

    python export_ort.py --case llama_tiny --out ../ort
    python export_ort.py --all --out ../ort [--keep]

Needs the packages in requirements-ort.txt. Each graph is run in ONNX Runtime on two batches, of one
sample and of several, and its loss and gradients are compared with eager PyTorch, before it is written.

For each case: `torch.onnx.export` (the TorchScript exporter, opset 15, training mode), then
`artifacts.generate_artifacts`; the training graph is written to `<out>/<name>.onnx`. With --keep
the eval and optimizer graphs and the checkpoint stay in `<out>/<name>.artifacts/`.

Opset 15, not 17: the opset-17 LayerNormalization is exported with one output, and the gradient
builder then stops with "GradientBuilderBase::O ... i < node_->OutputDefs().size() was false".
Below 17 the norm is exported as plain arithmetic, which ONNX Runtime fuses to its own node with
three outputs.
"""

import argparse
import copy
import io
import os
import shutil
import sys
import tempfile
import warnings
from typing import Callable, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.training import artifacts

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import zoo  # noqa: E402
from velora_export import compare_outputs  # noqa: E402


class FlatLogits(torch.nn.Module):
    """Model whose logits are [N, classes], as the generated cross entropy wants them."""

    def __init__(self, model, pick=None):
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x):
        logits = self.model(x)
        if self.pick:
            logits = getattr(logits, self.pick)
        return logits.reshape(-1, logits.shape[-1])


class Bert(FlatLogits):
    """Hugging Face BERT, told the positions of every sample.

    By itself it adds position embeddings [1, seq, D] to word embeddings [batch, seq, D]. Those sizes
    are symbolic to the gradient builder, which takes two symbolic sizes for equal: it leaves out the
    sum over the batch, and GatherGrad reads past the end of its [1, seq] indices.
    """

    def forward(self, x):
        positions = torch.arange(x.shape[1]).expand_as(x)
        return self.model(x, position_ids=positions).logits


# ---- cases
def hf_bert(dropout=0.0):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        num_labels=2,
        # PyTorch gives the padding token's embedding no gradient; the exported graph would.
        pad_token_id=None,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
    )
    return Bert(BertForSequenceClassification(config))


def hf_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return FlatLogits(LlamaForCausalLM(config), "logits")


# The batches: the default size is the one that is traced.
def digits(batch=16):
    return torch.randn(batch, 64)


def images(batch=16):
    return torch.randn(batch, 1, 8, 8)


def series(batch=16):
    return torch.randn(8, batch, 8)


def tokens(batch=4):
    return torch.randint(0, 256, (batch, 12 + batch))  # so that the length differs as well


CHECKED = (1, 6)  # samples in the batches that a graph is checked on


class Case(NamedTuple):
    model: Callable  # () -> nn.Module that returns logits [rows, classes]
    batch: Callable  # (samples) -> x
    axes: dict  # symbolic axes of x
    rows: str = "rows"  # name of the first axis of the logits and labels
    # To be trained by `velora-opt run`: weights in the file, and the logits as an output.
    trainable: bool = False


ROWS = {0: "batch"}
ROWS_AND_STEPS = {0: "batch", 1: "seq"}

CASES = {
    "mlp": Case(zoo.Mlp, digits, ROWS),
    "bert_tiny": Case(hf_bert, tokens, ROWS_AND_STEPS),
    "bert_tiny_dropout": Case(lambda: hf_bert(0.1), tokens, ROWS_AND_STEPS),
    "llama_tiny": Case(lambda: FlatLogits(zoo.LlamaTiny()), tokens, ROWS_AND_STEPS),
    "llama_tiny_lora": Case(lambda: FlatLogits(zoo.llama_lora()), tokens, ROWS_AND_STEPS),
    "llama_hf": Case(hf_llama, tokens, ROWS_AND_STEPS),
    "vit_tiny": Case(zoo.ViTTiny, digits, ROWS),
    "vit_tiny_lora": Case(zoo.vit_lora, digits, ROWS),
    "vit_tiny_ssf": Case(zoo.vit_ssf, digits, ROWS),
    "vit_tiny_hydra": Case(zoo.vit_hydra, digits, ROWS),
    "vit_tiny_probe": Case(zoo.vit_probe, digits, ROWS),
    "cnn": Case(lambda: zoo.Cnn(norm=False), images, ROWS),
    "cnn_bn": Case(lambda: zoo.Cnn(norm=True), images, ROWS),
    "lstm": Case(lambda: zoo.Rnn("lstm"), series, {1: "batch"}),
    "gru": Case(lambda: zoo.Rnn("gru"), series, {1: "batch"}),
    # To be trained on the digits of models/data.
    "digits_mlp": Case(zoo.DigitsMlp, digits, ROWS, rows="batch", trainable=True),
    "digits_vit": Case(zoo.digits_vit, digits, ROWS, rows="batch", trainable=True),
    # For time measurements, beside the one of export_models.py. FlatLogits puts `model.` before the
    # names of the parameters.
    "llama_768x4": Case(lambda: FlatLogits(zoo.llama_768x4()), tokens, ROWS_AND_STEPS),
}


# ---- exporting
def forward_onnx(model, x, case, opset):
    """The forward graph as the gradient builder wants it: unfolded, weights as initializers."""
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (x,),
        buffer,
        opset_version=opset,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": case.axes, "logits": {0: case.rows}},
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
        export_params=True,
        keep_initializers_as_inputs=False,
    )
    return onnx.load_from_string(buffer.getvalue())


def split_params(model, forward):
    """(trainable, frozen): initializers named by state_dict; tied copies are skipped."""
    present = {i.name for i in forward.graph.initializer}
    named = [(n, p.requires_grad) for n, p in model.named_parameters() if n in present]
    return [n for n, grad in named if grad], [n for n, grad in named if not grad]


def training_graph(model, x, case, opset, folder):
    """Generate all artifacts in `folder` and return the training graph."""
    forward = forward_onnx(model, x, case, opset)
    trainable, frozen = split_params(model, forward)
    artifacts.generate_artifacts(
        forward,
        requires_grad=trainable,
        frozen_params=frozen,
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.AdamW,
        artifact_directory=folder,
        additional_output_names=["logits"] if case.trainable else None,
    )
    proto = onnx.load(os.path.join(folder, "training_model.onnx"))
    if case.trainable:
        inputs = {i.name for i in proto.graph.input}
        given = (i for i in forward.graph.initializer if i.name in inputs)
        proto.graph.initializer.extend(given)
    return proto


def without_dropout(proto):
    """A copy of the graph whose dropout layers drop nothing: eager PyTorch draws other masks."""
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    name = "no_dropout.ratio"
    copied.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), name))
    for node in copied.graph.node:
        if node.op_type in ("Dropout", "DropoutGrad"):
            node.input[{"Dropout": 1, "DropoutGrad": 2}[node.op_type]] = name
    return copied


def eager_step(model, x, labels):
    """Loss and gradients by parameter name, from PyTorch's autograd."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    return {"loss": loss, **dict(zip(trained, torch.autograd.grad(loss, [*trained.values()])))}


def graph_step(proto, model, x, labels):
    """The same from the training graph: the gradients are read where they enter the accumulators."""
    proto = without_dropout(proto)
    gradients = {
        node.input[0].removesuffix("_grad.accumulation.buffer"): node.input[1]
        for node in proto.graph.node
        if node.op_type == "InPlaceAccumulatorV2"
    }
    feed = {"x": x.numpy(), "labels": labels.numpy(), "lazy_reset_grad": np.array([True])}
    for name, parameter in model.named_parameters():
        feed[name] = parameter.detach().numpy()
        feed[f"{name}_grad.accumulation.buffer"] = np.zeros_like(feed[name])
    wanted = [proto.graph.output[0].name, *gradients.values()]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in gradients.values())
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = {i.name: feed[i.name] for i in session.get_inputs()}
    return dict(zip(["loss", *gradients], session.run(wanted, given)))


def check_against_eager(proto, model, x):
    """Compare loss and gradients with eager PyTorch; `compare_outputs` says what passes.

    Hugging Face's Llama rounds its norms and rotary tables to float32 in the float64 model too, so
    that for `llama_hf` the reference is not exact there.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    exact_model = copy.deepcopy(model).double()
    logits = copy.deepcopy(model)(x)  # a copy, since BatchNorm's statistics move
    labels = torch.randint(0, logits.shape[-1], logits.shape[:1])
    got = graph_step(proto, model, x, labels)
    eager = eager_step(model, x, labels)
    exact = eager_step(exact_model, x.double() if x.is_floating_point() else x, labels)
    assert sorted(got) == sorted(exact), f"gradients of {sorted(got)}, expected {sorted(exact)}"
    return compare_outputs(got, got.values(), [eager[n] for n in got], [exact[n] for n in got])


def export_case(name, out, *, opset, keep):
    case = CASES[name]
    torch.manual_seed(0)
    model, x = case.model().train(), case.batch()
    folder = os.path.join(out, f"{name}.artifacts") if keep else tempfile.mkdtemp()
    os.makedirs(folder, exist_ok=True)
    try:
        proto = training_graph(model, x, case, opset, folder)
        worst = [check_against_eager(proto, model, case.batch(size)) for size in CHECKED]
        path = os.path.join(out, f"{name}.onnx")
        onnx.save(proto, path)
        nearest = max(worst, key=lambda w: w["error"] / w["allowed"])
        print(
            f"{name}: {len(proto.graph.node)} nodes, {os.path.getsize(path)} bytes; nearest to its "
            f"limit {nearest['output']}: {nearest['error']:.1e} of {nearest['allowed']:.1e}",
            flush=True,
        )
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = cli.add_mutually_exclusive_group(required=True)
    what.add_argument("--case", action="append", choices=sorted(CASES), help="may repeat")
    what.add_argument("--all", action="store_true")
    cli.add_argument("--out", default="ort", help="folder to write to (default: ort)")
    cli.add_argument("--keep", action="store_true", help="keep the other artifacts too")
    cli.add_argument("--opset", type=int, default=15)
    opt = cli.parse_args()
    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(3)
    os.makedirs(opt.out, exist_ok=True)
    failed = 0
    for name in CASES if opt.all else opt.case:
        try:
            export_case(name, opt.out, opset=opt.opset, keep=opt.keep)
        except Exception as error:  # one failing model must not hide the others
            failed += 1
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:1500]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
