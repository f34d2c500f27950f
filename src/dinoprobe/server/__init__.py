"""A classifier behind HTTP: bounded in memory and in time, whatever is sent.

One event loop reads requests and writes answers; a few threads decode; a lane for each core encodes
what waits, in batches that form by themselves while the lanes are busy. Nothing here imports torch:
a `Predictor` does, or does not.
"""
