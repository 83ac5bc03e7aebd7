"""What ran: `survey` has a worker import each module and build its models, and goes on where the worker died.

`worker` is what runs there, `inputs` what a model may be called with, `offline` keeps it from the network, and
`outcomes` are the results: a model that was built and counted, a skeleton of one, or why there is neither.
"""
