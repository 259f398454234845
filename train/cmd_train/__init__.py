"""Training of video backbones on shards: self-supervised pre-training and fine-tuning."""
