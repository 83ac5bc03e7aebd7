"""What an engine that serves a model takes: `passes` runs the model at some sizes, `sightings` reads the law of its
cache from these, `planning` puts it together. Where the cache is, `training.caches` finds.
"""
