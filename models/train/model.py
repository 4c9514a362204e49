# SPDX-License-Identifier: MIT
"""BitNet b1.58 in small: ReLU squared, sub-norms, grouped queries, tied head; weights ternary and
activations int8 by the very formulas that the engine serves with (its numeric contract), with a
straight-through estimator for training."""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    layers: int = 8
    hidden: int = 512
    ffn: int = 1280
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    vocab: int = 4096
    context: int = 1024
    theta: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.0


def ternary(w):
    """Codes and the scale that they are multiplied by, per matrix."""
    mu = w.abs().mean().clamp(min=1e-5)
    s = 1.0 / mu
    return (w * s).round().clamp(-1, 1), s


class BitLinear(nn.Module):
    def __init__(self, cols, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, cols) * 0.02)

    def codes(self):
        w = self.weight.float()
        q, s = ternary(w.detach())
        # The forward value is the code itself, exact in bfloat16; the gradient passes as if it were w * s.
        return w * s + (q - w * s).detach(), s

    def forward(self, x):
        x = x.float()
        a = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        s = 127.0 / a
        xs = x * s
        q = xs + (xs.detach().round().clamp(-128, 127) - xs).detach()
        w, ws = self.codes()
        y = F.linear(q.to(torch.bfloat16), w.to(torch.bfloat16))
        return y.float() * (1.0 / (s * ws))


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        return x * self.weight * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def rope_tables(c, n, device, dtype=torch.float32):
    i = torch.arange(c.head_dim // 2, dtype=torch.float64, device=device)
    f = c.theta ** (-2.0 * i / c.head_dim)
    angle = torch.arange(n, dtype=torch.float64, device=device)[:, None] * f
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    s = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    n = s.shape[-1]
    s = s.masked_fill(torch.ones(n, n, dtype=torch.bool, device=s.device).triu(1), -math.inf)
    return s.softmax(-1).to(v.dtype) @ v


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.c = c
        self.attn_norm, self.attn_sub_norm = Norm(c.hidden, c.eps), Norm(q, c.eps)
        self.ffn_norm, self.ffn_sub_norm = Norm(c.hidden, c.eps), Norm(c.ffn, c.eps)
        self.q, self.k, self.v = BitLinear(c.hidden, q), BitLinear(c.hidden, kv), BitLinear(c.hidden, kv)
        self.o = BitLinear(q, c.hidden)
        self.gate, self.up = BitLinear(c.hidden, c.ffn), BitLinear(c.hidden, c.ffn)
        self.down = BitLinear(c.ffn, c.hidden)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x, cos, sin):
        c, (b, n, _) = self.c, x.shape
        y = self.attn_norm(x)
        q = rope(self.q(y).view(b, n, c.heads, c.head_dim).transpose(1, 2), cos, sin)
        k = rope(self.k(y).view(b, n, c.kv_heads, c.head_dim).transpose(1, 2), cos, sin)
        v = self.v(y).view(b, n, c.kv_heads, c.head_dim).transpose(1, 2)
        k, v = (t.repeat_interleave(c.heads // c.kv_heads, 1) for t in (k, v))
        o = attention(*(t.to(torch.bfloat16) for t in (q, k, v)))
        o = o.transpose(1, 2).reshape(b, n, -1)
        x = x + self.drop(self.o(self.attn_sub_norm(o)))
        y = self.ffn_norm(x)
        h = F.relu(self.gate(y)).pow(2) * self.up(y)
        return x + self.drop(self.down(self.ffn_sub_norm(h)))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.02)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.final_norm = Norm(c.hidden, c.eps)
        self.drop = nn.Dropout(c.dropout)
        for l in self.layers:
            for m in (l.o, l.down):
                nn.init.normal_(m.weight, std=0.02 / math.sqrt(2 * c.layers))

    def rows(self):
        """The embedding as served: int8 with a scale a row."""
        e = self.embed.float()
        s = e.detach().abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127.0
        q = (e.detach() / s).round().clamp(-127, 127) * s
        return e + (q - e).detach()

    def forward(self, ids, targets=None):
        e = self.rows()
        x = self.drop(F.embedding(ids, e))
        cos, sin = rope_tables(self.c, ids.shape[1], ids.device)
        for l in self.layers:
            x = l(x, cos, sin)
        y = self.final_norm(x).to(torch.bfloat16)
        logits = F.linear(y, e.to(torch.bfloat16)).float()
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


class Oracle:
    """The served model in binary64, from exported codes and scales: the golden test of an engine."""

    def __init__(self, c, tensors):
        self.c, self.t = c, {k: v.double() for k, v in tensors.items()}

    @staticmethod
    def linear(x, codes, scale):
        a = x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        q = (x * (127.0 / a)).round().clamp(-128, 127)
        return (q @ codes.T) * (a / 127.0 * scale)

    def norm(self, x, w):
        return x * w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c.eps)

    def forward(self, ids):
        c, t, n = self.c, self.t, len(ids)
        half = lambda v: v.to(torch.float16).double()
        x = (t["embed.codes"] * t["embed.scales"][:, None])[ids]
        cos, sin = rope_tables(c, n, "cpu", torch.float64)
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        for i in range(c.layers):
            p = f"layers.{i}."
            lin = lambda y, m: self.linear(y, t[p + m + ".codes"], t[p + m + ".scale"])
            y = self.norm(x, t[p + "attn_norm"])
            q = rope(lin(y, "q").view(n, c.heads, -1).transpose(0, 1), cos, sin)
            k = half(rope(lin(y, "k").view(n, c.kv_heads, -1).transpose(0, 1), cos, sin))
            v = half(lin(y, "v").view(n, c.kv_heads, -1).transpose(0, 1))
            k, v = (z.repeat_interleave(c.heads // c.kv_heads, 0) for z in (k, v))
            s = (q @ k.transpose(-1, -2) / math.sqrt(c.head_dim)).masked_fill(hidden, -math.inf)
            o = (s.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
            x = x + lin(self.norm(o, t[p + "attn_sub_norm"]), "o")
            y = self.norm(x, t[p + "ffn_norm"])
            h = lin(y, "gate").clamp(min=0).pow(2) * lin(y, "up")
            x = x + lin(self.norm(h, t[p + "ffn_sub_norm"]), "down")
        y = self.norm(x, t["final_norm"])
        a = y.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        y = (y * (32767.0 / a)).round() * (a / 32767.0)
        return (y @ t["embed.codes"].T) * t["embed.scales"]


def export(model):
    """Codes, scales and norms, under the names that Oracle reads."""
    t = {"final_norm": model.final_norm.weight.detach().float()}
    e = model.embed.detach().float()
    s = e.abs().amax(-1).clamp(min=1e-8) / 127.0
    t["embed.scales"], t["embed.codes"] = s, (e / s[:, None]).round().clamp(-127, 127).to(torch.int8)
    for i, l in enumerate(model.layers):
        for name in ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm"):
            t[f"layers.{i}.{name}"] = getattr(l, name).weight.detach().float()
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            q, s = ternary(getattr(l, name).weight.detach().float())
            t[f"layers.{i}.{name}.codes"] = q.to(torch.int8)
            t[f"layers.{i}.{name}.scale"] = (1.0 / s).reshape(1)
    return {k: v.cpu() for k, v in t.items()}, asdict(model.c)
