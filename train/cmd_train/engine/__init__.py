"""Setup, loop and steps of a run; pre-training and fine-tuning."""
