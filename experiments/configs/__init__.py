"""One module a result, each with a `get_config()`."""
