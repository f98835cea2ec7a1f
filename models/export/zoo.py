"""The models behind the graphs in this folder, and the cases that export_models.py exports.

Every model's forward takes a batch and returns the *logits*; `loss_of` adds the loss.
All weights are random (seeded); the point is the shape of the training graph.
Attention is written out (matmul, softmax, matmul) because the fused SDPA kernels have
no ONNX form for their backward.
"""

import math
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


# ---- parts
class RmsNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rope_tables(length, head_dim, base=10000.0):
    inv = 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))
    ang = torch.outer(torch.arange(length).float(), inv)
    ang = torch.cat([ang, ang], dim=-1)
    return ang.cos(), ang.sin()


def rotate_half(x):
    h = x.shape[-1] // 2
    return torch.cat([-x[..., h:], x[..., :h]], dim=-1)


def attend(q, k, v, mask=None):
    s = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if mask is not None:
        s = s + mask
    return torch.matmul(torch.softmax(s, dim=-1), v)


class LoraLinear(nn.Module):
    """y = W x + scale * B A x with W frozen."""

    def __init__(self, base, rank=8, alpha=16):
        super().__init__()
        self.base = base
        for p in base.parameters():
            p.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_B.weight, std=0.02)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale


def freeze(model):
    for p in model.parameters():
        p.requires_grad_(False)


# ---- MLP
class Mlp(nn.Module):
    def __init__(self, in_dim=64, hidden=128, classes=10):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.relu(self.fc1(x)))))


class DigitsMlp(nn.Module):
    """A classifier of the 8x8 digits. GELU, so that the inputs of fc2 and fc3 can be freed."""

    def __init__(self, hidden=256):
        super().__init__()
        self.fc1 = nn.Linear(64, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class DeepMlp(nn.Module):
    """Equal GELU layers: the clearest case of what saving inputs of linear layers costs."""

    def __init__(self, width=512, layers=8, classes=10):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


# ---- Llama
class LlamaAttention(nn.Module):
    def __init__(self, dim, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.hd = heads, kv_heads, dim // heads
        self.q_proj = nn.Linear(dim, heads * self.hd, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.hd, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.hd, bias=False)
        self.o_proj = nn.Linear(heads * self.hd, dim, bias=False)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.hd).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.hd).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.hd).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        rep = self.heads // self.kv_heads
        if rep > 1:
            wide, flat = (b, self.kv_heads, rep, t, self.hd), (b, self.heads, t, self.hd)
            k = k[:, :, None].expand(wide).reshape(flat)
            v = v[:, :, None].expand(wide).reshape(flat)
        ctx = attend(q, k, v, mask).transpose(1, 2).reshape(b, t, self.heads * self.hd)
        return self.o_proj(ctx)


