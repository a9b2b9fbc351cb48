"""Forward and backward passes with constant weights, written by hand."""
