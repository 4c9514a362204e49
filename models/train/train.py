# SPDX-License-Identifier: MIT
"""Train the bundled model.

    python3 train.py prepare CORPUS WORK      vocabulary, and the documents as ids
    python3 train.py train WORK RUN [key=value ...]   into WORK/RUN: log.jsonl, best.pt, last.pt
    python3 train.py evaluate WORK RUN        held-out bits per byte, samples
    python3 train.py export WORK RUN OUT      a folder that `onebit model convert` reads, and golden logits

Needs PyTorch 2, tokenizers and safetensors, and a GPU for `train`.
"""
import json
import math
import os
import random
import sys
import time

import numpy as np
import torch

import corpus
from model import Config, Model, Oracle, export

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
VOCAB = 4096


# ---- preparation ---------------------------------------------------------------------------------

def vocabulary(texts, path):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    # The specials come last, as ids VOCAB - 5 and up: ordinary ids are the order of merging.
    n = VOCAB - len(corpus.SPECIALS)
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=n, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert t.get_vocab_size() == n
    t.add_special_tokens(corpus.SPECIALS)
    t.save(path)
    return t


def encode(t, docs):
    """(ids, starts): all documents in one array, and where each begins."""
    ids_of = {s: t.token_to_id(s) for s in corpus.SPECIALS}
    flat = [p for d in docs for p in d if p not in ids_of]
    enc = iter(t.encode_batch(flat, add_special_tokens=False))
    out, starts = [], [0]
    for d in docs:
        row = []
        for p in d:
            row += [ids_of[p]] if p in ids_of else next(enc).ids
        out.append(np.array(row, dtype=np.uint16))
        starts.append(starts[-1] + len(row))
    return np.concatenate(out), np.array(starts, dtype=np.int64)


def prepare(folder, work):
    os.makedirs(work, exist_ok=True)
    rng = random.Random(1)
    plain, asked, kids = corpus.story_docs(folder, rng, 4)
    talk = corpus.talk_docs(folder, rng)
    youth, more = corpus.books(folder)
    text = lambda docs: ["".join(p for p in d if p not in corpus.SPECIALS) for d in docs]
    # Merges are chosen for stories first, then for the plainer books.
    t = vocabulary(text(plain) * 4 + text(kids) * 4 + text(talk) + youth, os.path.join(work, "tokenizer.json"))
    data = {}
    for name, docs in (("stories", plain), ("asked", asked), ("kids", kids), ("talk", talk)):
        data[name] = encode(t, docs)
    for name, books in (("youth", youth), ("more", more)):
        # Paragraph groups of about 3,500 bytes, each a document that does not end.
        docs = []
        for b in books:
            part = ""
            for para in b.split("\n\n"):
                part += para + "\n\n"
                if len(part) > 3500:
                    docs.append([corpus.BOS, part.strip()])
                    part = ""
        data[name] = encode(t, docs)
    held = {}
    for name, docs in corpus.held(folder).items():
        whole = name in ("tinystories", "kids-ccby")
        ids, starts = encode(t, [[corpus.BOS, d] + ([corpus.EOT] if whole else []) for d in docs])
        held[name] = (ids, starts, sum(len(d.encode()) for d in docs))
    np.savez(os.path.join(work, "data.npz"),
             **{f"{k}.{i}": v for k, p in data.items() for i, v in enumerate(p)},
             **{f"held.{k}.{i}": np.array(v) for k, p in held.items() for i, v in enumerate(p)})
    for k, (ids, starts) in data.items():
        print(f"{k:8} {len(starts) - 1:7} documents {len(ids):10} tokens")


# ---- training ------------------------------------------------------------------------------------

class Stream:
    """Documents of one kind, shuffled anew each time through."""

    def __init__(self, ids, starts, rng):
        self.ids, self.starts, self.rng, self.order, self.taken = ids, starts, rng, [], 0

    def next(self):
        if not self.order:
            self.order = list(self.rng.permutation(len(self.starts) - 1))
        i = self.order.pop()
        d = self.ids[self.starts[i]:self.starts[i + 1]]
        self.taken += len(d)
        return d


def batches(data, c, rows, weights_at, rng):
    """Rows of c.context + 1 ids, documents one behind the other; the mix by tokens, not documents."""
    streams = {k: Stream(*data[k], rng) for k in data}
    step = 0
    while True:
        w = weights_at(step)
        names = list(w)
        p = np.array([w[k] for k in names], dtype=np.float64)
        mean = np.array([np.diff(data[k][1]).clip(max=c.context).mean() for k in names])
        p = p / mean
        p /= p.sum()
        out = np.empty((rows, c.context + 1), dtype=np.int64)
        for r in range(rows):
            at = 0
            while at < c.context + 1:
                d = streams[names[rng.choice(len(names), p=p)]].next()
                n = min(len(d), c.context + 1 - at)
                out[r, at:at + n] = d[:n]
                at += n
        yield torch.from_numpy(out)
        step += 1


