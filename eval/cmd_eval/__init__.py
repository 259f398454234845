"""Evaluation of video backbones: features, retrieval, probes, experiments over several runs, and an HTML report.

``cmd_eval.features.store.read_features`` reads features files, and ``cmd_eval.results.schema.read_result`` reads result
files. Importing this package loads neither torch nor NumPy.
"""
