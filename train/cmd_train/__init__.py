"""Self-supervised training from shards: backbone, context head, motion head."""
