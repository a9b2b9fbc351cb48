"""Forward and backward passes written by hand, for planning with constant weights.

Everything in this package only makes planning faster. A plan takes hundreds of small tensor
operations, so its time goes into their number; the functions here need fewer than half of those
that autograd needs. Without this package every number stays the same up to rounding: the networks
and costs have a plain `forward`, and autograd differentiates it. To read what a module computes,
read its `forward`. A change of a `forward` that is also written by hand needs the same change here;
until then `tests/test_operations.py` fails, which compares every version by hand with autograd or
with finite differences. The same file limits the number of operations of a plan.

What a module offers. A class whose function `f` is also written by hand has a method `f_by_hand`
(`by_hand` for its `forward`); `protocol.py` lists what each returns:

- dynamics: `unroll_by_hand()`, H steps of `forward`;
- a goal critic and a cost: `by_hand(...)`;
- an action space: `squash_by_hand(raw)`;
- a world model: `imagine_by_hand()`.

A method that takes no tensors returns None where it can't serve, and the caller then takes the
plain path. A class of the user's own needs none of these methods.

When it is not used.

- Weights that take a gradient: constants prepared from them would be outdated after each step of an
  optimizer, and the gradient with respect to the weights would be missing. Weights of inference
  mode, whose changes PyTorch does not count, are treated alike.
- Functions that are traced, to be compiled (`modules/compiled.py`): the compiled function must read
  the weights anew in each call.
- Autocast: a pullback runs after the forward pass, outside of autocast, and would meet tensors of
  other types.
- Subclasses: callers ask with `own_method`, which finds a method only in the class that defines
  it, because a subclass may have another `forward`. A subclass that keeps the version by hand
  correct defines the method again.

Files: `protocol.py`, the methods and how callers ask for them; `caches.py`, tensors that are kept
while no weight changes; `autograd.py`, versions by hand as functions that autograd differentiates;
`mlp.py` and `convolution.py`, networks; `mlp_unroll.py` and `conv_unroll.py`, dynamics;
`energies.py`, costs.
"""
