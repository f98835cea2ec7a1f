"""The models of `paper/graphs.zip`: the systems that the paper compares, in sizes that a CPU trains.

As in zoo.py, a model's forward takes a batch and returns the logits. What a parameter-efficient method freezes has
the name that it has in the model trained in full, but for the `.base` of the layer that an adapter wraps, so that
weights of the one go into the other.
"""

import math
from typing import Callable, NamedTuple

import torch
from torch import nn

import zoo


# ---- BERT
class BertAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.hd = heads, dim // heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def split(self, x):
        b, t, _ = x.shape
        return x.view(b, t, self.heads, self.hd).transpose(1, 2)

    def forward(self, x, mask):
        b, t, d = x.shape
        ctx = zoo.attend(self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x)), mask)
        return ctx.transpose(1, 2).reshape(b, t, d)


class BertOutput(nn.Module):
    """A projection, the residual and, after both, the norm."""

    def __init__(self, width, dim, eps):
        super().__init__()
        self.dense = nn.Linear(width, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class BertLayer(nn.Module):
    """Post-LN, with the names of Hugging Face's BERT."""

    def __init__(self, dim, heads, hidden, eps):
        super().__init__()
        attention = {"self": BertAttention(dim, heads), "output": BertOutput(dim, dim, eps)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, hidden)})
        self.output = BertOutput(hidden, dim, eps)

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class BertEmbeddings(nn.Module):
    """Words, positions from 0 on and, where there are any, the first token type."""

    def __init__(self, vocab, dim, positions, types, eps):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, dim)
        self.position_embeddings = nn.Embedding(positions, dim)
        self.token_type_embeddings = nn.Embedding(types, dim) if types else None
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, ids):
        x = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[:1]
        return self.LayerNorm(x)


class Bert(nn.Module):
    """BERT without its pooler: the mean over the tokens, then a linear classifier.

    The mask is 1 at a token and 0 at padding.
    """

    def __init__(self, vocab, dim, heads, hidden, layers, positions, types, eps, classes):
        super().__init__()
        self.embeddings = BertEmbeddings(vocab, dim, positions, types, eps)
        blocks = nn.ModuleList([BertLayer(dim, heads, hidden, eps) for _ in range(layers)])
        self.encoder = nn.ModuleDict({"layer": blocks})
        self.classifier = nn.Linear(dim, classes)

    def embed(self, ids, mask):
        added = (1.0 - mask)[:, None, None, :] * -1e9
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, added)
        return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, ids, mask):
        return self.classifier(self.embed(ids, mask))


# ---- adapters
def adapt(model, layers, trained, rank, alpha):
    """LoRA on the linear layers of these last names; of the rest, only what lies in `trained` is trained."""
    for name, param in model.named_parameters():
        param.requires_grad_(any(part in name.split(".") for part in trained))
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if name in layers and isinstance(layer, nn.Linear):
                setattr(parent, name, zoo.LoraLinear(layer, rank, alpha))
    return model


# ---- what the manifest says of a model
ROLES = {
    "query": "q",
    "key": "k",
    "value": "v",
    "proj": "o",
    "attention.output.dense": "o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "classifier": "head",
    "lm_head": "head",
} | {own: own for own in ("fc1", "fc2", "head", "patch", "lora_A", "lora_B", "par_A", "par_B", "seq_A", "seq_B")}
DOWN, UP = ("lora_A", "par_A", "seq_A"), ("lora_B", "par_B", "seq_B")


def base_of(module):
    """The name in the model trained in full, of a module or a parameter that is not an adapter's own."""
    return module.replace(".base", "")


def role(module):
    """What a linear layer is for."""
    name = base_of(module)
    known = [end for end in ROLES if name == end or name.endswith("." + end)]
    return ROLES[max(known, key=len)]


def linear_layers(model):
    """The linear layers in the order of the parameters: `{weight, role, in, out, trained}`, and of an adapter's
    the weight of the layer that it adapts."""
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        what = role(name)
        trained = module.weight.requires_grad
        layer = {"weight": f"{name}.weight", "role": what, "in": module.in_features, "out": module.out_features}
        layer["trained"] = trained
        if what in (*DOWN, *UP):
            layer["adapts"] = f"{name.rpartition('.')[0]}.base.weight"
        layers.append(layer)
    return layers


def initial(model):
    """How each parameter is drawn where training starts from nothing."""
    ways = {}
    for name, module in model.named_modules():
        for own, param in module.named_parameters(recurse=False):
            what = name.rpartition(".")[2]
            if isinstance(module, nn.Linear) and what in DOWN:
                # kaiming_uniform_ with a = sqrt(5), as peft draws it.
                way = {"kind": "uniform", "bound": 1 / math.sqrt(param.shape[1])}
            elif what in UP or own in ("bias", "beta"):
                way = {"kind": "zeros"}
            elif isinstance(module, (nn.LayerNorm, zoo.RmsNorm, zoo.Ssf)):
                way = {"kind": "ones"}
            else:
                way = {"kind": "normal", "std": 0.02}
            ways[f"{name}.{own}" if name else own] = way
    return ways


