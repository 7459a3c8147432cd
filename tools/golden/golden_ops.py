"""Golden numbers of single operations, forward and backward, computed by PyTorch in float64."""

import torch
import torch.nn.functional as F

HEADS = 2
HEAD_DIM = 8
LENGTHS = [1, 9, 5]


def rounded(*shape, generator, scale=1.0):
    """Random float64 values that are exact in float32, so that both sides start from the same numbers."""
    return (torch.randn(*shape, generator=generator) * scale).double()


def backward(output, gradient, **inputs):
    """The gradients of `inputs` for `gradient` on `output`, named d_<input>."""
    names = list(inputs)
    found = torch.autograd.grad(output, [inputs[n] for n in names], gradient)
    return {f"d_{n}": g for n, g in zip(names, found)}


def leaf(tensor):
    return tensor.clone().requires_grad_()


def layer_norm(g):
    x, gamma, beta = (leaf(t) for t in (rounded(5, 16, generator=g, scale=2.0) + 0.5,
                                        rounded(16, generator=g, scale=0.3) + 1.0,
                                        rounded(16, generator=g, scale=0.3)))
    # The sums above are float64: round again.
    x, gamma, beta = (leaf(t.detach().float().double()) for t in (x, gamma, beta))
    dy = rounded(5, 16, generator=g)
    y = F.layer_norm(x, (16,), gamma, beta, eps=1e-12)
    return {"x": x, "gamma": gamma, "beta": beta, "dy": dy, "y": y,
            **backward(y, dy, x=x, gamma=gamma, beta=beta)}


def gelu(g):
    x = leaf(torch.cat([torch.linspace(-8, 8, 65), torch.tensor([-1e-4, 1e-4, -20.0, 20.0])]).double())
    dy = rounded(x.numel(), generator=g)
    out = {"x": x, "dy": dy}
    for name, form in (("erf", "none"), ("tanh", "tanh")):
        y = F.gelu(x, approximate=form)
        out[f"{name}.y"] = y
        out[f"{name}.d_x"] = backward(y, dy, x=x)["d_x"]
    return out


def linear_lora(g):
    x, w, b = (leaf(rounded(*s, generator=g)) for s in ((7, 12), (10, 12), (10,)))
    lora_a, lora_b = leaf(rounded(4, 12, generator=g, scale=0.5)), leaf(rounded(10, 4, generator=g, scale=0.5))
    dy = rounded(7, 10, generator=g)
    y = x @ w.T + b + 2.0 * (x @ lora_a.T) @ lora_b.T
    return {"x": x, "weight": w, "bias": b, "lora_A": lora_a, "lora_B": lora_b, "dy": dy, "y": y,
            "scale": torch.tensor([2.0]),
            **backward(y, dy, x=x, weight=w, bias=b, lora_A=lora_a, lora_B=lora_b)}


def attention(g):
    tokens, width = sum(LENGTHS), HEADS * HEAD_DIM
    q, k, v = (leaf(rounded(tokens, width, generator=g)) for _ in range(3))
    reach = max(LENGTHS)
    bias = leaf(rounded(HEADS, 2 * reach - 1, generator=g))
    position = torch.arange(reach)
    distance = position[None, :] - position[:, None] + reach - 1
    dy = rounded(tokens, width, generator=g)
    offsets = [0]
    for n in LENGTHS:
        offsets.append(offsets[-1] + n)

    def run(with_bias):
        rows = []
        for start, end in zip(offsets, offsets[1:]):
            n = end - start
            heads = [t[start:end].view(n, HEADS, HEAD_DIM).transpose(0, 1) for t in (q, k, v)]
            scores = heads[0] @ heads[1].transpose(1, 2) / HEAD_DIM**0.5
            if with_bias:
                scores = scores + bias[:, distance[:n, :n]]
            rows.append((scores.softmax(-1) @ heads[2]).transpose(0, 1).reshape(n, width))
        return torch.cat(rows)

    plain, biased = run(False), run(True)
    out = {"q": q, "k": k, "v": v, "bias": bias, "dy": dy, "offsets": torch.tensor(offsets, dtype=torch.int32)}
    out |= {"plain.y": plain, **{f"plain.{n}": t for n, t in backward(plain, dy, q=q, k=k, v=v).items()}}
    out |= {"biased.y": biased,
            **{f"biased.{n}": t for n, t in backward(biased, dy, q=q, k=k, v=v, bias=bias).items()}}
    return out


def losses(g):
    logits = leaf(rounded(6, 5, generator=g, scale=3.0))
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    out = {"cross_entropy.logits": logits, "cross_entropy.labels": labels.int()}
    for name, smoothing in (("plain", 0.0), ("smoothed", 0.1)):
        each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        out[f"cross_entropy.{name}.losses"] = each
        out[f"cross_entropy.{name}.loss"] = each.mean().view(1)
        out[f"cross_entropy.{name}.d_logits"] = backward(each.mean(), None, logits=logits)["d_logits"]
    predicted, target = leaf(rounded(6, 1, generator=g)), rounded(6, generator=g, scale=2.0)
    loss = F.mse_loss(predicted.squeeze(1), target)
    out |= {"mse.logits": predicted, "mse.targets": target, "mse.loss": loss.view(1),
            "mse.d_logits": backward(loss, None, logits=predicted)["d_logits"]}
    return out


def adamw(g):
    """Three steps; gradients of very different sizes, one exactly zero."""
    start = rounded(16, generator=g)
    grads = rounded(3, 16, generator=g) * torch.logspace(-6, 2, 16).double()
    grads[:, 5] = 0
    grads = grads.float().double()
    out = {"start": start, "gradients": grads,
           "settings": torch.tensor([1e-2, 0.9, 0.999, 1e-8, 0.1], dtype=torch.float64)}
    for name, decay in (("plain", 0.0), ("decayed", 0.1)):
        p = leaf(start)
        optimizer = torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
        steps = []
        for row in grads:
            p.grad = row.clone()
            optimizer.step()
            steps.append(p.detach().clone())
        out[f"{name}.values"] = torch.stack(steps)
    return out


def embedding(g):
    ids = torch.tensor([3, 0, 3, 7, 1, 3, 7])
    table, dy = leaf(rounded(9, 6, generator=g)), rounded(7, 6, generator=g)
    y = table[ids]
    return {"ids": ids.int(), "table": table, "dy": dy, "y": y, **backward(y, dy, table=table)}


def all_operations():
    g = torch.Generator().manual_seed(7)
    parts = {"layer_norm": layer_norm, "gelu": gelu, "linear_lora": linear_lora, "attention": attention,
             "loss": losses, "adamw": adamw, "embedding": embedding}
    return {f"{part}.{name}": tensor for part, make in parts.items() for name, tensor in make(g).items()}
