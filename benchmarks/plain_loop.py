"""The yardstick: make and model of Stanford Cars by a plain PyTorch loop, nothing of mtlcar in it.

`python benchmarks/plain_loop.py CARS_ROOT WEIGHTS [--epochs 8]`: timm's EfficientNet-Lite0, two linear heads, AdamW
under OneCycle to 1.5e-3, flips, label smoothing 0.1, loss 0.9 model + 0.1 make, images decoded by a DataLoader,
tested every epoch on a fifth of the images.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.io
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torchvision import transforms

p = argparse.ArgumentParser()
p.add_argument("root", type=Path)
p.add_argument("weights", type=Path)
p.add_argument("--epochs", type=int, default=8)
p.add_argument("--size", type=int, default=128)
args = p.parse_args()
start = time.perf_counter()
torch.manual_seed(0)

annos = scipy.io.loadmat(args.root / "devkit/cars_train_annos.mat", squeeze_me=True)["annotations"]
names = [str(n) for n in scipy.io.loadmat(args.root / "devkit/cars_meta.mat", squeeze_me=True)["class_names"]]
two = ("AM General", "Aston Martin", "Land Rover")
make_names = [next((m for m in two if n.startswith(m)), n.split()[0]) for n in names]
make_of = torch.tensor([sorted(set(make_names)).index(m) for m in make_names])
rows = [(args.root / "cars_train" / str(a["fname"]), int(a["class"]) - 1) for a in annos]
order = np.random.default_rng(0).permutation(len(rows))
test, train = order[: len(rows) // 5], order[len(rows) // 5 :]
normalize = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
resize = transforms.Resize((args.size, args.size))


class Cars(torch.utils.data.Dataset):
    def __init__(self, index, augment):
        self.rows = [rows[i] for i in index]
        self.transform = transforms.Compose(
            [resize, *([transforms.RandomHorizontalFlip()] if augment else []), *normalize]
        )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        path, label = self.rows[i]
        return self.transform(Image.open(path).convert("RGB")), label


train_loader = torch.utils.data.DataLoader(Cars(train, True), 32, shuffle=True, num_workers=2, drop_last=True)
test_loader = torch.utils.data.DataLoader(Cars(test, False), 64, num_workers=2)
trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
trunk.load_state_dict({k: v for k, v in load_file(args.weights).items() if not k.startswith("classifier")})
net = torch.nn.ModuleDict({"trunk": trunk, "make": torch.nn.Linear(1280, 49), "model": torch.nn.Linear(1280, 196)})
optimizer = torch.optim.AdamW(net.parameters(), lr=1.5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=args.epochs * len(train_loader))
for epoch in range(args.epochs):
    net.train()
    for image, model in train_loader:
        f = torch.nn.functional.dropout(net["trunk"](image), 0.25)
        losses = [
            cross_entropy(net[t](f), y, label_smoothing=0.1) for t, y in (("make", make_of[model]), ("model", model))
        ]
        optimizer.zero_grad()
        (0.1 * losses[0] + 0.9 * losses[1]).backward()
        optimizer.step()
        schedule.step()
    net.eval()
    right = torch.zeros(3)
    with torch.no_grad():
        for image, model in test_loader:
            f = net["trunk"](image)
            make, guess = net["make"](f).argmax(1), net["model"](f).argmax(1)
            hits = (guess == model, make == make_of[model], make_of[guess] == make_of[model])
            right += torch.stack([h.float().sum() for h in hits])
    model_acc, make_acc, implied = (right / len(test)).tolist()
    seconds = time.perf_counter() - start
    print(
        f"epoch {epoch + 1} {seconds:.0f} s: model {model_acc:.3f} make {make_acc:.3f} implied {implied:.3f}",
        flush=True,
    )
