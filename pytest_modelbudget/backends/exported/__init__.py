"""Exported files as models: each reader makes an `ExportedModel` of a file, and all else is made of that.

`graph` is what a file says as plain data, `refusals` how a reader refuses one; a reader has a module, or a room of its
own (`onnx/`, `litert/`), and imports what it needs when such a file is met.
"""
