"""What is seen in a project's files, which are read and never run here.

`scan` says which Python files may define models; `snippets` are pieces of code, also those of a README and of
docstrings; `values` reads an expression as a manifest writes it; `calls` are calls of builders as people wrote them,
with what the model is then called with; `parsers` are defaults of command lines, `settings` mappings of YAML and JSON;
`evidence` is all of it.
"""
