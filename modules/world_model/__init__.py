"""World model: a JEPA, its latent variables, and the levels above it (LeCun 2022, 4.2, 4.4
to 4.8)."""