def prefetch(source, depth=8, workers=1):
    import queue
    import threading
    q = queue.Queue(depth)

    def work():
        for b in source:
            q.put(b.pin_memory() if torch.cuda.is_available() else b)
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    while True:
        yield q.get()


@torch.no_grad()
def held_out(model, held, c, device, limit=None):
    """name -> bits per byte. Windows of the context; within a window every id but bos is predicted."""
    model.eval()
    out = {}
    for name, (ids, starts, n_bytes) in held.items():
        windows = []
        for a, b in zip(starts[:-1], starts[1:]):
            for at in range(a, b - 1, c.context):
                windows.append(ids[at:min(b, at + c.context + 1)])
        whole = len(windows)
        if limit:
            windows = windows[:limit]
        total, count = 0.0, 0
        for i in range(0, len(windows), 64):
            part = windows[i:i + 64]
            x = np.zeros((len(part), c.context + 1), dtype=np.int64)
            m = np.zeros((len(part), c.context), dtype=np.float32)
            for j, w in enumerate(part):
                x[j, :len(w)] = w
                m[j, :len(w) - 1] = 1
            x, m = torch.from_numpy(x).to(device), torch.from_numpy(m).to(device)
            loss = model(x[:, :-1], x[:, 1:])
            total += float((loss.double() * m).sum())
            count += float(m.sum())
        all_tokens = sum(b - a - 1 for a, b in zip(starts[:-1], starts[1:]))
        per_byte = total / count * all_tokens / math.log(2) / float(n_bytes)
        out[name] = {"nll": total / count, "bpb": per_byte, "windows": len(windows), "of": whole}
    model.train()
    return out


