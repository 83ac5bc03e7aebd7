"""What a project can build: scan.py reads its files, worker.py imports and builds in a process of its own.

evidence.py tells which functions plainly return a model, guess.py what a model may be called with, survey.py runs the
worker and goes on where it died.
"""
