"""Cost: intrinsic costs, drives and critics (LeCun 2022, 3.2 and 3.3)."""
