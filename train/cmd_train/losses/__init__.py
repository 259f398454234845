"""Losses of pre-training and fine-tuning."""
