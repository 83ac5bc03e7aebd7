"""What an engine that serves a model takes: `caches` finds what a forward pass gives back to be taken again,
`passes` runs the model at some sizes, `sightings` reads the law of its cache from these, `planning` puts it together.
"""
