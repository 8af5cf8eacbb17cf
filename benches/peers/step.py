"""One inner step of Hydra's recipe in PyTorch or JAX, for benches/step.rs.

    step.py torch|torch-compiled|jax LAYERS WIDTH HEADS HIDDEN CONTEXT BATCH adamw|muon THREADS

Says "ready LOSS" (of the first step) when it has warmed up; then, for each line "N" on standard input, does N steps and
prints their times in milliseconds. It computes what src/model/transformer.rs and src/model/optimizer.rs say, in f32:
Llama-style blocks, tied embeddings, clipping to global norm 1, the same constants.
"""

import math
import os
import sys
import time

KIND = sys.argv[1]
LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT, BATCH = map(int, sys.argv[2:8])
OPTIMIZER = sys.argv[8]
THREADS = sys.argv[9]
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = THREADS
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(THREADS)]))

import numpy as np  # noqa: E402, after the number of threads is set

VOCABULARY = 264
HEAD = WIDTH // HEADS
RATE = 1e-3
B1, B2, EPSILON = 0.9, 0.99, 1e-8
DECAY = 0.1 if OPTIMIZER == "adamw" else 0.0
MUON_FACTOR, MOMENTUM, MUON_DECAY = 10.0, 0.95, 0.01
NS = (3.4445, -4.7750, 2.0315)

random = np.random.default_rng(1)
SHAPES = {"embedding": (VOCABULARY, WIDTH), "norm": (WIDTH,)}
for layer in range(LAYERS):
    SHAPES |= {
        f"{layer}.norm1": (WIDTH,),
        f"{layer}.qkv": (3 * WIDTH, WIDTH),
        f"{layer}.o": (WIDTH, WIDTH),
        f"{layer}.norm2": (WIDTH,),
        f"{layer}.gate_up": (2 * HIDDEN, WIDTH),
        f"{layer}.down": (WIDTH, HIDDEN),
    }