# ---- cases of export_paper.py
class Case(NamedTuple):
    model: Callable  # (**sizes) -> nn.Module
    sizes: dict
    batch: Callable  # (sizes, rows, length) -> (x, labels)
    inputs: tuple  # names of the batch inputs, labels last
    axes: tuple  # their symbolic axes
    logits: bool
    full: str  # the case of the model trained in full
    adapter: dict = {}  # what the method adds to the sizes
    stored: str | None = None  # how the frozen projections are stored: int4 or nf4

    @property
    def opset(self):
        return 21 if self.stored else 18


def images(sizes, rows, _length):
    return torch.rand(rows, 16 * sizes["side"] ** 2), torch.randint(0, sizes["classes"], (rows,))


def sentences(sizes, rows, _length):
    ids = torch.randint(0, sizes["vocab"], (rows, SENTENCE))
    lengths = torch.randint(1, SENTENCE + 1, (rows, 1))
    mask = (torch.arange(SENTENCE) < lengths).float()
    return (ids, mask), torch.randint(0, sizes["classes"], (rows,))


def text(sizes, rows, length):
    return zoo.tokens(rows, length, sizes["vocab"])


SENTENCE = 32
VIT = {"dim": 128, "heads": 4, "hidden": 512, "layers": 4, "classes": 10, "side": 7}
MINILM = {
    "vocab": 30522, "dim": 384, "heads": 12, "hidden": 1536, "layers": 6,
    "positions": 512, "types": 2, "eps": 1e-12, "classes": 8,
}  # fmt: skip
ROBERTA = {
    "vocab": 4096, "dim": 128, "heads": 4, "hidden": 512, "layers": 4,
    "positions": SENTENCE, "types": 0, "eps": 1e-5, "classes": 8,
}  # fmt: skip
LLAMA_S = {"vocab": 256, "dim": 128, "inter": 384, "layers": 4, "heads": 4, "kv_heads": 4, "length": 128}
LLAMA_M = {**LLAMA_S, "dim": 256, "inter": 768}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def bert_lora(rank, alpha, **sizes):
    return adapt(Bert(**sizes), ("query", "value"), ("classifier",), rank, alpha)


def llama_lora(rank, alpha, **sizes):
    return adapt(zoo.LlamaTiny(**sizes), PROJECTIONS, (), rank, alpha)


def llama_relora(rank, alpha, **sizes):
    """The paper's LoRA row of pre-training: projections stay as drawn, everything else is trained."""
    norms = ("norm", "input_layernorm", "post_attention_layernorm")
    return adapt(zoo.LlamaTiny(**sizes), PROJECTIONS, ("embed_tokens", "lm_head", *norms), rank, alpha)


def vision(model, **adapter):
    names, axes = ("x", "labels"), (zoo.ROWS, zoo.ROWS)
    return Case(model, VIT, images, names, axes, True, "vit_full", adapter)


def classifier(model, sizes, full, **adapter):
    names, axes = ("x", "mask", "labels"), (zoo.ROWS, zoo.ROWS, zoo.ROWS)
    return Case(model, sizes, sentences, names, axes, True, full, adapter)


def decoder(model, sizes, full, stored=None, **adapter):
    axes = (zoo.ROWS_AND_STEPS, zoo.ROWS_AND_STEPS)
    return Case(model, sizes, text, ("x", "y"), axes, False, full, adapter, stored)


CASES = {
    "vit_full": vision(zoo.ViTTiny),
    "vit_probe": vision(zoo.vit_probe),
    "vit_ssf": vision(zoo.vit_ssf),
    "vit_hydra": vision(zoo.vit_hydra, rank=8),
    "vit_lora": vision(zoo.vit_lora, rank=8),
    "minilm_full": classifier(Bert, MINILM, "minilm_full"),
    "minilm_lora": classifier(bert_lora, MINILM, "minilm_full", rank=8, alpha=16),
    "roberta_full": classifier(Bert, ROBERTA, "roberta_full"),
    "roberta_lora": classifier(bert_lora, ROBERTA, "roberta_full", rank=8, alpha=16),
    "llama_s_full": decoder(zoo.LlamaTiny, LLAMA_S, "llama_s_full"),
    "llama_s_lora": decoder(llama_lora, LLAMA_S, "llama_s_full", rank=8, alpha=16),
    # A quarter is what ReLoRA's defaults make of alpha / rank, 32 / 128.
    "llama_s_relora": decoder(llama_relora, LLAMA_S, "llama_s_full", rank=64, alpha=16),
    "llama_s_int4": decoder(llama_lora, LLAMA_S, "llama_s_full", "int4", rank=8, alpha=16),
    "llama_s_nf4": decoder(llama_lora, LLAMA_S, "llama_s_full", "nf4", rank=8, alpha=16),
    "llama_m_full": decoder(zoo.LlamaTiny, LLAMA_M, "llama_m_full"),
    "llama_m_relora": decoder(llama_relora, LLAMA_M, "llama_m_full", rank=96, alpha=24),
}
