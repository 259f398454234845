"""Train a classifier on clips of shards with a plain training loop: train_classifier.py SHARDS [--backbone RUN]."""

import argparse

import torch
from torch.utils.data import DataLoader

import cmd_train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("shards", help="output folder of cmd-extract run, with labels and a split column")
parser.add_argument("--backbone", help="run folder, checkpoint or published weights; default: random weights")
parser.add_argument("--split-column", default="split")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--crop", type=int, default=112, help="side of the input in pixels")
args = parser.parse_args()

videos = {"folder": args.shards, "split_column": args.split_column}
train_set = cmd_train.ShardDataset(**videos, part="train")
test_set = cmd_train.ShardDataset(**videos, part="test", clips=2, classes=train_set.classes)
backbone = (
    cmd_train.load_backbone(args.backbone) if args.backbone else cmd_train.build_backbone("r2plus1d_10", width=16)
)
head = torch.nn.Linear(backbone.feature_channels, len(train_set.classes))
optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3)
for epoch in range(args.epochs):
    for batch in DataLoader(train_set, batch_size=8, shuffle=True, num_workers=2):
        logits = head(backbone(cmd_train.center_crop(batch["clip"], args.crop)).pooled_BC)
        loss = torch.nn.functional.cross_entropy(logits, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
backbone.eval()
hits = []
for item in test_set:
    logits = head(backbone(cmd_train.center_crop(item["clip"], args.crop)).pooled_BC)
    hits.append(int(logits.softmax(1).mean(0).argmax()) == item["label"])
print(f"top-1 on {len(hits)} test videos: {100 * sum(hits) / len(hits):.1f} %")
