"""Recorded episodes of any origin: one reader by what lies at a path (`reader.open_recording`), one
layout a file, what an environment makes of them (`dataset`), and `ami data`."""
