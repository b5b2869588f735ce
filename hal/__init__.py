"""What hardware looks like to the station: interfaces, types, errors, registry.

This package imports the standard library and ``cryptography``'s types only, so that a third party can write a
driver against it without pulling in the station. No other library's types cross this border: keys, names and
certificates are bytes in the encoding that their docstrings name.
"""
