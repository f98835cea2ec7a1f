"""Prints the parameters after five steps of PyTorch's optimisers, for tests/optimizer.rs."""

import torch


def run(make):
    w = torch.nn.Parameter(torch.arange(7, dtype=torch.float32) * 0.25 - 0.75)
    optimizer = make([w])
    for t in range(1, 6):
        w.grad = torch.tensor([((i * 7 + t * 3) % 11 - 5) / 8 for i in range(7)])
        optimizer.step()
    return w.tolist()


O = torch.optim
for name, make in {
    "sgd": lambda p: O.SGD(p, lr=0.1),
    "sgd, decay": lambda p: O.SGD(p, lr=0.1, weight_decay=0.25),
    "momentum": lambda p: O.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.25),
    "nesterov": lambda p: O.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: O.Adam(p, lr=0.1, betas=(0.8, 0.99)),
    "adam, decay": lambda p: O.Adam(p, lr=0.1, weight_decay=0.25),
    "adamw": lambda p: O.AdamW(p, lr=0.1, weight_decay=0.25),
}.items():
    print(name, [float(f"{x:.9g}") for x in run(make)])

g = [torch.arange(5, dtype=torch.float32), torch.arange(3, dtype=torch.float32) - 7]
for x in g:
    x.grad = x.clone()
print("norm", torch.nn.utils.clip_grad_norm_(g, 2.5).item(), [x.grad.tolist() for x in g])

o = O.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
s = O.lr_scheduler.CosineAnnealingLR(o, T_max=8, eta_min=0.1)
rates = []
for _ in range(9):
    rates.append(o.param_groups[0]["lr"])
    o.step()
    s.step()
print("cosine", rates)
