"""The workbench: a person changes what an agent plans for and how, and the agent plans again.

`simulator.py` puts an environment back, `variants.py` holds what may be changed of an agent,
`core.py` is the workbench itself, `description.py` says what is to be drawn, and `server.py` serves
it to browsers."""
