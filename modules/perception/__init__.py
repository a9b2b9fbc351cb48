"""Perception: encoders from observations to latent states (LeCun 2022, 3).

All return flat states `[B, D]`, and `shape` says how D folds into `[C, h, w]` (a vector is 1 by 1).
Modality weights scale the features of each modality: the configurator's priming.
"""