def newton_schulz(g, steps=5):
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.transpose(-1, -2)
    for _ in range(steps):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.transpose(-1, -2) if flip else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, for the matrices; all of one shape at once."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, ps in shapes.items():
                grads = torch.stack([p.grad for p in ps])
                st = self.state[ps[0]]
                if "m" not in st:
                    st["m"] = torch.zeros_like(grads)
                st["m"].lerp_(grads, 1 - g["momentum"])
                u = newton_schulz(grads.lerp(st["m"], g["momentum"]))
                scale = g["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, d in zip(ps, u):
                    p.mul_(1 - g["lr"] * g["weight_decay"]).add_(d.float(), alpha=-scale)


def train(work, run, options):
    o = dict(seconds=480.0, rows=64, steps=6000, lr=0.02, adam_lr=2e-3, muon=1, wd=0.05, dropout=0.1, seed=1,
             warm=100, late=0.4, layers=8, hidden=512, ffn=1280, heads=8, kv_heads=4, context=1024, compile=1,
             eval_every=500)
    for kv in options:
        k, v = kv.split("=")
        o[k] = type(o[k])(float(v))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(o["seed"])
    rng = np.random.default_rng(o["seed"])
    c = Config(layers=o["layers"], hidden=o["hidden"], ffn=o["ffn"], heads=o["heads"], kv_heads=o["kv_heads"],
               context=o["context"], dropout=o["dropout"], vocab=VOCAB)
    z = np.load(os.path.join(work, "data.npz"))
    kinds = ("stories", "asked", "kids", "talk", "youth", "more")
    data = {k: (z[k + ".0"], z[k + ".1"]) for k in kinds}
    held = {k.split(".")[1]: tuple(z[f"held.{k.split('.')[1]}.{i}"] for i in range(3))
            for k in z.files if k.startswith("held.") and k.endswith(".0")}
    out = os.path.join(work, run)
    os.makedirs(out, exist_ok=True)

    model = Model(c).to(device)
    fast = torch.compile(model) if o["compile"] else model
    mats = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed"]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2]
    groups = [dict(params=[model.embed], weight_decay=0.0), dict(params=rest, weight_decay=0.0)]
    if not o["muon"]:
        groups.append(dict(params=mats, weight_decay=o["wd"]))
    opts = [torch.optim.AdamW(groups, lr=o["adam_lr"], betas=(0.9, 0.95), eps=1e-10)]
    if o["muon"]:
        opts.append(Muon(mats, lr=o["lr"], weight_decay=o["wd"]))
    base = [[g["lr"] for g in opt.param_groups] for opt in opts]

    # First books, for the language; in the late part stories, for what the model is for.
    early = dict(stories=0.02, asked=0.03, kids=0.015, talk=0.015, youth=0.32, more=0.60)
    late = dict(stories=0.12, asked=0.20, kids=0.04, talk=0.04, youth=0.30, more=0.30)
    begin = time.time()
    done = 0.0  # share of the run; by time or steps, whichever is ahead

    def weights_at(_):
        mix = min(1.0, max(0.0, (done - (1 - o["late"])) / 0.1))
        return {k: early[k] * (1 - mix) + late[k] * mix for k in kinds}

    source = prefetch(batches(data, c, o["rows"], weights_at, rng))
    log = open(os.path.join(out, "log.jsonl"), "w")
    best, step, tokens = math.inf, 0, 0
    while done < 1.0:
        x = next(source).to(device, non_blocking=True)
        lr = min(1.0, (step + 1) / o["warm"])
        if done > 1 - o["late"]:
            lr *= max(0.0, (1 - done) / o["late"]) * 0.98 + 0.02
        for opt, b in zip(opts, base):
            for g, l in zip(opt.param_groups, b):
                g["lr"] = l * lr
        loss = fast(x[:, :-1], x[:, 1:]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        tokens += x[:, 1:].numel()
        step += 1
        if step == 20:
            begin += time.time() - begin  # compiling does not count
        done = max(step / o["steps"], (time.time() - begin) / o["seconds"] if step > 20 else 0.0)
        if step % 50 == 0:
            line = dict(step=step, tokens=tokens, loss=loss.item(), lr=lr, seconds=time.time() - begin)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if step % o["eval_every"] == 0 or done >= 1.0:
            h = held_out(fast, held, c, device, limit=None if done >= 1.0 else 192)
            bpb = {k: round(float(v["bpb"]), 4) for k, v in h.items()}
            log.write(json.dumps(dict(step=step, tokens=tokens, held=h)) + "\n")
            log.flush()
            print(f"{run} step {step} {tokens / 1e6:.0f}M tokens {tokens / (time.time() - begin) / 1e6:.2f}M/s "
                  f"loss {loss.item():.3f} {bpb}", flush=True)
            score = bpb["tinystories"] + 0.3 * bpb["kids-ccby"] + 0.2 * bpb["pd-youth"]
            if score < best and done > 0.6:
                best = score
                torch.save(dict(model=model.state_dict(), config=vars(c), options=o, step=step, tokens=tokens,
                                held=h), os.path.join(out, "best.pt"))


# ---- afterwards ----------------------------------------------------------------------------------

def load(work, run, device):
    z = torch.load(os.path.join(work, run, "best.pt"), map_location=device, weights_only=False)
    c = Config(**z["config"])
    c.dropout = 0.0
    m = Model(c).to(device)
    m.load_state_dict(z["model"])
    m.eval()
    return m, c, z


@torch.no_grad()
def generate(model, ids, n, temperature, top_k, seed, stops):
    g = torch.Generator().manual_seed(seed)
    ids = list(ids)
    for _ in range(n):
        x = torch.tensor([ids[-model.c.context:]], device=model.embed.device)
        z = model(x)[0, -1].float().cpu()
        if temperature <= 0:
            t = int(z.argmax())
        else:
            v, i = (z / temperature).topk(top_k)
            t = int(i[torch.multinomial(v.softmax(-1), 1, generator=g)])
        ids.append(t)
        if t in stops:
            break
    return ids


def evaluate(work, run):
    from tokenizers import Tokenizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    m, c, z = load(work, run, device)
    t = Tokenizer.from_file(os.path.join(work, "tokenizer.json"))
    one = t.token_to_id
    stops = {one(corpus.EOT), one(corpus.END)}
    print(json.dumps({k: v for k, v in z["held"].items()}))
    asks = [["Tell me a story."], ["Tell me a story about a dragon and a boat."], ["hello, how are you?"],
            ["What is the capital of France?"], ["Tell me a story about Lily and a cat."]]
    for temp in (0.7, 0.0):
        for seed, (a,) in enumerate(asks):
            ids = [one(corpus.BOS), one(corpus.USER)] + t.encode(a, add_special_tokens=False).ids + [
                one(corpus.END), one(corpus.ASSISTANT)]
            out = generate(m, ids, 300, temp, 40, seed, stops)
            print(f"--- {a} (temperature {temp}, {len(out) - len(ids)} tokens)\n{t.decode(out[len(ids):])}")
        for seed, a in enumerate(["Once upon a time, there was a little fox", "The old king"]):
            ids = [one(corpus.BOS)] + t.encode(a, add_special_tokens=False).ids
            out = generate(m, ids, 200, temp, 40, seed, stops)
            print(f"--- {a} ... (temperature {temp}, {len(out) - len(ids)} tokens)\n{t.decode(out[len(ids):])}")


def export_run(work, run, out):
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    os.makedirs(out, exist_ok=True)
    m, c, z = load(work, run, "cpu")
    tensors, _ = export(m)
    tok = Tokenizer.from_file(os.path.join(work, "tokenizer.json"))

    def packed(q):
        q = (q + 1).to(torch.uint8)
        n = q.shape[0] // 4
        return q[:n] | q[n:2 * n] << 2 | q[2 * n:3 * n] << 4 | q[3 * n:] << 6

    hf = {"model.norm.weight": tensors["final_norm"],
          "model.embed_tokens.weight": tensors["embed.codes"].float() * tensors["embed.scales"][:, None]}
    names = dict(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                 gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj", attn_norm="input_layernorm",
                 ffn_norm="post_attention_layernorm", attn_sub_norm="self_attn.attn_sub_norm",
                 ffn_sub_norm="mlp.ffn_sub_norm")
    for i in range(c.layers):
        for ours, theirs in names.items():
            p, to = f"layers.{i}.{ours}", f"model.layers.{i}.{theirs}.weight"
            if p in tensors:
                hf[to] = tensors[p]
            else:
                hf[to] = packed(tensors[p + ".codes"])
                hf[to + "_scale"] = tensors[p + ".scale"]
    save_file({k: v.contiguous() for k, v in hf.items()}, os.path.join(out, "model.safetensors"),
              metadata={"format": "pt"})
    eot, end = tok.token_to_id(corpus.EOT), tok.token_to_id(corpus.END)
    config = dict(architectures=["BitNetForCausalLM"], model_type="bitnet", hidden_act="relu2",
                  hidden_size=c.hidden, intermediate_size=c.ffn, num_hidden_layers=c.layers,
                  num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
                  vocab_size=c.vocab, max_position_embeddings=c.context, rope_theta=c.theta, rms_norm_eps=c.eps,
                  tie_word_embeddings=True, bos_token_id=tok.token_to_id(corpus.BOS), eos_token_id=eot,
                  quantization_config=dict(quant_method="bitnet", linear_class="autobitlinear",
                                           quantization_mode="offline"))
    json.dump(config, open(os.path.join(out, "config.json"), "w"), indent=1)
    json.dump(dict(eos_token_id=[eot, end]), open(os.path.join(out, "generation_config.json"), "w"))
    # A prompt without a template begins with bos, as the documents did.
    vocab = json.loads(tok.to_str())
    bos = dict(id=corpus.BOS, type_id=0)
    vocab["post_processor"] = dict(
        type="TemplateProcessing", single=[dict(SpecialToken=bos), dict(Sequence=dict(id="A", type_id=0))],
        pair=[dict(SpecialToken=bos), dict(Sequence=dict(id="A", type_id=0)),
              dict(Sequence=dict(id="B", type_id=1))],
        special_tokens={corpus.BOS: dict(id=corpus.BOS, ids=[tok.token_to_id(corpus.BOS)], tokens=[corpus.BOS])})
    json.dump(vocab, open(os.path.join(out, "tokenizer.json"), "w"), ensure_ascii=False)

    # Golden: the served model in binary64 on a fixed text.
    text = ("Once upon a time, there was a little fox who lived near a river. One day the fox saw a red boat. "
            "\"Can I come with you?\" asked the fox.")
    ids = [tok.token_to_id(corpus.BOS)] + tok.encode(text, add_special_tokens=False).ids
    logits = Oracle(c, tensors).forward(torch.tensor(ids))
    top = logits.topk(5)
    np.save(os.path.join(out, "golden-logits.npy"), logits[-8:].float().numpy())
    json.dump(dict(text=text, ids=ids, top_ids=top.indices.tolist(), top_logits=top.values.tolist(),
                   logits_of="the last 8 positions, golden-logits.npy",
                   nll=torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()),
              open(os.path.join(out, "golden.json"), "w"))


if __name__ == "__main__":
    what, args = sys.argv[1], sys.argv[2:]
    torch.set_float32_matmul_precision("high")
    {"prepare": prepare, "train": lambda w, r, *a: train(w, r, a), "evaluate": evaluate,
     "export": export_run}[what](*args)