WEIGHTS = {
    name: np.ones(shape, np.float32) if len(shape) == 1 else (0.02 * random.standard_normal(shape)).astype(np.float32)
    for name, shape in SHAPES.items()
}
TOKENS = np.array([at * at % 251 for at in range(BATCH * (CONTEXT + 1))]).reshape(BATCH, CONTEXT + 1)
ANGLES = np.arange(CONTEXT)[:, None] * 10000.0 ** (-2.0 * np.arange(HEAD // 2) / HEAD)[None, :]
COS, SIN = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)


def is_hidden(name):
    return "." in name and "norm" not in name


def matrices(name, value):
    """The projections that Muon treats one by one."""
    parts = {"qkv": 3, "gate_up": 2}.get(name.split(".")[-1], 1)
    return [value[i * len(value) // parts : (i + 1) * len(value) // parts] for i in range(parts)]


def make_torch(compiled):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(int(THREADS))
    weights = {name: torch.tensor(value).requires_grad_() for name, value in WEIGHTS.items()}
    tokens, cos, sin = torch.tensor(TOKENS), torch.tensor(COS), torch.tensor(SIN)

    def norm(x, gain):
        return F.rms_norm(x, (WIDTH,), gain, 1e-5)

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def loss_of(weights, tokens):
        x = weights["embedding"][tokens[:, :-1]]
        for layer in range(LAYERS):
            w = {name: weights[f"{layer}.{name}"] for name in ["norm1", "qkv", "o", "norm2", "gate_up", "down"]}
            qkv = F.linear(norm(x, w["norm1"]), w["qkv"]).view(BATCH, CONTEXT, 3, HEADS, HEAD)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            o = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + F.linear(o.transpose(1, 2).reshape(BATCH, CONTEXT, WIDTH), w["o"])
            gate, up = F.linear(norm(x, w["norm2"]), w["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w["down"])
        logits = F.linear(norm(x, weights["norm"]), weights["embedding"])
        return F.cross_entropy(logits.view(-1, VOCABULARY), tokens[:, 1:].reshape(-1))

    hidden = [name for name in SHAPES if is_hidden(name) and OPTIMIZER == "muon"]
    rest = [name for name in SHAPES if name not in hidden]
    groups = [
        {"params": [weights[name] for name in rest if len(SHAPES[name]) > 1], "weight_decay": DECAY},
        {"params": [weights[name] for name in rest if len(SHAPES[name]) == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=(B1, B2), eps=EPSILON, fused=True)
    velocities = {name: torch.zeros_like(weights[name]) for name in hidden}

    def orthogonal(g):
        x = g / (g.norm() + 1e-7)
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        for _ in range(5):
            square = x @ x.T
            x = NS[0] * x + (NS[1] * square + NS[2] * (square @ square)) @ x
        return x.T if flip else x

    def muon(weights, gradients, velocities):
        for name in hidden:
            gradient, velocity = gradients[name], velocities[name]
            velocity.mul_(MOMENTUM).add_(gradient)
            ahead = gradient + MOMENTUM * velocity
            updates = [
                math.sqrt(max(1.0, part.shape[0] / part.shape[1])) * orthogonal(part) for part in matrices(name, ahead)
            ]
            rate = RATE * MUON_FACTOR
            weights[name].mul_(1 - rate * MUON_DECAY).sub_(rate * torch.cat(updates))

    forward = torch.compile(loss_of) if compiled else loss_of
    change = torch.compile(muon) if compiled else muon

    def step():
        loss = forward(weights, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0, foreach=True)
        if hidden:
            with torch.no_grad():
                change(weights, {name: weights[name].grad for name in hidden}, velocities)
        adamw.step()
        for weight in weights.values():
            weight.grad = None
        return loss.item()

    return step


def make_jax():
    import jax
    import jax.numpy as jnp

    def norm(x, gain):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * gain

    def rotate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * COS - b * SIN, a * SIN + b * COS], -1)

    mask = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))

    def loss_of(weights, tokens):
        x = weights["embedding"][tokens[:, :-1]]
        for layer in range(LAYERS):
            w = {name: weights[f"{layer}.{name}"] for name in ["norm1", "qkv", "o", "norm2", "gate_up", "down"]}
            qkv = (norm(x, w["norm1"]) @ w["qkv"].T).reshape(BATCH, CONTEXT, 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)
            q, k, v = rotate(qkv[0]), rotate(qkv[1]), qkv[2]
            scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(HEAD)
            o = jax.nn.softmax(jnp.where(mask, scores, -1e9), -1) @ v
            x = x + o.transpose(0, 2, 1, 3).reshape(BATCH, CONTEXT, WIDTH) @ w["o"].T
            gate, up = jnp.split(norm(x, w["norm2"]) @ w["gate_up"].T, 2, -1)
            x = x + (jax.nn.silu(gate) * up) @ w["down"].T
        logits = norm(x, weights["norm"]) @ weights["embedding"].T
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))

    def orthogonal(g):
        x = g / (jnp.linalg.norm(g) + 1e-7)
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        for _ in range(5):
            square = x @ x.T
            x = NS[0] * x + (NS[1] * square + NS[2] * (square @ square)) @ x
        return x.T if flip else x

    @jax.jit
    def update(weights, first, second, count, tokens):
        loss, gradients = jax.value_and_grad(loss_of)(weights, tokens)
        total = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
        clip = jnp.minimum(1.0, 1.0 / (total + 1e-6))
        count = count + 1
        out, first_out, second_out = {}, {}, {}
        for name, weight in weights.items():
            g = gradients[name] * clip
            if OPTIMIZER == "muon" and is_hidden(name):
                v = MOMENTUM * first[name] + g
                parts = [
                    math.sqrt(max(1.0, part.shape[0] / part.shape[1])) * orthogonal(part)
                    for part in matrices(name, g + MOMENTUM * v)
                ]
                rate = RATE * MUON_FACTOR
                out[name] = weight * (1 - rate * MUON_DECAY) - rate * jnp.concatenate(parts)
                first_out[name], second_out[name] = v, second[name]
                continue
            m = B1 * first[name] + (1 - B1) * g
            v = B2 * second[name] + (1 - B2) * g * g
            decay = DECAY if weight.ndim > 1 else 0.0
            moved = (m / (1 - B1**count)) / (jnp.sqrt(v / (1 - B2**count)) + EPSILON)
            out[name] = weight * (1 - RATE * decay) - RATE * moved
            first_out[name], second_out[name] = m, v
        return out, first_out, second_out, count, loss

    def zeros():
        return {name: jnp.zeros(shape, jnp.float32) for name, shape in SHAPES.items()}

    update = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    state = [{name: jnp.array(value) for name, value in WEIGHTS.items()}, zeros(), zeros(), jnp.float32(0)]
    tokens = jnp.array(TOKENS, jnp.int32)

    def step():
        nonlocal state
        *state, loss = update(*state, tokens)
        return float(loss)

    return step


step = make_jax() if KIND == "jax" else make_torch(KIND == "torch-compiled")
losses = [step() for _ in range(3)]
print("ready", losses[0], flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    print(*times, flush=True)