class LlamaMlp(nn.Module):
    def __init__(self, dim, inter):
        super().__init__()
        self.gate_proj = nn.Linear(dim, inter, bias=False)
        self.up_proj = nn.Linear(dim, inter, bias=False)
        self.down_proj = nn.Linear(inter, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, dim, inter, heads, kv_heads):
        super().__init__()
        self.input_layernorm = RmsNorm(dim)
        self.self_attn = LlamaAttention(dim, heads, kv_heads)
        self.post_attention_layernorm = RmsNorm(dim)
        self.mlp = LlamaMlp(dim, inter)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaTiny(nn.Module):
    def __init__(self, vocab=256, dim=64, inter=172, layers=2, heads=4, kv_heads=2, length=32):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList([LlamaLayer(dim, inter, heads, kv_heads) for _ in range(layers)])
        self.norm = RmsNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        cos, sin = rope_tables(length, dim // heads)
        self.register_buffer("rope_cos", cos)
        self.register_buffer("rope_sin", sin)
        self.register_buffer("causal", torch.full((length, length), -1e9).triu(1))

    def forward(self, ids):
        t = ids.shape[1]
        cos, sin, mask = self.rope_cos[:t], self.rope_sin[:t], self.causal[:t, :t]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(self.norm(x))


def llama_lora(rank=8, **kw):
    model = LlamaTiny(**kw)
    freeze(model)
    for layer in model.layers:
        a, m = layer.self_attn, layer.mlp
        a.q_proj = LoraLinear(a.q_proj, rank)
        a.v_proj = LoraLinear(a.v_proj, rank)
        m.down_proj = LoraLinear(m.down_proj, rank)
    return model


# ---- ViT
class Ssf(nn.Module):
    """Scale and shift (SSF, NeurIPS 2022): y = x * gamma + beta."""

    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x * self.gamma + self.beta


class HydraLinear(nn.Module):
    """Hydra: y = W x + B_p A_p x  (parallel)  then  y + B_s A_s y  (sequential)."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.par_A = nn.Linear(base.in_features, rank, bias=False)
        self.par_B = nn.Linear(rank, base.out_features, bias=False)
        self.seq_A = nn.Linear(base.out_features, rank, bias=False)
        self.seq_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        y = self.base(x)
        return y + self.par_B(self.par_A(x)) + self.seq_B(self.seq_A(y))


class ViTBlock(nn.Module):
    def __init__(self, dim, heads, hidden, ssf=False):
        super().__init__()
        self.heads, self.hd = heads, dim // heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        make = Ssf if ssf else lambda _dim: nn.Identity()
        self.s_n1, self.s_n2, self.s_proj, self.s_fc2 = make(dim), make(dim), make(dim), make(dim)
        self.s_fc1 = make(hidden)

    def split(self, x):
        b, t, _ = x.shape
        return x.view(b, t, self.heads, self.hd).transpose(1, 2)

    def forward(self, x):
        b, t, d = x.shape
        h = self.s_n1(self.norm1(x))
        ctx = attend(self.split(self.query(h)), self.split(self.key(h)), self.split(self.value(h)))
        x = x + self.s_proj(self.proj(ctx.transpose(1, 2).reshape(b, t, d)))
        h = self.s_n2(self.norm2(x))
        return x + self.s_fc2(self.fc2(F.gelu(self.s_fc1(self.fc1(h)))))


class ViTTiny(nn.Module):
    """Grey images cut into 16 square patches, of 2x2 for 8x8 digits; the patch embedding is a Linear."""

    def __init__(self, dim=64, heads=4, hidden=256, layers=2, classes=10, ssf=False, side=2):
        super().__init__()
        self.side = side
        self.patch = nn.Linear(side * side, dim)
        self.pos = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        self.blocks = nn.ModuleList([ViTBlock(dim, heads, hidden, ssf) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        b, s = x.shape[0], self.side
        x = x.view(b, 4, s, 4, s).permute(0, 1, 3, 2, 4).reshape(b, 16, s * s)
        x = self.patch(x) + self.pos
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x).mean(dim=1))


def vit_ssf(**kw):
    model = ViTTiny(ssf=True, **kw)
    for name, p in model.named_parameters():
        p.requires_grad_("gamma" in name or "beta" in name or name.startswith("head"))
    return model


def vit_hydra(rank=4, **kw):
    model = ViTTiny(**kw)
    freeze(model)
    for blk in model.blocks:
        blk.proj = HydraLinear(blk.proj, rank)
        blk.fc2 = HydraLinear(blk.fc2, rank)
    for name, p in model.named_parameters():
        p.requires_grad_("par_" in name or "seq_" in name or name.startswith("head"))
    return model


def vit_probe(**kw):
    model = ViTTiny(**kw)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("head"))
    return model


def vit_lora(rank=8, **kw):
    model = ViTTiny(**kw)
    freeze(model)
    for blk in model.blocks:
        blk.query = LoraLinear(blk.query, rank)
        blk.value = LoraLinear(blk.value, rank)
        blk.fc2 = LoraLinear(blk.fc2, rank)
    for p in model.head.parameters():
        p.requires_grad_(True)
    return model


# ---- encoder
class EncoderTiny(nn.Module):
    """Pre-LN encoder classifier on token ids (no dropout); not the post-LN layout of BERT."""

    def __init__(self, vocab=256, dim=64, heads=4, hidden=256, layers=2, classes=2, length=32):
        super().__init__()
        self.word = nn.Embedding(vocab, dim)
        self.position = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList([ViTBlock(dim, heads, hidden) for _ in range(layers)])
        self.pooler, self.classifier = nn.Linear(dim, dim), nn.Linear(dim, classes)

    def forward(self, ids):
        x = self.norm(self.word(ids) + self.position[:, : ids.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


# ---- CNN, RNN
class Cnn(nn.Module):
    def __init__(self, norm=True, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 4 * 4, classes)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


class Rnn(nn.Module):
    def __init__(self, kind="lstm", classes=10):
        super().__init__()
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](8, 32)
        self.fc = nn.Linear(32, classes)

    def forward(self, x):  # x: [time, batch, 8]
        y, _ = self.rnn(x)
        return self.fc(y[-1])


# ---- loss
def loss_of(logits, labels):
    """Mean cross entropy; a causal LM passes already shifted labels [batch, time]."""
    if logits.dim() == 3:
        logits = logits.reshape(-1, logits.shape[-1])
        labels = labels.reshape(-1)
    return F.cross_entropy(logits, labels)


# ---- cases of export_models.py
def digits(batch, features=64):
    return torch.randn(batch, features), torch.randint(0, 10, (batch,))


def wide_digits(batch):
    return digits(batch, 512)


def tokens(batch, length, vocab=256):
    return torch.randint(0, vocab, (batch, length)), torch.randint(0, vocab, (batch, length))


def sentences(batch, length):
    return torch.randint(0, 256, (batch, length)), torch.randint(0, 2, (batch,))


def llama_256x4():
    return LlamaTiny(vocab=256, dim=256, inter=1024, layers=4, heads=4, kv_heads=4, length=128)


def digits_vit():
    return ViTTiny(dim=48, hidden=192)


def llama_768x4():
    return LlamaTiny(vocab=256, dim=768, inter=2048, layers=4, heads=12, kv_heads=12, length=128)


class Case(NamedTuple):
    model: Callable  # () -> nn.Module
    batch: Callable  # (*sizes) -> (x, y)
    axes: tuple  # symbolic axes of x and of y
    example_size: tuple  # sizes of the batch that is traced
    other_size: tuple  # sizes of a second batch, for the check
    # The rest as export_training_graph has it.
    labels: str = "y"
    logits: bool = False
    param_values: bool = False
    sgd: dict | None = None


ROWS = {0: "batch"}
ROWS_AND_STEPS = {0: "batch", 1: "seq"}


def rows_case(model, batch=digits):
    return Case(model, batch, (ROWS, ROWS), (16,), (5,))


def trainable_case(model, **more):
    """A graph to be trained by `velora-opt run`: weights in the file, and logits for the accuracy."""
    case = rows_case(model)
    return case._replace(labels="labels", logits=True, param_values=True, **more)


def tokens_case(model):
    return Case(model, tokens, (ROWS_AND_STEPS, ROWS_AND_STEPS), (4, 16), (3, 9))


CASES = {
    "mlp": rows_case(Mlp),
    "llama_tiny": tokens_case(LlamaTiny),
    "llama_tiny_lora": tokens_case(llama_lora),
    "vit_tiny": rows_case(ViTTiny),
    "vit_tiny_lora": rows_case(vit_lora),
    "vit_tiny_ssf": rows_case(vit_ssf),
    "vit_tiny_hydra": rows_case(vit_hydra),
    "vit_tiny_probe": rows_case(vit_probe),
    "bert_tiny": Case(EncoderTiny, sentences, (ROWS_AND_STEPS, ROWS), (4, 16), (3, 9)),
    # To be trained on the digits of models/data.
    "digits_mlp": trainable_case(DigitsMlp),
    "digits_vit": trainable_case(digits_vit),
    # Narrower, since the file holds the momenta too.
    "digits_sgd": trainable_case(
        lambda: DigitsMlp(hidden=128), sgd={"lr": 0.05, "momentum": 0.9}
    ),
    # Larger, for memory and time measurements, and for training on text.
    "deep_mlp": rows_case(DeepMlp, wide_digits),
    "llama_256x4": tokens_case(llama_256x4),
    "llama_768x4": tokens_case(llama_768x4),
}
